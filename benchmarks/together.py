"""Many prompts through one call of the pipeline, each with its own seed and edits: what makes thousands of pictures quick."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image

import t2iedit
from t2iedit.attention import Look, Probabilities, Site, opened
from t2iedit.clock import Clock


@torch.no_grad()
def paint(model: t2iedit.Model, requests: Sequence[t2iedit.Request]) -> tuple[list[Image], float]:
    """One image for each one-seed request, and the seconds of all; steps, guidance, size and LoRAs are the first's.

    The same as painting them one by one, but for the rounding of larger batches.
    """
    begin = time.perf_counter()
    with model.lock, ExitStack() as stack:
        runs = [t2iedit.start(model, request) for request in requests]
        model.patch(runs[0].patches)
        told = t2iedit.condition(runs)
        for run, conditioning in zip(runs, told, strict=True):
            run.tokens = tuple(embedding.tokens for embedding in conditioning.prompt)
        stack.enter_context(_scheduled(model, told))
        if any(edit.attends(run) for run in runs for edit in run.doing("edit_attention")):
            scheduler = model.pipeline.scheduler
            look = _Looks(runs)
            stack.enter_context(opened(model.denoiser, scheduler, look, guided=runs[0].guided))
        model.pipeline.set_progress_bar_config(disable=True)
        width, height = runs[0].size or model.defaults.size
        images = model.pipeline(
            **_stacked([model.inputs(conditioning) for conditioning in told]),
            num_inference_steps=runs[0].steps,
            guidance_scale=runs[0].guidance_scale,
            width=width,
            height=height,
            generator=[torch.Generator("cpu").manual_seed(run.seeds[0]) for run in runs],
        ).images
    return images, time.perf_counter() - begin


@contextmanager
def _scheduled(model: t2iedit.Model, told: Sequence[t2iedit.Conditioning]) -> Iterator[None]:
    """While this holds, the denoiser is told what each conditioning says for its timestep."""
    if not any(conditioning.changes for conditioning in told):
        yield
        return
    clock = Clock(model.pipeline.scheduler)

    def tell(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        fraction, halves = clock.fraction(timestep), len(args[0]) // len(told)
        each = [model.denoiser_inputs(held.at(fraction), halves) for held in told]
        added = kwargs.get("added_cond_kwargs") or {}
        new = _interleaved(each, halves)
        if "added_cond_kwargs" in new:
            new["added_cond_kwargs"] = added | new["added_cond_kwargs"]
        return args, kwargs | new

    handle = model.denoiser.register_forward_pre_hook(tell, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _interleaved(each: Sequence[dict[str, Any]], halves: int) -> dict[str, Any]:
    """All negative halves, then all prompts', whatever the depth of the arguments."""
    together: dict[str, Any] = {}
    for name, first in each[0].items():
        if isinstance(first, dict):
            together[name] = _interleaved([arguments[name] for arguments in each], halves)
        else:
            rows = [arguments[name].chunk(halves) for arguments in each]
            together[name] = torch.cat([row[half] for half in range(halves) for row in rows])
    return together


def _stacked(each: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([inputs[name] for inputs in each]) for name in each[0]}


@dataclass(frozen=True)
class _Looks:
    """Each image of the batch under its own run's edits."""

    runs: Sequence[t2iedit.Run]

    def __call__(self, site: Site) -> Look | None:
        wanted = [
            [e for e in run.doing("edit_attention", site.fraction) if e.opens(site, run)]
            for run in self.runs
        ]
        if not any(wanted):
            return None

        def look(probs: Probabilities) -> Probabilities:
            edited = probs.clone()
            for index, (run, edits) in enumerate(zip(self.runs, wanted, strict=True)):
                for edit in edits:
                    edited[index] = edit.edit_attention(edited[index : index + 1], site, run)[0]
            return edited

        return look
