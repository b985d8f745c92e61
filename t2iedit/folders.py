"""A model folder in diffusers layout: what must be in it, and what it says of itself."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from t2iedit.errors import ModelNotUsable
from t2iedit.model import Defaults

INDEX = "model_index.json"
SETTINGS = "t2iedit.json"
"""A model folder may say here with how many steps and how much guidance it is meant to be run."""
TOKENIZER = "tokenizer.json"


class Settings(BaseModel):
    """What `t2iedit.json` may say; other keys are passed over."""

    model_config = ConfigDict(allow_inf_nan=False)

    steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=0, le=100)


def check_folder(folder: Path, name: str) -> None:
    """Raises `ModelNotUsable` unless each part of the index is there, with configurations that can be read.

    Asked of the folder itself, since the libraries look for what they cannot read on the hub.
    """
    index = _object(folder, INDEX, name)
    parts = [key for key, value in index.items() if isinstance(value, list) and any(value)]
    missing = [key for key in parts if not (folder / key).is_dir()]
    if missing:
        raise ModelNotUsable(
            f'the model "{name}" lacks its {", ".join(missing)}; fetch or copy it again, whole'
        )
    for key in parts:
        for file in sorted((folder / key).glob("*config.json")):
            _object(folder, f"{key}/{file.name}", name)


def check_loaded(folder: Path, name: str, pipeline: DiffusionPipeline) -> None:
    """Raises `ModelNotUsable` where transformers went on without what the folder lacks.

    It makes up an empty vocabulary for a tokenizer without its files, and random weights for tensors that are not there.
    """
    for key, part in pipeline.components.items():
        lacks = None
        if isinstance(part, PreTrainedTokenizerBase):
            lacks = _missing_vocabulary(folder / key, part)
        elif isinstance(part, PreTrainedModel):
            lacks = _missing_weights(folder / key, part)
        if lacks is not None:
            raise ModelNotUsable(
                f'the model "{name}" lacks {lacks} of its {key}; fetch or copy it again, whole'
            )


def folder_settings(folder: Path, name: str, fallback: Defaults) -> Defaults:
    """What the folder's t2iedit.json says of steps and guidance, else the fallback. Raises `ModelNotUsable`."""
    if not (folder / SETTINGS).exists():
        return fallback
    try:
        said = Settings(**_object(folder, SETTINGS, name))
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelNotUsable(
            f'the {SETTINGS} of the model "{name}" says {first["loc"][0]}={first["input"]!r}: {first["msg"]}; mend or'
            " remove it"
        ) from error
    return Defaults(
        fallback.steps if said.steps is None else said.steps,
        fallback.guidance_scale if said.guidance_scale is None else said.guidance_scale,
        fallback.size,
    )


def _object(folder: Path, file: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / file).read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelNotUsable(
            f'the model "{name}" has no readable {file} ({error}); give a whole folder in diffusers layout'
        ) from error
    return value


def _missing_vocabulary(place: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The files that the tokenizer needs and does not have: all in one, or each of the older kind."""
    older = set(tokenizer.vocab_files_names.values()) - {TOKENIZER}
    lacking = sorted(file for file in older if not (place / file).exists())
    if (place / TOKENIZER).exists() or not (lacking or not older):
        return None
    return " and ".join(lacking) or TOKENIZER


def _missing_weights(place: Path, model: PreTrainedModel) -> str | None:
    """Parameters for which the files hold no tensor of that shape; names differ between versions of transformers."""
    files = list(place.glob("*.safetensors"))
    if not files or getattr(model, "is_quantized", False):
        return None
    held = Counter(shape for file in files for shape in _shapes(file))
    wanted = Counter(tuple(parameter.shape) for parameter in model.parameters())
    lacking = (wanted - held).total()
    return f"{lacking} of the {wanted.total()} weights" if lacking else None


def _shapes(file: Path) -> list[tuple[int, ...]]:
    with safe_open(file, framework="pt") as held:
        keys = held.keys()
        return [tuple(held.get_slice(key).get_shape()) for key in keys]
