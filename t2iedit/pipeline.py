"""The straight line: prompt to tokens to embeddings to edits to denoising to images."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from t2iedit import lora
from t2iedit.attention import Look, Probabilities, Site, openable, opened
from t2iedit.conditioning import Conditioning
from t2iedit.edit import Edit, Run, check_window
from t2iedit.encoding import blamed, condition
from t2iedit.errors import PluginError
from t2iedit.model import Key, Model, Undo
from t2iedit.plugins import installed
from t2iedit.provenance import environment
from t2iedit.request import Request, Result
from t2iedit.steps import scheduled


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a generation stands: `step` of `steps` done in the image with this seed."""

    seed: int
    step: int
    steps: int
    latents: Tensor


OnStep = Callable[[Progress], None]
OnImage = Callable[[Image, Request], None]


@torch.no_grad()
def generate(
    model: Model,
    request: Request,
    *,
    on_step: OnStep | None = None,
    on_image: OnImage | None = None,
    batch_size: int = 1,
) -> Result:
    """An image for each seed of the request.

    `on_step` hears of every step and `on_image` of every image with its one-seed request; either may raise to stop.
    At `batch_size` 1 each image equals, bit for bit, the one its seed gives alone.
    """
    run = start(model, request)
    images: list[Image] = []
    with model.lock:
        model.patch(patches(run))
        (conditioning,) = condition([run])
        for image, seed in denoise(run, conditioning, on_step=on_step, batch_size=batch_size):
            single = request.for_seed(seed)
            installed().manager.hook.image_ready(image=image, request=single, report=run.report)
            if on_image is not None:
                on_image(image, single)
            images.append(image)
    return Result(tuple(images), request, run.report)


def patches(run: Run) -> list[tuple[Key, Callable[[Model], Undo | None]]]:
    """What `Model.patch` is to leave on for this run: LoRAs first, then what edits change, in the user's order."""
    own = [lora.patch(run.loras)] if run.loras else []
    return [*own, *((edit.key, edit.patch_model) for edit in run.doing("patch_model"))]


def start(model: Model, request: Request) -> Run:
    """The request on this model, its defaults filled in and every edit's `check` passed."""
    defaults = model.defaults
    size = defaults.size if request.size is None else request.size
    model.check_size(size)
    guidance = request.guidance_scale
    run = Run(
        model=model,
        prompt=request.prompt,
        negative=request.negative,
        seeds=request.seeds,
        size=size,
        steps=defaults.steps if request.steps is None else request.steps,
        guidance_scale=defaults.guidance_scale if guidance is None else guidance,
        edits=request.edits,
        loras=request.loras,
    )
    run.report["run"] = _circumstances(run)
    for note in model.notes:
        run.warn(note)
    for edit in run.edits:
        check_window(edit)
        if "edit_attention" in edit.stages:
            openable(model.denoiser)
        edit.check(run)
    return run


def _circumstances(run: Run) -> dict[str, Any]:
    """What the pixels depend on besides the request."""
    model = run.model
    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "family": model.family,
        "scheduler": type(model.pipeline.scheduler).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "memory_format": model.memory_format,
        "threads": torch.get_num_threads(),
        "steps": run.steps,
        "guidance_scale": run.guidance_scale,
        "size": list(run.size),
        "loras": {each.file: lora.digest(each) for each in run.loras},
        "versions": environment(),
        "plugins": {edit.name: installed().source(edit.name) for edit in run.edits},
    }


def denoise(
    run: Run, conditioning: Conditioning, *, on_step: OnStep | None = None, batch_size: int = 1
) -> Iterator[tuple[Image, int]]:
    """Each image with its seed, in the order of the run's seeds."""
    model = run.model
    width, height = run.size
    for first in range(0, len(run.seeds), batch_size):
        seeds = list(run.seeds[first : first + batch_size])
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        with (
            torch.no_grad(),
            model.lock,
            _quiet(model.pipeline),
            scheduled(model, conditioning),
            _attention(run),
        ):
            output = model.pipeline(
                **model.inputs(conditioning),
                num_inference_steps=run.steps,
                guidance_scale=run.guidance_scale,
                width=width,
                height=height,
                num_images_per_prompt=len(seeds),
                generator=generators if len(seeds) > 1 else generators[0],
                callback_on_step_end=_follow(run, seeds[0], on_step),
            )
        yield from zip(output.images, seeds, strict=True)


def _attention(run: Run) -> AbstractContextManager[None]:
    """The attention opened, if an edit wants it."""
    if not run.doing("edit_attention"):
        return nullcontext()
    model = run.model

    def look(site: Site) -> Look | None:
        edits = [e for e in run.doing("edit_attention", site.fraction) if e.opens(site, run)]
        return (lambda probs: _edited_attention(edits, probs, site, run)) if edits else None

    return opened(model.denoiser, model.pipeline.scheduler, look, guided=run.guided)


def _edited_attention(
    edits: list[Edit], probs: Probabilities, site: Site, run: Run
) -> Probabilities:
    for edit in edits:
        with blamed(edit):
            edited = edit.edit_attention(probs.clone(), site, run)
        if edited.shape != probs.shape or edited.dtype != probs.dtype:
            raise PluginError(
                f'the edit "{edit.name}" returned {tuple(edited.shape)}, {edited.dtype} for attention'
                f" probabilities of {tuple(probs.shape)}, {probs.dtype}"
            )
        _record_maps(run, edit, (edited - probs).abs().sum(dim=-1).mean().item() / 2)
        probs = edited
    return probs


def _record_maps(run: Run, edit: Edit, moved: float) -> None:
    """How many maps the edit saw, and the mean share of attention that it moved."""
    index = next(i for i, candidate in enumerate(run.edits) if candidate is edit)
    so_far = run.report["edits"][index].get("attention", {"maps": 0, "moved": 0.0})
    maps = so_far["maps"] + 1
    mean = so_far["moved"] + (moved - so_far["moved"]) / maps
    run.record(edit, attention={"maps": maps, "moved": mean})


def _follow(run: Run, seed: int, on_step: OnStep | None) -> Callable[..., dict[str, Any]]:
    run.step = 0

    def follow(pipeline: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        # Schedulers of second order call twice a step.
        order = getattr(pipeline.scheduler, "order", 1)
        run.step = min(run.steps, index // order + 1)
        if on_step is not None:
            on_step(Progress(seed, run.step, run.steps, values["latents"]))
        return values

    return follow


@contextmanager
def _quiet(pipeline: Any) -> Iterator[None]:
    """Without the pipeline's own progress bar, which is put back afterwards."""
    before = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**(before | {"disable": True}))
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**before)
