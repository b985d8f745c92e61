"""The hooks a plugin may implement, with their life cycle; these functions are never called themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

    from t2iedit.edit import Edit
    from t2iedit.model import Model
    from t2iedit.request import Request

PROJECT = "t2iedit"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_edits(register: Callable[[type[Edit]], None]) -> None:
    """Once, when plugins load: call `register` for each Edit class."""


@hookspec(firstresult=True)
def wrap_pipeline(pipeline: DiffusionPipeline) -> Model | None:  # type: ignore[empty-body]
    """Once per opened checkpoint: the first plugin that knows this pipeline wraps it."""


@hookspec(firstresult=True)
def open_checkpoint(  # type: ignore[empty-body]
    path: Path, device: torch.device, dtype: torch.dtype
) -> DiffusionPipeline | None:
    """Before diffusers loads a folder: the first plugin that knows its layout loads it, on this device in this dtype."""


@hookspec
def image_ready(image: Image, request: Request, report: dict[str, Any]) -> None:
    """After each image, in seed order, with its own one-seed request: look, record in `image.info`."""
