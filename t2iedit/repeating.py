"""Repeating the run recorded in an image, and saying what differs from when it was made."""

from pathlib import Path
from typing import Any

import torch

from t2iedit.conditioning import Conditioning
from t2iedit.errors import RecipeNotUsable, UserError
from t2iedit.lora import digest
from t2iedit.model import Model
from t2iedit.pipeline import files_of
from t2iedit.plugins import installed
from t2iedit.provenance import environment, read_recipe
from t2iedit.request import Request
from t2iedit.schedulers import using

MADE_WITH = {
    "versions": dict,
    "loras": dict,
    "files": dict,
    "plugins": dict,
    "inputs": list,
    "memory_format": str,
}
"""What the circumstances of an image are read as; a foreign recipe may hold anything there."""


def recorded(path: str | Path) -> tuple[Request, dict[str, Any]]:
    """The request inside an image, and the circumstances of its making. Raises `RecipeNotUsable`."""
    recipe = read_recipe(path)
    made_with = recipe.pop("made_with", {})
    if not isinstance(made_with, dict):
        raise RecipeNotUsable(f'the recipe in "{path}" is damaged: made_with is no object')
    for key, kind in MADE_WITH.items():
        if not isinstance(made_with.get(key, kind()), kind):
            raise RecipeNotUsable(f'the recipe in "{path}" is damaged: {key} is no {kind.__name__}')
    _refuse_missing(recipe, made_with, path)
    try:
        request = Request.from_json(recipe)
        _refuse_other_conditioning(request, made_with)
        if made_with.get("inputs"):
            raise RecipeNotUsable(
                f"it needs its {', '.join(map(str, made_with['inputs']))} again, which only Python can give:"
                " t2iedit.generate(model, request, ...)"
            )
    except UserError as error:
        raise RecipeNotUsable(f'the recipe in "{path}" cannot be repeated: {error}') from error
    return request, made_with


def differences(model: Model, request: Request, made_with: dict[str, Any]) -> list[str]:
    """Sentences on what is not as it was, so that the image may come out otherwise."""
    now = {
        "weights": model.fingerprint,
        "scheduler": _scheduler(model, request),
        "device": model.device.type,
        "memory format": model.memory_format,
        "number of threads": torch.get_num_threads(),
        "number of images per call": 1,
    } | environment()
    now |= {f"LoRA {lora.file}": digest(lora) for lora in request.loras}
    now |= {f"content of {name}": value for name, value in files_of(request.edits).items()}
    then = {
        "weights": made_with.get("fingerprint"),
        "scheduler": made_with.get("scheduler"),
        "device": made_with.get("device"),
        "memory format": made_with.get("memory_format"),
        "number of threads": made_with.get("threads"),
        "number of images per call": made_with.get("batch_size"),
    } | made_with.get("versions", {})
    then |= {f"LoRA {file}": value for file, value in made_with.get("loras", {}).items()}
    then |= {f"content of {file}": value for file, value in made_with.get("files", {}).items()}
    return [
        f"the recorded {name} was {then[name]}, here it is {value}; the image may differ"
        for name, value in now.items()
        if then.get(name) not in (None, value)
    ]


def _scheduler(model: Model, request: Request) -> str:
    with using(model.pipeline, request.scheduler):
        return type(model.pipeline.scheduler).__name__


def _refuse_other_conditioning(request: Request, made_with: dict[str, Any]) -> None:
    held = made_with.get("conditioning")
    if not isinstance(held, dict):
        return
    if request.conditioning is None:
        raise RecipeNotUsable(
            "it began from a conditioning that was never a file; save it and give it to generate again"
        )
    if Conditioning.load(request.conditioning).digest != held.get("digest"):
        raise RecipeNotUsable(
            f'"{request.conditioning}" is not the conditioning it was made from; put that one back'
        )


def _refuse_missing(recipe: dict[str, Any], made_with: dict[str, Any], path: str | Path) -> None:
    sources, edits = made_with.get("plugins", {}), recipe.get("edits")
    named = (
        [edit.get("name") for edit in edits if isinstance(edit, dict)]
        if isinstance(edits, list)
        else []
    )
    missing = [name for name in named if isinstance(name, str) and name not in installed().edits]
    if missing:
        wanted = ", ".join(
            f'"{name}" of {sources.get(name, "an unknown plugin")}' for name in missing
        )
        raise RecipeNotUsable(
            f'"{path}" was made with edits that are not installed: {wanted}; install the plugin and repeat'
        )
