"""Test-time optimisation: a few steps that fit concepts into one prompt (CoRe, arXiv 2408.15914)."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from t2iedit import Model
from t2iedit_context.objective import (
    Noised,
    Part,
    Weights,
    accumulate,
    context_losses,
    make_pair,
    noise_schedule,
)
from t2iedit_context.placing import Vectors
from t2iedit_context.probe import probed

BATCH = 6
"""CoRe's program, as its rate of 5e-4."""
LATE = 0.8
"""Only times past this share are drawn, where latents are so nearly noise that no picture is needed; our choice."""
SEED = 0


@dataclass(frozen=True, slots=True)
class Optimised:
    """The vectors by placeholder and encoder, and the losses, weighted, before and after."""

    vectors: dict[str, Vectors]
    before: dict[str, float]
    after: dict[str, float]


def optimised(
    model: Model,
    prompt: str,
    parts: list[Part],
    concepts: Mapping[str, Vectors],
    *,
    steps: int,
    learning_rate: float,
    weights: Weights,
) -> Optimised:
    """The concepts' vectors after `steps` of CER and CAR on this prompt alone; those given stay as they are.

    The paper takes the noisy latents from the pictures the concept was learned from. An edit has none, so it takes pure
    noise at late times. The noise is always the same, so a picture does not depend on what else is made with it.
    """
    pair = make_pair(model, prompt, parts)
    free = {
        placeholder: {
            name: value.to(model.device, torch.float32).clone().requires_grad_()
            for name, value in vectors.items()
        }
        for placeholder, vectors in concepts.items()
    }
    leaves = [value for vectors in free.values() for value in vectors.values()]
    optimizer = torch.optim.AdamW(leaves, lr=learning_rate, weight_decay=1e-2)
    noisy = _noise(model)
    history = []
    opened = probed(model.denoiser) if weights.attention else nullcontext()
    with torch.enable_grad(), opened as probe:
        for _ in range(steps + 1):
            losses = context_losses(model, pair, free, noisy, probe, weights, nullcontext())
            history.append({name: float(value.detach()) for name, value in losses.items()})
            if len(history) <= steps and losses:
                optimizer.zero_grad()
                accumulate(torch.stack(list(losses.values())).sum(), leaves, model.dtype)
                optimizer.step()
    done: dict[str, Any] = {
        placeholder: {name: value.detach() for name, value in vectors.items()}
        for placeholder, vectors in free.items()
    }
    return Optimised(done, history[0], history[-1])


def _noise(model: Model) -> Noised:
    schedule = noise_schedule(model)
    total = int(schedule.config["num_train_timesteps"])
    generator = torch.Generator().manual_seed(SEED)
    unet: Any = model.denoiser
    side = unet.config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    latents = torch.randn(BATCH, unet.config.in_channels, height, width, generator=generator)
    times = torch.randint(int(LATE * total), total, (BATCH,), generator=generator)
    latents = latents.to(model.device)
    return Noised(latents, times.to(model.device), latents)
