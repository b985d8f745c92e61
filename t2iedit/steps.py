"""Conditionings that change while the denoiser works."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from t2iedit.clock import Clock
from t2iedit.conditioning import Conditioning
from t2iedit.errors import ConditioningNotUsable
from t2iedit.model import Model

POOLED = {"sdxl": "add_text_embeds", "sd3": "pooled_prompt_embeds"}
"""What the pipelines of a family call the pooled vectors of both guidance halves, where they take new ones."""


@contextmanager
def scheduled(
    model: Model, conditioning: Conditioning, images: int | None = None
) -> Iterator[None]:
    """While this holds, the denoiser and its ControlNet are told what the conditioning says for their timestep.

    A ControlNet that guesses works on the prompt's half alone: that of so many `images`.
    """
    if not conditioning.changes:
        yield
        return
    clock = Clock(model.pipeline.scheduler)

    def tell(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        sample = args[0] if args else kwargs["hidden_states"]
        held = conditioning.at(clock.fraction(timestep * model.timesteps))
        if sample.shape[0] == images:
            held = replace(held, negative=None)
        told = model.denoiser_inputs(held, batch=sample.shape[0])
        added = (kwargs.get("added_cond_kwargs") or {}) | told.pop("added_cond_kwargs", {})
        return args, kwargs | told | ({"added_cond_kwargs": added} if added else {})

    control = model.pipeline.components.get("controlnet")
    listeners = [model.denoiser, *([] if control is None else [control])]
    handles = [part.register_forward_pre_hook(tell, with_kwargs=True) for part in listeners]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def telling(conditioning: Conditioning) -> dict[str, Any]:
    """The `callback_on_step_end` that tells a plain pipeline what changes, as arguments of its call; none if nothing.

    Pipelines keep both guidance halves joined in `prompt_embeds`, and call the pooled vectors by different names.
    Raises `ConditioningNotUsable` where pooled vectors change that the family's pipelines cannot be told.
    """
    if not conditioning.changes:
        return {}
    names = {"prompt_embeds": "prompt_embeds"}
    if _pooled_change(conditioning):
        family = conditioning.origin.family if conditioning.origin else ""
        if family not in POOLED:
            raise ConditioningNotUsable(
                "this conditioning changes its pooled vector during the denoising, which a plain pipeline of this family"
                " cannot be told; use t2iedit.generate"
            )
        names["pooled_prompt_embeds"] = POOLED[family]
    return {
        "callback_on_step_end": _teller(conditioning, names),
        "callback_on_step_end_tensor_inputs": ["latents", *names.values()],
    }


def _pooled_change(conditioning: Conditioning) -> bool:
    """Whether the vectors beside the rows change too."""

    def pooled(held: Conditioning) -> list[Tensor]:
        sides = (*held.prompt, *(held.negative or ()))
        return [embedding.pooled for embedding in sides if embedding.pooled is not None]

    first = pooled(conditioning)
    return any(not all(map(torch.equal, first, pooled(later))) for _, later in conditioning.changes)


def _teller(conditioning: Conditioning, names: dict[str, str]) -> Callable[..., dict[str, Any]]:
    clock: Clock | None = None
    first = 0

    def tell(pipeline: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        nonlocal clock, first
        timesteps = [float(t) for t in pipeline.scheduler.timesteps]
        if index == 0 or clock is None:
            clock, first = Clock(pipeline.scheduler), timesteps.index(float(timestep))
            clock.fraction(timestep)
        following = first + index + 1
        if following < len(timesteps):
            fraction = clock.fraction(timesteps[following])
            told = replace(conditioning.at(fraction), origin=conditioning.origin).joined()
            guided = bool(getattr(pipeline, "do_classifier_free_guidance", False))
            for name, called in names.items():
                values[called] = _like(told, name, values[called], guided=guided)
        return values

    return tell


def _like(told: dict[str, Tensor], name: str, before: Tensor, *, guided: bool) -> Tensor:
    """The value for a batch like the one before; the negative half of a guided one stands first."""
    halves = list(before.chunk(2)) if guided else [before]
    if guided and f"negative_{name}" in told:
        halves[0] = told[f"negative_{name}"].to(before).expand_as(halves[0])
    halves[-1] = told[name].to(before).expand_as(halves[-1])
    return torch.cat(halves)
