"""One generation as data: what was asked, as Python and as JSON, and what came of it."""

import json
import re
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from t2iedit.edit import Edit
from t2iedit.errors import InvalidRequest, UserError
from t2iedit.lora import Lora
from t2iedit.plugins import installed
from t2iedit.provenance import MAX_PIXELS
from t2iedit.weighting import check as check_syntax

MAX_SEED = 2**63 - 1
MAX_IMAGES = 100_000


class Request(BaseModel):
    """A prompt, its edits and how to run them; None means the model's own default.

    `seeds` makes one image each; `seed=n` means `seeds=[n]`. `size` is (width, height) in pixels. `conditioning` is a
    file that `t2iedit encode` wrote: the run starts from it, and the prompt is left out or the same. `scheduler` is one
    of diffusers' by class or short name (euler_a, dpmpp_2m_karras), and `clip_skip` the CLIP layers to leave out.

    `syntax` is how prompts are read: "plain", "windows" (long ones in several windows, BREAK begins one), "a1111" or
    "compel", and `weights` what a weight means: "a1111", "a1111_no_norm" or "compel". `prompts` and `negatives` give
    single encoders, by name, a text of their own.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False
    )

    prompt: str
    negative: str | None = None
    model: str = "shapes"
    seeds: tuple[int, ...] = (0,)
    steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    size: tuple[int, int] | None = None
    dtype: str | None = None
    scheduler: str | None = None
    clip_skip: int | None = Field(None, ge=0, le=100)
    conditioning: str | None = None
    syntax: str = "plain"
    weights: str | None = None
    prompts: dict[str, str] = {}
    negatives: dict[str, str] = {}
    loras: tuple[Lora, ...] = ()
    edits: tuple[Edit, ...] = ()

    def __init__(self, /, prompt: str = "", **values: Any) -> None:
        """Raises `InvalidRequest`, and what the edits raise for their options."""
        try:
            super().__init__(prompt=prompt, **values)
        except ValidationError as error:
            cause = error.errors()[0].get("ctx", {}).get("error")
            if isinstance(cause, UserError):
                raise cause from None
            raise InvalidRequest(_sentence(error)) from error
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                "the request holds half a character, which is no text (a lone surrogate); leave it out"
            ) from error

    @classmethod
    def from_json(cls, data: Any) -> "Request":
        """The request that `to_json` wrote. Raises `InvalidRequest`."""
        if not isinstance(data, dict):
            raise InvalidRequest(
                'a request is a JSON object with at least a "prompt" or a "conditioning"'
            )
        if not any(isinstance(data.get(name), str) for name in ("prompt", "conditioning")):
            raise InvalidRequest('a request needs at least a "prompt" or a "conditioning"')
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without what was left to the defaults."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return {key: value for key, value in values.items() if value != []}

    def for_seed(self, seed: int) -> "Request":
        """The same request for one image."""
        return self.model_copy(update={"seeds": (seed,)})

    @model_validator(mode="before")
    @classmethod
    def _one_seed(cls, data: Any) -> Any:
        if isinstance(data, dict) and "seed" in data:
            if "seeds" in data:
                raise ValueError("give seed or seeds, not both")
            data = dict(data)
            data["seeds"] = (data.pop("seed"),)
        if isinstance(data, dict) and isinstance(data.get("seeds"), range):
            data = data | {"seeds": tuple(data["seeds"])}
        return data

    @field_validator("seeds")
    @classmethod
    def _seeds_usable(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds:
            raise ValueError("at least one seed is needed")
        if any(not 0 <= seed <= MAX_SEED for seed in seeds):
            raise ValueError(f"a seed is a whole number from 0 to {MAX_SEED}")
        return seeds

    @field_validator("size")
    @classmethod
    def _size_usable(cls, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is not None and size[0] * size[1] > MAX_PIXELS:
            raise ValueError(f"a picture has at most {MAX_PIXELS} pixels")
        return size

    @model_validator(mode="after")
    def _syntax_known(self) -> "Request":
        check_syntax(self.syntax, self.weights)
        return self

    @model_validator(mode="after")
    def _in_unicode(self) -> "Request":
        try:
            json.dumps(self.to_json(), ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                "its text holds bytes that are no characters; write it as UTF-8"
            ) from error
        return self

    @field_validator("loras", mode="before")
    @classmethod
    def _loras_from_text(cls, loras: Any) -> Any:
        if not isinstance(loras, list | tuple):
            raise ValueError("loras is a list of FILE or FILE:SCALE")
        return [Lora.parse(lora) if isinstance(lora, str) else lora for lora in loras]

    @field_validator("edits", mode="before")
    @classmethod
    def _edits_from_json(cls, edits: Any) -> Any:
        if not isinstance(edits, list | tuple):
            raise ValueError("edits is a list of edits")
        return tuple(edit if isinstance(edit, Edit) else _edit_from_json(edit) for edit in edits)

    @field_serializer("edits")
    def _edits_to_json(self, edits: tuple[Edit, ...]) -> list[dict[str, Any]]:
        return [edit_to_json(edit) for edit in edits]


def edit_to_json(edit: Edit) -> dict[str, Any]:
    """`{"name": ..., "options": {...}}`, defaults left out."""
    return {
        "name": edit.name,
        "options": edit.options.model_dump(mode="json", exclude_defaults=True),
    }


def _edit_from_json(data: Any) -> Edit:
    known = isinstance(data, dict) and not set(data) - {"name", "options"}
    name, options = (data.get("name"), data.get("options", {})) if known else (None, None)
    if not isinstance(name, str) or not isinstance(options, dict):
        raise ValueError('an edit is {"name": ..., "options": {...}}')
    return installed().edit(name)(**options)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        *place, name = first["loc"]
        known = f"; it has {', '.join(Request.model_fields)}" if not place else ""
        return f'{".".join(map(str, place)) or "a request"} has no "{name}"{known}'
    message = first["msg"].removeprefix("Value error, ")
    given = repr(first["input"])[:100]
    return f"{key}={given}: {message[0].lower()}{message[1:]}" if key else message


@dataclass(frozen=True, slots=True)
class Result:
    """The images in the order of the request's seeds, and what the edits reported."""

    images: tuple[Image, ...]
    request: Request
    report: dict[str, Any]

    @property
    def image(self) -> Image:
        """The first image."""
        return self.images[0]


def parse_seeds(text: str, name: str) -> tuple[int, ...]:
    """`7`, `0..7` (inclusive) or `1,5,9`; `name` is what to call them in a complaint. Raises `InvalidRequest`."""
    found = re.fullmatch(r"(\d{1,19})\.\.(\d{1,19})", text.strip())
    if found is None:
        return _listed_seeds(text, name)
    first, last = int(found[1]), int(found[2])
    if last < first:
        raise InvalidRequest(f"{name} {text} is empty; write the smaller seed first")
    if last - first >= MAX_IMAGES:
        raise InvalidRequest(f"{name} {text} asks for more than {MAX_IMAGES} images at once")
    return tuple(range(first, last + 1))


def _listed_seeds(text: str, name: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d{1,19}", part) for part in parts):
        raise InvalidRequest(
            f'{name} "{text}": write whole numbers, as a range 0..7 or a list 1,5,9'
        )
    seeds = tuple(map(int, parts))
    if len(set(seeds)) < len(seeds):
        raise InvalidRequest(f"{name} {text} has a seed twice, which would make one image twice")
    return seeds


def parse_size(text: str, name: str) -> tuple[int, int]:
    """`640x480` as (640, 480). Raises `InvalidRequest`."""
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text.strip().lower())
    if found is None:
        raise InvalidRequest(f"{name} {text}: write width x height in pixels, like 512x512")
    return int(found[1]), int(found[2])


def parse_seed(text: str, name: str) -> int:
    """One seed as it is typed. Raises `InvalidRequest`."""
    if not re.fullmatch(r"\d{1,19}", text.strip()):
        raise InvalidRequest(
            f'{name} "{text[:50]}": a seed is a whole number; several are --seeds 0..7 or --seeds 1,5,9'
        )
    return int(text)
