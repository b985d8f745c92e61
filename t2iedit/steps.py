"""Conditionings that change while the denoiser works."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from t2iedit.conditioning import Conditioning
from t2iedit.model import Model


@contextmanager
def scheduled(model: Model, conditioning: Conditioning) -> Iterator[None]:
    """While this holds, the denoiser is told what the conditioning says for its timestep.

    By timestep and not by call, since Heun and PNDM call the denoiser several times a step; and counted from the first
    timestep seen, since image-to-image begins late.
    """
    if not conditioning.changes:
        yield
        return
    clock = _Clock(model.pipeline.scheduler)

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


class _Clock:
    """How much of the denoising lies before a timestep."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.timesteps: list[float] = []

    def fraction(self, timestep: torch.Tensor | float) -> float:
        now = float(torch.as_tensor(timestep).flatten()[0])
        if not self.timesteps:
            distinct = list(dict.fromkeys(float(t) for t in self.scheduler.timesteps))
            self.timesteps = sorted((t for t in distinct if t <= now), reverse=True)
        return self.timesteps.index(now) / len(self.timesteps)
