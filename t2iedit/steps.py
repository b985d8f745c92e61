"""Conditionings that change while the denoiser works."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from t2iedit.clock import Clock
from t2iedit.conditioning import Conditioning
from t2iedit.model import Model


@contextmanager
def scheduled(model: Model, conditioning: Conditioning) -> Iterator[None]:
    """While this holds, the denoiser is told what the conditioning says for its timestep."""
    if not conditioning.changes:
        yield
        return
    clock = Clock(model.pipeline.scheduler)

    def tell(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        fraction = clock.fraction(kwargs["timestep"] if "timestep" in kwargs else args[1])
        told = model.denoiser_inputs(conditioning.at(fraction), batch=args[0].shape[0])
        added = (kwargs.get("added_cond_kwargs") or {}) | told.pop("added_cond_kwargs", {})
        return args, kwargs | told | ({"added_cond_kwargs": added} if added else {})

    handle = model.denoiser.register_forward_pre_hook(tell, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
