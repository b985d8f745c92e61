"""How far the denoising has come, told by the timesteps that the denoiser is called with."""

from collections.abc import Sequence
from typing import Any

import torch


class Clock:
    """Turns timesteps into fractions of the denoising, 0 at its first step.

    By timestep and not by call, since Heun and PNDM call the denoiser several times a step; and counted from the first
    timestep seen, since image-to-image begins late.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.timesteps: list[float] = []

    def fraction(self, timestep: torch.Tensor | float) -> float:
        """How much of the denoising lies before this timestep."""
        now = float(torch.as_tensor(timestep).flatten()[0])
        if not self.timesteps:
            distinct = list(dict.fromkeys(float(t) for t in self.scheduler.timesteps))
            first = distinct[_nearest(distinct, now)]
            self.timesteps = sorted((t for t in distinct if t <= first), reverse=True)
        return _nearest(self.timesteps, now) / len(self.timesteps)


def _nearest(timesteps: Sequence[float], now: float) -> int:
    """The nearest one's index: half precision rounds the timesteps that a denoiser is told."""
    return min(range(len(timesteps)), key=lambda index: abs(timesteps[index] - now))
