"""The straight line: prompt to tokens to embeddings to edits to denoising to images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from t2iedit.conditioning import Conditioning, check_same_encoders
from t2iedit.edit import Run, check_window
from t2iedit.encoding import condition
from t2iedit.errors import ConditioningNotUsable, EditNotSupported, InvalidRequest
from t2iedit.model import Model
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
    conditioning: Conditioning | None = None,
    on_step: OnStep | None = None,
    on_image: OnImage | None = None,
    batch_size: int = 1,
) -> Result:
    """An image for each seed of the request, which may start from a conditioning of the same encoders.

    `on_step` hears of every step and `on_image` of every image with its one-seed request; either may raise to stop.
    At `batch_size` 1 each image equals, bit for bit, the one its seed gives alone.
    """
    run = start(model, request, conditioning)
    images: list[Image] = []
    with model.lock:
        model.patch([(edit.key, edit.patch_model) for edit in run.doing("patch_model")])
        (told,) = condition([run])
        for image, seed in denoise(run, told, on_step=on_step, batch_size=batch_size):
            single = request.for_seed(seed)
            installed().manager.hook.image_ready(image=image, request=single, report=run.report)
            if on_image is not None:
                on_image(image, single)
            images.append(image)
    return Result(tuple(images), request, run.report)


def encode(model: Model, request: Request | str, **values: Any) -> Conditioning:
    """What the denoiser would be told: a request, or a prompt and a request's values, encoded and edited.

    Nothing is painted, so `save` it, `blend` it, or hand it to `generate` or to a plain diffusers pipeline.
    """
    asked = Request(request, **values) if isinstance(request, str) else request
    (conditioning,) = condition([start(model, asked)])
    return conditioning


def start(model: Model, request: Request, given: Conditioning | None = None) -> Run:
    """The request on this model, its defaults filled in and every edit's `check` passed.

    It starts from `given`, or from the file that the request names, in place of the prompt's encoding.
    """
    defaults = model.defaults
    if given is None and request.conditioning is not None:
        given = Conditioning.load(request.conditioning)
    if given is not None:
        check_given(model, request, given)
    size = defaults.size if request.size is None else request.size
    model.check_size(size)
    guidance = request.guidance_scale
    run = Run(
        model=model,
        prompt=request.prompt if given is None else given.text,
        negative=request.negative,
        seeds=request.seeds,
        size=size,
        steps=defaults.steps if request.steps is None else request.steps,
        guidance_scale=defaults.guidance_scale if guidance is None else guidance,
        edits=request.edits,
        given=given,
    )
    run.report["run"] = _circumstances(run)
    for edit in run.edits:
        check_window(edit)
        edit.check(run)
    return run


def check_given(model: Model, request: Request, given: Conditioning) -> None:
    """Raises `ConditioningNotUsable` and `InvalidRequest` unless the run can start from this conditioning."""
    if given.origin is not None:
        check_same_encoders(given.origin.encoders, model.marks, "the conditioning", "the model")
    names = [embedding.tokens.encoder for embedding in given.prompt]
    if names != [encoder.name for encoder in model.encoders]:
        raise ConditioningNotUsable(
            f"the conditioning is of the encoders {', '.join(names)}, which this model does not have; encode it again"
        )
    if request.prompt and request.prompt != given.text:
        raise InvalidRequest(
            f'the conditioning holds the prompt "{given.text}", so leave out the prompt "{request.prompt}"'
        )
    early = [edit.name for edit in request.edits if "edit_token_embeds" in edit.stages]
    if early:
        raise EditNotSupported(
            f"{', '.join(early)} acts before the text encoder, and a conditioning is already encoded;"
            " give the edit when encoding"
        )


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
        "versions": environment(),
        "plugins": {edit.name: installed().source(edit.name) for edit in run.edits},
    } | _started_from(run)


def _started_from(run: Run) -> dict[str, Any]:
    """The conditioning that stood in for the prompt, so that another file of its name is noticed."""
    if run.given is None:
        return {}
    history = run.given.origin.history if run.given.origin else ()
    held = {"prompt": run.given.text, "digest": run.given.digest, "history": list(history)}
    return {"conditioning": held}


def denoise(
    run: Run, conditioning: Conditioning, *, on_step: OnStep | None = None, batch_size: int = 1
) -> Iterator[tuple[Image, int]]:
    """Each image with its seed, in the order of the run's seeds."""
    model = run.model
    width, height = run.size
    for first in range(0, len(run.seeds), batch_size):
        seeds = list(run.seeds[first : first + batch_size])
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        with torch.no_grad(), model.lock, _quiet(model.pipeline), scheduled(model, conditioning):
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
