"""The straight line: prompt to tokens to embeddings to edits to denoising to images."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from t2iedit import lora
from t2iedit.attention import Look, Probabilities, Site, openable, opened
from t2iedit.blending import common_length
from t2iedit.conditioning import Conditioning
from t2iedit.edit import Edit, Run, check_window
from t2iedit.encoding import Known, blamed, condition
from t2iedit.errors import ConditioningNotUsable, EditNotSupported, InvalidRequest, PluginError
from t2iedit.model import Model
from t2iedit.plugins import installed
from t2iedit.provenance import environment
from t2iedit.request import Request, Result
from t2iedit.schedulers import using
from t2iedit.steps import scheduled
from t2iedit.text import Tokens
from t2iedit.weighting import Script, parse


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a generation stands: `step` of `steps` done in the image with this seed."""

    seed: int
    step: int
    steps: int
    latents: Tensor


OURS = (
    *("num_inference_steps", "guidance_scale", "num_images_per_prompt", "generator", "clip_skip"),
    *("width", "height", "output_type", "return_dict"),
    *("callback_on_step_end", "callback_on_step_end_tensor_inputs"),
)
"""What the pipeline's call takes and `denoise` decides."""

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
    known: Known | None = None,
    **inputs: Any,
) -> Result:
    """An image for each seed of the request, which may start from a conditioning of the same encoders.

    `on_step` hears of every step and `on_image` of every image with its one-seed request; either may raise to stop.
    `inputs` is whatever else the pipeline takes: the `image` and `strength` of image-to-image, a `mask_image`, the
    `image` of a ControlNet, an `ip_adapter_image`. `known` keeps encoded texts from one call to the next, for as long
    as nobody else changes the model in between.

    At `batch_size` 1 each image equals, bit for bit, the one its seed gives alone.

    Raises a `UserError` for what the request cannot have, `PluginError` for an edit that breaks its contract, and what
    `on_step` and `on_image` raise; the model is then as it is before a run.
    """
    run = start(model, request, conditioning, **inputs)
    images: list[Image] = []
    with model.lock:
        (told,) = condition([run], known)
        for image, seed in denoise(run, told, on_step=on_step, batch_size=batch_size):
            single = request.for_seed(seed)
            run.report["run"]["size"] = list(image.size)
            installed().manager.hook.image_ready(image=image, request=single, report=run.report)
            if on_image is not None:
                on_image(image, single)
            images.append(image)
    return Result(tuple(images), request, run.report)


def encode(model: Model, request: Request | Conditioning | str, **values: Any) -> Conditioning:
    """What the denoiser would be told: a request, or a prompt and a request's values, encoded and edited.

    A conditioning in the prompt's place is edited on. Nothing is painted, so `save` it, `blend` it, or hand it to
    `generate` or to a plain diffusers pipeline. Raises what `generate` raises.
    """
    if isinstance(request, Conditioning):
        return encode_run(start(model, Request(**values), request))
    asked = request if isinstance(request, Request) else Request(request, **values)
    return encode_run(start(model, asked))


@torch.no_grad()
def encode_run(run: Run) -> Conditioning:
    """What the denoiser would be told in this run, by the model as the run wants it patched."""
    (conditioning,) = condition([run])
    return conditioning


def start(model: Model, request: Request, given: Conditioning | None = None, **inputs: Any) -> Run:
    """The request on this model, its defaults filled in and every edit's `check` passed.

    It starts from `given`, or from the file that the request names, in place of the prompt's encoding. Raises a
    `UserError` for what this model cannot do: `InvalidRequest`, `EditNotSupported`, `SpanNotFound` and their like.
    """
    defaults = model.defaults
    if given is None and request.conditioning is not None:
        given = Conditioning.load(request.conditioning)
    check_inputs(model, inputs)
    size = request.size or (None if "image" in inputs else defaults.size)
    if size is not None:
        model.check_size(size)
    guidance = request.guidance_scale
    scripts = _scripts(model, request)
    prompt = parse(request.prompt, request.syntax, request.weights).text
    run = Run(
        model=model,
        prompt=prompt if given is None else given.text,
        negative=request.negative,
        seeds=request.seeds,
        size=size,
        steps=defaults.steps if request.steps is None else request.steps,
        guidance_scale=defaults.guidance_scale if guidance is None else guidance,
        edits=request.edits,
        given=given,
        loras=request.loras,
        scheduler=request.scheduler,
        clip_skip=request.clip_skip,
        inputs=inputs,
        scripts=scripts,
    )
    with model.skipping(run.clip_skip), using(model.pipeline, run.scheduler):
        if given is not None:
            check_given(model, request, given)
        if run.negative and not run.guided:
            run.warn(
                "without guidance there is no negative half, so the negative prompt is not used"
            )
        for note in model.notes:
            run.warn(note)
        for edit in run.edits:
            check_window(edit)
            _check_weights(model, edit)
            if "edit_attention" in edit.stages and edit.attends(run):
                openable(model.denoiser)
            edit.check(run)
    return run


def _check_weights(model: Model, edit: Edit) -> None:
    """Raises `EditNotSupported` for a patch of weights that come and go one layer at a time."""
    if "patch_model" in edit.stages and any(p.is_meta for p in model.denoiser.parameters()):
        raise EditNotSupported(
            f"{edit.name} changes weights that sequential offloading keeps elsewhere; use --offload model"
        )


def _scripts(model: Model, request: Request) -> dict[tuple[str, bool], Script]:
    """How each encoder reads both sides. Raises `InvalidRequest` for encoders that the model does not have."""
    names = [encoder.name for encoder in model.encoders]
    for field in (request.prompts, request.negatives):
        unknown = [name for name in field if name not in names]
        if unknown:
            raise InvalidRequest(
                f"this model has no encoder {', '.join(unknown)} to give a prompt of its own; it has {', '.join(names)}"
            )
    if request.conditioning is not None and (request.prompts or request.syntax != "plain"):
        raise InvalidRequest(
            "a conditioning is already encoded; give syntax and prompts when encoding"
        )
    sides = (False, request.prompt, request.prompts), (True, request.negative, request.negatives)
    return {
        (name, negative): parse(own.get(name, text or ""), request.syntax, request.weights)
        for negative, text, own in sides
        for name in names
    }


def check_inputs(model: Model, inputs: dict[str, Any]) -> None:
    """Raises `InvalidRequest` for what this pipeline's call does not take, or is told by the request."""
    if not inputs:
        return
    takes = inspect.signature(type(model.pipeline).__call__).parameters
    told = [name for name in inputs if name in OURS or "prompt" in name]
    if told:
        raise InvalidRequest(
            f"{', '.join(told)} is t2iedit's to tell the pipeline; give it in the request, if it has it"
        )
    unknown = [name for name in inputs if name not in takes]
    if unknown:
        raise InvalidRequest(
            f"a {type(model.pipeline).__name__} takes no {', '.join(unknown)}; open the pipeline that does"
        )


def check_given(model: Model, request: Request, given: Conditioning) -> None:
    """Raises `ConditioningNotUsable` and `InvalidRequest` unless the run can start from this conditioning."""
    names = [embedding.tokens.encoder for embedding in given.prompt]
    # One with an origin is checked against it once the model is patched, since a LoRA changes the encoders.
    if given.origin is None and names != [encoder.name for encoder in model.encoders]:
        raise ConditioningNotUsable(
            f"the conditioning is of the encoders {', '.join(names)}, which this model does not have; encode it again"
        )
    if request.prompt and request.prompt != given.text:
        raise InvalidRequest(
            f'the conditioning holds the prompt "{given.text}", so leave out the prompt "{request.prompt}"'
        )
    stages = {"edit_prompt", "edit_token_embeds"}
    early = [edit.name for edit in request.edits if stages & set(edit.stages)]
    if early:
        raise EditNotSupported(
            f"{', '.join(early)} acts before the text encoder, and a conditioning is already encoded;"
            " give the edit when encoding"
        )


def _circumstances(run: Run) -> dict[str, Any]:
    """What the pixels depend on besides the request."""
    model = run.model
    return (
        {
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
            "size": None if run.size is None else list(run.size),
            "loras": {each.file: lora.digest(each) for each in run.loras},
            "files": files_of(run.edits),
            "versions": environment(),
            "plugins": {edit.name: installed().source(edit.name) for edit in run.edits},
        }
        | _started_from(run)
        | ({"inputs": sorted(run.inputs)} if run.inputs else {})
    )


def files_of(edits: Iterable[Edit]) -> dict[str, str]:
    """What the edits' files hold, by their names alone: a picture that is passed on tells nothing of folders."""
    return {Path(path).name: digest for edit in edits for path, digest in edit.files.items()}


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
    """Each image with its seed, in the order of the run's seeds; no hook stays on between them.

    Raises `PluginError` for an edit of the attention that breaks its contract.
    """
    if batch_size < 1:
        raise InvalidRequest(f"batch_size is the images of one call, 1 at least, not {batch_size}")
    model = run.model
    told = model.inputs(conditioning)
    run.tokens = _tokens(conditioning)
    # Not at the start: looking through all of the denoiser's modules takes as long as encoding a prompt.
    with model.lock, using(model.pipeline, run.scheduler):
        run.report["run"] = _circumstances(run)
    for first in range(0, len(run.seeds), batch_size):
        seeds = list(run.seeds[first : first + batch_size])
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(model.lock)
            model.patch(run.patches)
            stack.enter_context(_quiet(model.pipeline))
            stack.enter_context(using(model.pipeline, run.scheduler))
            stack.enter_context(scheduled(model, conditioning, images=len(seeds)))
            stack.enter_context(_attention(run, conditioning))
            output = model.pipeline(
                **told,
                **_size(model, run),
                **run.inputs,
                num_inference_steps=run.steps,
                guidance_scale=run.guidance_scale,
                num_images_per_prompt=len(seeds),
                generator=generators if len(seeds) > 1 else generators[0],
                callback_on_step_end=_follow(run, seeds[0], on_step),
            )
        run.report["run"]["batch_size"] = len(seeds)
        yield from zip(output.images, seeds, strict=True)


def _tokens(conditioning: Conditioning) -> tuple[Tokens, ...]:
    """What each encoder read, as often as the denoiser reads it: beside a negative of more windows it is repeated."""
    sides = zip(conditioning.prompt, conditioning.negative or conditioning.prompt, strict=True)
    lengths = [(one.tokens, len(one.hidden), len(other.hidden)) for one, other in sides]
    return tuple(
        tokens.repeated(common_length(own, other) // own) for tokens, own, other in lengths
    )


def _size(model: Model, run: Run) -> dict[str, int]:
    """Image-to-image pipelines take the size of their image, and others choose one to it unless told."""
    if run.size is None:
        return {}
    takes = inspect.signature(type(model.pipeline).__call__).parameters
    named = {"width": run.size[0], "height": run.size[1]}
    return {name: side for name, side in named.items() if name in takes}


def _attention(run: Run, conditioning: Conditioning) -> AbstractContextManager[None]:
    """The attention opened, if an edit wants it; the run's tokens are those that the denoiser is told of then."""
    if not any(edit.attends(run) for edit in run.doing("edit_attention")):
        return nullcontext()
    model = run.model
    read = [
        (start, _tokens(later)) for start, later in ((0.0, conditioning), *conditioning.changes)
    ]

    def look(site: Site) -> Look | None:
        run.tokens = next(tokens for start, tokens in reversed(read) if site.fraction >= start)
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
        # Schedulers of second order call twice a step, PNDM once more than it has steps.
        order = getattr(pipeline.scheduler, "order", 1)
        before, run.step = run.step, min(run.steps, index // order + 1)
        if on_step is not None and run.step > before:
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
