"""What an edit is, what a user may set, and what it may see of the run it is part of."""

import json
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from t2iedit import digests, lora
from t2iedit.attention import Probabilities, Site
from t2iedit.conditioning import Conditioning
from t2iedit.controls import controls
from t2iedit.errors import EditNotSupported, InvalidOptions, PluginError
from t2iedit.lora import Lora
from t2iedit.model import Key, Model, Undo
from t2iedit.spans import Span, locate, numbered, occurrences
from t2iedit.text import TextEmbedding, TextEncoder, Tokens
from t2iedit.weighting import Script, read
from t2iedit.wording import Wording

Phrase = Annotated[str, Field(json_schema_extra={"kind": "phrase"})]
"""Words of the prompt, `cat#2` for the second cat; a demo offers them for clicking."""
Prompt = Annotated[str, Field(json_schema_extra={"kind": "prompt"})]
"""A text of its own, free to say anything."""
File = Annotated[str, Field(json_schema_extra={"kind": "file"})]
"""A file's path; a demo offers an upload or a list of names, and never takes a path from a visitor."""

Known = MutableMapping[Any, TextEmbedding]
"""Encoded texts that no edit touched yet."""

STAGES = (
    "patch_model",
    "edit_prompt",
    "edit_token_embeds",
    "edit_embedding",
    "edit_attention",
)
"""In the order in which a run calls them."""


class Options(BaseModel):
    """What a user sets on an edit. All edits can be limited to a window of the denoising."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    start: float = Field(0.0, ge=0, le=1, description="Where in the denoising it begins to act.")
    stop: float = Field(1.0, ge=0, le=1, description="Where in the denoising it ceases to act.")

    @model_validator(mode="after")
    def _start_before_stop(self) -> "Options":
        if self.start >= self.stop:
            raise ValueError(f"start={self.start:g} must be less than stop={self.stop:g}")
        return self

    @property
    def windowed(self) -> bool:
        """Whether the edit acts in part of the denoising only."""
        return (self.start, self.stop) != (0, 1)


BaseOptions = Options


class Edit:
    """One method: override the stages it needs, and declare what users may set as `Options`.

    `example` are typical options and `neutral` ones that change nothing, both for `t2iedit.testing.check_edit`
    on the prompt "a red cat and a blue dog". With `negative`, its stages see the negative prompt too.
    """

    name: ClassVar[str]
    stages: ClassVar[tuple[str, ...]] = ()
    negative: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {}
    neutral: ClassVar[dict[str, Any] | None] = None

    Options: ClassVar[type[BaseOptions]] = BaseOptions
    options: Any

    def __init_subclass__(cls) -> None:
        unknown = [
            name
            for name in vars(cls)
            if name.startswith(("edit_", "patch_")) and name not in STAGES
        ]
        if unknown:
            raise PluginError(
                f"{cls.__name__} defines {unknown}; the stages of an edit are {list(STAGES)}"
            )
        cls.stages = tuple(s for s in STAGES if getattr(cls, s) is not getattr(Edit, s))

    def __init__(self, /, **options: Any) -> None:
        """Raises `InvalidOptions` for what `Options` does not allow."""
        try:
            self.options = self.Options(**options)
        except ValidationError as error:
            raise InvalidOptions(_sentence(type(self), error)) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edit) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        given = self.options.model_dump(exclude_defaults=True)
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"

    @property
    def key(self) -> Key:
        """The name, all options as canonical JSON, and the files that they name: equal keys mean equal effects."""
        values = [self.options.model_dump(mode="json"), *filter(None, [self.files])]
        return self.name, json.dumps(values, sort_keys=True)

    @property
    def files(self) -> dict[str, str]:
        """Digests of the files and folders that its options name, as they are now; those that are gone left out."""
        found: dict[str, str] = {}
        for name in _file_options(type(self.options)):
            given = getattr(self.options, name)
            for path in [given] if isinstance(given, str) else given or []:
                with suppress(OSError, ValueError):
                    found[path] = digests.of_path(path)
        return found

    @classmethod
    def in_words(cls, facts: dict[str, Any]) -> str:
        """What its part of a report says, as it follows the name: "removed 38 % of the energy along 3 directions"."""
        return "; ".join(_changes(facts)) or "has nothing to report"

    def check(self, run: "Run") -> None:
        """Raise `EditNotSupported` if this edit cannot act in this run; called before anything runs."""

    def patch_model(self, model: Model) -> Callable[[], None] | None:
        """Change the model for as long as runs want this edit; return what undoes it."""

    def edit_prompt(self, prompt: Wording, run: "Run") -> Wording:
        """What the encoders read in place of what was typed; the same in the whole run, whatever the edit's window."""
        return prompt

    def edit_token_embeds(self, embeds: Tensor, tokens: Tokens, run: "Run") -> Tensor:
        """The prompt's input embeddings (seq, width) of one encoder; gradients are enabled."""
        return embeds

    def edit_embedding(self, embedding: TextEmbedding, run: "Run") -> TextEmbedding:
        """What one encoder made of the prompt."""
        return embedding

    def attends(self, run: "Run") -> bool:
        """Whether `edit_attention` acts in this run at all; models whose attention cannot be opened refuse it then."""
        return True

    def opens(self, site: Site, run: "Run") -> bool:
        """Whether `edit_attention` acts there; the probabilities are computed nowhere else."""
        return True

    def edit_attention(self, probs: Probabilities, site: Site, run: "Run") -> Probabilities:
        """The prompt's probabilities (image head pixel token) of one cross-attention layer, in float32."""
        return probs


@cache
def _file_options(options: type[Options]) -> tuple[str, ...]:
    return tuple(control.name for control in controls(options) if control.kind == "file")


@dataclass(eq=False)
class Run:
    """One request at work: what an edit may see, and where it reports.

    `size` is None where a picture among the `inputs` decides it. `step` is the denoiser's step under way, 0 before the first, and `tokens` what each encoder read, once it denoises. `given` is what the run starts from in place of the
    prompt, where it starts from a conditioning; its edits come on top. `inputs` is what else the pipeline is told, an
    image to begin from for instance. `scripts` holds weights, windows and texts that are an encoder's own, by the
    encoder and whether they are of the negative prompt; while an encoder's embedding is edited, `prompt` is what that
    one reads. `known` holds texts that are encoded already; whoever conditions several runs may share it among them.
    """

    model: Model
    prompt: str
    negative: str | None
    seeds: tuple[int, ...]
    size: tuple[int, int] | None
    steps: int
    guidance_scale: float
    edits: tuple[Edit, ...]
    given: Conditioning | None = None
    scheduler: str | None = None
    clip_skip: int | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    scripts: dict[tuple[str, bool], Script] = field(default_factory=dict)
    loras: tuple[Lora, ...] = ()
    step: int = 0
    tokens: tuple[Tokens, ...] = ()
    known: Known = field(default_factory=dict, repr=False)
    report: dict[str, Any] = field(default_factory=lambda: {"warnings": [], "edits": []})

    def __post_init__(self) -> None:
        self.report["edits"] = [{"name": edit.name} for edit in self.edits]

    @property
    def guided(self) -> bool:
        """Whether there is a negative half."""
        return self.model.guided(self.guidance_scale)

    def script(self, encoder: str, *, negative: bool = False) -> Script:
        """How this encoder is to read the prompt, or the negative one."""
        text = (self.negative or "") if negative else self.prompt
        return self.scripts.get((encoder, negative), Script(text))

    @cached_property
    def patches(self) -> list[tuple[Key, Callable[[Model], Undo | None]]]:
        """What `Model.patch` is to leave on for it: LoRAs first, then what edits change, in the user's order."""
        own = [lora.patch(self.loras)] if self.loras else []
        return [*own, *((edit.key, edit.patch_model) for edit in self.doing("patch_model"))]

    def read_by(self, encoder: TextEncoder) -> Tokens:
        """The prompt as this encoder reads it in this run: in its own words, and in as many windows as it may have."""
        held = self.given.prompt if self.given is not None else ()
        own = [each.tokens for each in held if each.tokens.encoder == encoder.name]
        return own[0] if own else read(encoder, self.script(encoder.name))

    def rows(self, phrase: str, tokens: Tokens) -> list[int]:
        """The phrase's tokens, found in the text that these are of.

        Raises `SpanNotFound`, and `SpanTruncated` for what the encoder does not read.
        """
        same = tokens.text == self.prompt
        return tokens.indices(self.span(phrase) if same else locate(tokens.text, phrase))

    def doing(self, stage: str, at: float | None = None, *, negative: bool = False) -> list[Edit]:
        """The edits with this stage, in the user's order; only those whose window holds `at`, if given.

        With `negative`, only those that act on the negative prompt too.
        """
        able = [edit for edit in self.edits if edit.negative or not negative]
        return [edit for edit in able if stage in edit.stages and _acts(edit, at)]

    def boundaries(self) -> list[float]:
        """The fractions of the denoising at which some edit begins or ceases, 0 first."""
        ends = {end for edit in self.edits for end in (edit.options.start, edit.options.stop)}
        if self.given is not None:
            ends |= {start for start, _ in self.given.changes}
        return sorted({0.0} | {end for end in ends if end < 1})

    def span(self, phrase: str) -> Span:
        """Where the phrase stands in the prompt; several matches without a number are reported.

        Raises `SpanNotFound`.
        """
        span = locate(self.prompt, phrase)
        bare, number = numbered(phrase)
        times = len(occurrences(self.prompt, bare))
        if number is None and times > 1:
            self.warn(
                f'"{phrase}" stands {times} times in the prompt and the first is meant;'
                f' write "{phrase}#2" for the second'
            )
        return span

    def warn(self, sentence: str) -> None:
        """Tell the user, once."""
        if sentence not in self.report["warnings"]:
            self.report["warnings"].append(sentence)

    def record(self, edit: Edit, **facts: Any) -> None:
        """Add what an edit did, as JSON values, to its part of the report."""
        index = next(i for i, candidate in enumerate(self.edits) if candidate is edit)
        self.report["edits"][index] |= facts


def check_window(edit: Edit) -> None:
    """Raises `EditNotSupported` if an edit that patches the model is limited to some steps."""
    if "patch_model" in edit.stages and edit.options.windowed:
        raise EditNotSupported(
            f"{edit.name} changes the model itself, so it acts in all steps; leave out start and stop"
        )


def _changes(facts: dict[str, Any]) -> Iterator[str]:
    """What the core itself records of every edit."""
    changes = facts.get("change", {})
    if changes:
        shares = [
            f"{100 * share:.0f} %" + f" ({name})" * (len(changes) > 1)
            for name, share in changes.items()
        ]
        yield f"changed the prompt's embedding by {' and '.join(shares)}"
    if "attention" in facts:
        moved, maps = facts["attention"]["moved"], facts["attention"]["maps"]
        yield f"moved {100 * moved:.1f} % of the attention in {maps} maps"


def _acts(edit: Edit, at: float | None) -> bool:
    return at is None or edit.options.start <= at < edit.options.stop


def _sentence(edit: type[Edit], error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    known = list(edit.Options.model_fields)
    if first["type"] == "extra_forbidden":
        return f'{edit.name} has no option "{key}"; its options are {", ".join(known)}'
    if first["type"] == "missing":
        return f'{edit.name} needs the option "{key}": {edit.Options.model_fields[key].description}'
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if not first["loc"]:
        return f"{edit.name}: {message}"
    return f"{edit.name} cannot take {key}={first['input']!r}: {message}"
