"""The straight line: prompt to tokens to embeddings to edits to denoising to images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from t2iedit.conditioning import Conditioning, Embeddings
from t2iedit.edit import Edit, Run, check_window
from t2iedit.errors import PluginError, UserError
from t2iedit.model import Model
from t2iedit.plugins import installed
from t2iedit.provenance import environment
from t2iedit.request import Request, Result
from t2iedit.steps import scheduled
from t2iedit.text import Kind, TextEmbedding, TextEncoder, Tokens


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
        model.patch([(edit.key, edit.patch_model) for edit in run.doing("patch_model")])
        (conditioning,) = condition([run])
        for image, seed in denoise(run, conditioning, on_step=on_step, batch_size=batch_size):
            single = request.for_seed(seed)
            installed().manager.hook.image_ready(image=image, request=single, report=run.report)
            if on_image is not None:
                on_image(image, single)
            images.append(image)
    return Result(tuple(images), request, run.report)


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
    )
    run.report["run"] = _circumstances(run)
    for edit in run.edits:
        check_window(edit)
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
        "versions": environment(),
        "plugins": {edit.name: installed().source(edit.name) for edit in run.edits},
    }


@torch.no_grad()
def condition(runs: Sequence[Run]) -> list[Conditioning]:
    """What the denoiser is told in each run: one forward pass an encoder for all prompts, one for all negatives.

    The runs share one model.
    """
    if not runs:
        return []
    with runs[0].model.lock:
        prompts = _encode([(run, run.prompt, at) for run in runs for at in run.boundaries()])
        guided = [run for run in runs if run.guided]
        negatives = _encode(
            [(run, run.negative or "", at) for run in guided for at in run.boundaries()],
            negative=True,
        )
    return [_phases(run, prompts, negatives) for run in runs]


def denoise(
    run: Run, conditioning: Conditioning, *, on_step: OnStep | None = None, batch_size: int = 1
) -> Iterator[tuple[Image, int]]:
    """Each image with its seed, in the order of the run's seeds."""
    model = run.model
    width, height = run.size
    for first in range(0, len(run.seeds), batch_size):
        seeds = run.seeds[first : first + batch_size]
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


Job = tuple[Run, str, float]
"""A text to encode for a run, as it is from this fraction of the denoising on."""


def _encode(jobs: Sequence[Job], *, negative: bool = False) -> dict[tuple[int, float], Embeddings]:
    """Each job's embeddings by run and fraction, the edits of that time applied."""
    if not jobs:
        return {}
    model = jobs[0][0].model
    columns = [_encode_one(encoder, jobs, negative=negative) for encoder in model.encoders]
    rows = zip(*columns, strict=True)
    return {(id(run), at): tuple(row) for (run, _, at), row in zip(jobs, rows, strict=True)}


def _encode_one(
    encoder: TextEncoder, jobs: Sequence[Job], *, negative: bool
) -> list[TextEmbedding]:
    """The jobs through one encoder; times that differ only in later edits share its work."""
    unique: dict[tuple, tuple[Tokens, Tensor | None]] = {}
    keys = []
    for run, text, at in jobs:
        edits = [] if negative else run.doing("edit_token_embeds", at)
        keys.append((text, *((id(run), id(edit)) for edit in edits)))
        if keys[-1] not in unique:
            read = encoder.tokenize(text)
            if read.lost:
                _warn_of_loss(run, read)
            unique[keys[-1]] = read, _token_embeds(encoder, read, edits, run)
    tokens, embeds = zip(*unique.values(), strict=True)
    encoded = dict(zip(unique, encoder.encode_batch(tokens, embeds), strict=True))
    return [
        _edited(encoded[key], run, at, negative=negative)
        for key, (run, _, at) in zip(keys, jobs, strict=True)
    ]


def _token_embeds(
    encoder: TextEncoder, tokens: Tokens, edits: Sequence[Edit], run: Run
) -> Tensor | None:
    if not edits:
        return None
    embeds = original = encoder.embed(tokens)
    for edit in edits:
        with torch.enable_grad(), _blamed(edit):
            embeds = edit.edit_token_embeds(embeds, tokens, run).detach()
    _check_shape(edits[-1], embeds, original)
    return embeds


def _edited(embedding: TextEmbedding, run: Run, at: float, *, negative: bool) -> TextEmbedding:
    """The embedding after the edits of this time, in the user's order, each one's effect on the report."""
    if negative and run.negative is None and run.model.zero_negative:
        pooled = None if embedding.pooled is None else torch.zeros_like(embedding.pooled)
        blank = torch.zeros_like(embedding.hidden)
        return replace(embedding, hidden=blank, pooled=pooled)
    for edit in run.doing("edit_embedding", at):
        if negative and not edit.negative:
            continue
        with _blamed(edit):
            edited = edit.edit_embedding(embedding, run)
        _check_embedding(edit, edited, embedding)
        if not negative:
            _record_change(edit, edited, embedding, run)
        embedding = edited
    return embedding


def _phases(
    run: Run,
    prompts: dict[tuple[int, float], Embeddings],
    negatives: dict[tuple[int, float], Embeddings],
) -> Conditioning:
    times = run.boundaries()
    held = [
        Conditioning(prompts[id(run), at], negatives[id(run), at] if run.guided else None)
        for at in times
    ]
    return replace(held[0], changes=tuple(zip(times[1:], held[1:], strict=True)))


def _check_embedding(edit: Edit, edited: TextEmbedding, before: TextEmbedding) -> None:
    """BOS rows stay as they are: quantisation and zeroed negatives rely on it."""
    _check_shape(edit, edited.hidden, before.hidden)
    bos = before.tokens.of(Kind.BOS)
    if not torch.equal(edited.hidden[bos], before.hidden[bos]):
        raise PluginError(f'the edit "{edit.name}" changed the BOS row, which must stay as it is')


def _check_shape(edit: Edit, after: Tensor, before: Tensor) -> None:
    def nature(value: Tensor) -> tuple:
        return tuple(value.shape), value.dtype, value.device

    if nature(after) != nature(before):
        raise PluginError(
            f'the edit "{edit.name}" returned {nature(after)} for an embedding of {nature(before)}'
        )


def _record_change(edit: Edit, edited: TextEmbedding, before: TextEmbedding, run: Run) -> None:
    """The relative change of the rows behind BOS, the largest over the run, so nobody wonders if it did anything."""
    rows = before.hidden[1:].float()
    change = ((edited.hidden[1:].float() - rows).norm() / rows.norm()).item()
    index = next(i for i, candidate in enumerate(run.edits) if candidate is edit)
    changes = run.report["edits"][index].get("change", {})
    name = before.tokens.encoder
    run.record(edit, change=changes | {name: round(max(change, changes.get(name, 0.0)), 6)})


def _warn_of_loss(run: Run, tokens: Tokens) -> None:
    run.warn(
        f'the prompt is longer than the {len(tokens.ids)} tokens of the encoder "{tokens.encoder}";'
        f' these words are lost: "{tokens.lost}"'
    )


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


@contextmanager
def _blamed(edit: Edit) -> Iterator[None]:
    """Whatever breaks inside an edit is reported with its name."""
    try:
        yield
    except (UserError, PluginError):
        raise
    except Exception as error:
        raise PluginError(
            f'the edit "{edit.name}" failed with {type(error).__name__}: {error}'
        ) from error
