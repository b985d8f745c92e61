"""What the layers read, learned by running the real pipeline on prompts; a killed calibration goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import t2iedit
from t2iedit import Model, Progress, Request
from t2iedit_mixdq.bos import BosRows
from t2iedit_mixdq.quantizers import BITS, affine, observed_ranges
from t2iedit_mixdq.schemes import WHOLE, Scheme, weight_scheme
from t2iedit_mixdq.simulation import simulate
from t2iedit_mixdq.wiring import Layer, find_layer, survey

MOMENTUM = 0.95
"""Of the running average over batches; the authors' nominal value, applied once a batch (their code does so three times)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How ranges are found. `batch` prompts make one step of the running average; `weight_bits` are on meanwhile."""

    prompts: tuple[str, ...]
    batch: int = 8
    search: str = "minmax"
    weight_bits: int = 8
    bos_aware: bool = True
    steps: int | None = None
    size: tuple[int, int] | None = None

    def digest(self, fingerprint: str) -> str:
        """Equal for equal settings on the same model."""
        parts = json.dumps([fingerprint, repr(self)])
        return hashlib.sha256(parts.encode()).hexdigest()


Ranges = dict[str, Float[Tensor, "parts widths 2"]]
"""For each layer, each part of its input and each of `BITS`: (low, high)."""


@dataclass
class Observer:
    """Gathers each batch's ranges, and averages them over batches."""

    search: str = "minmax"
    momentum: float = MOMENTUM
    ranges: Ranges = field(default_factory=dict)
    _batch: Ranges = field(default_factory=dict)

    def __call__(self, layer: Layer, parts: list[Tensor]) -> None:
        seen = torch.stack([observed_ranges(part, self.search) for part in parts])
        if layer.name in self._batch:
            before = self._batch[layer.name]
            low = torch.minimum(before[..., 0], seen[..., 0])
            seen = torch.stack([low, torch.maximum(before[..., 1], seen[..., 1])], dim=-1)
        self._batch[layer.name] = seen

    def end_batch(self) -> None:
        """One clean update: new = momentum * old + (1 - momentum) * batch; the first batch starts it."""
        for name, seen in self._batch.items():
            old = self.ranges.get(name, seen)
            self.ranges[name] = self.momentum * old + (1 - self.momentum) * seen
        self._batch = {}


def calibrate(
    model: Model,
    settings: Settings,
    *,
    state: Path | None = None,
    on_prompt: Callable[[int], None] | None = None,
) -> Ranges:
    """The ranges of every layer's input. With `state`, a file, each finished batch is kept and a rerun goes on from it.

    The inputs are observed with quantised weights and BOS rows left out, as in MixDQ. That they are not quantised
    themselves meanwhile is our choice: it makes the result independent of the layers' order.
    """
    observer = Observer(settings.search)
    done = _resume(observer, state, settings.digest(model.fingerprint))
    if on_prompt is not None:
        on_prompt(done)
    unet: Any = model.denoiser
    with model.lock, torch.no_grad():
        # What is patched on now is not what will be quantised.
        model.patch([])
        layers = survey(unet)
        schemes = weight_schemes(unet, layers, settings.weight_bits, settings.search)
        bos = BosRows() if settings.bos_aware else None
        undo = simulate(unet, layers, schemes, bos=bos, observer=observer)
        try:
            for first in range(done, len(settings.prompts), settings.batch):
                for index in range(first, min(first + settings.batch, len(settings.prompts))):
                    denoise(model, settings, index)
                    if on_prompt is not None:
                        on_prompt(1)
                observer.end_batch()
                _keep(observer, state, settings, model.fingerprint, first + settings.batch)
        finally:
            undo()
    return observer.ranges


def weight_schemes(
    unet: Any, layers: Mapping[str, Layer], bits: int, search: str = "minmax"
) -> dict[str, Scheme]:
    """All layers with weights of one width and whole inputs."""
    return {
        name: make_scheme(find_layer(unet, name).weight, layer, bits, WHOLE, search=search)
        for name, layer in layers.items()
    }


def make_scheme(
    weight: Tensor,
    layer: Layer,
    weight_bits: int,
    act_bits: int,
    *,
    ranges: Float[Tensor, "parts widths 2"] | None = None,
    search: str = "minmax",
    group: int = 0,
) -> Scheme:
    """A layer's scheme at these widths; `ranges` are needed for inputs under 16 bits."""
    scheme = Scheme(WHOLE, WHOLE)
    if weight_bits != WHOLE:
        scheme = weight_scheme(weight, weight_bits, layer.split, search, group)
    if act_bits == WHOLE:
        return scheme
    assert ranges is not None, layer.name
    bounds = ranges[:, BITS.index(act_bits)].tolist()
    grids = tuple(affine(low, high, act_bits) for low, high in bounds)
    return replace(scheme, act_bits=act_bits, grids=grids)


class _Denoised(Exception):
    """The last step is done; decoding the picture would be wasted."""


def denoise(model: Model, settings: Settings, index: int) -> None:
    """One calibration prompt, up to the last step."""

    def stop_before_decoding(progress: Progress) -> None:
        if progress.step == progress.steps:
            raise _Denoised

    request = Request(
        settings.prompts[index], seeds=(index,), steps=settings.steps, size=settings.size
    )
    with suppress(_Denoised):
        t2iedit.generate(model, request, on_step=stop_before_decoding)


def _resume(observer: Observer, state: Path | None, digest: str) -> int:
    """How many prompts an earlier run of the same settings finished, its ranges taken over."""
    if state is None or not state.exists():
        return 0
    try:
        with safe_open(state, "pt") as file:
            facts = file.metadata() or {}
            if facts.get("digest") != digest:
                return 0
            names = list(file.keys())
            observer.ranges = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError):
        return 0
    return int(facts["done"])


def _keep(
    observer: Observer, state: Path | None, settings: Settings, fingerprint: str, done: int
) -> None:
    if state is None:
        return
    state.parent.mkdir(parents=True, exist_ok=True)
    part = state.with_name(state.name + ".part")
    done = min(done, len(settings.prompts))
    facts = {"digest": settings.digest(fingerprint), "done": str(done)}
    save_file({name: r.contiguous() for name, r in observer.ranges.items()}, part, metadata=facts)
    part.replace(state)


def text_rows(model: Model, prompts: Sequence[str] = ("",)) -> Float[Tensor, "rows dim"]:
    """The distinct BOS rows that this model's encoders make; one, since CLIP is causal."""
    with torch.no_grad():
        runs = [t2iedit.start(model, Request(prompt, guidance_scale=0.0)) for prompt in prompts]
        told = [
            model.inputs(conditioning)["prompt_embeds"] for conditioning in t2iedit.condition(runs)
        ]
    rows = torch.cat([embeds[:, BosRows().among(embeds.shape[1])].flatten(0, 1) for embeds in told])
    return torch.unique(rows.float(), dim=0)
