"""How much one layer at one width harms: MixDQ's metric-decoupled sensitivity, kept as it is found.

Layers that carry content are judged by the structural similarity of the finished picture, all others by the signal to
noise ratio of the UNet's output: judged by that alone, content layers look worse than they are (arXiv 2405.17873).
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

import t2iedit
from t2iedit import Model, Request
from t2iedit_mixdq.bos import BosRows
from t2iedit_mixdq.calibration import Ranges, Settings, make_scheme
from t2iedit_mixdq.digests import digest_of
from t2iedit_mixdq.quantizers import BITS
from t2iedit_mixdq.schemes import WHOLE, Scheme
from t2iedit_mixdq.simulation import simulate
from t2iedit_mixdq.wiring import Layer, find_layer, survey

MOST = 200.0
"""In dB, what stands for no noise."""


def sqnr(reference: Tensor, other: Tensor) -> float:
    """10 log10(sum y^2 / sum (y_q - y)^2) in dB; 200 for equal ones and -200 for what overflowed, so that it stays a number."""
    signal = reference.double().square().sum().item()
    noise = (reference.double() - other.double()).square().sum().item()
    return decibels(signal, noise)


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise), from -200 to 200."""
    if not math.isfinite(noise):
        return -MOST
    if noise <= 0 or signal <= 0:
        return MOST
    return max(-MOST, min(MOST, 10 * math.log10(signal / noise)))


def ssim(first: Image, second: Image) -> float:
    """Structural similarity of two pictures over one window as large as they are, averaged over the colours.

    The authors use windows of 511 pixels on pictures of 512, so one window differs from theirs by nothing that counts.
    """
    a, b = (np.asarray(image.convert("RGB"), dtype=np.float64) for image in (first, second))
    axes = (0, 1)
    mean_a, mean_b = a.mean(axes), b.mean(axes)
    var_a, var_b = a.var(axes, ddof=1), b.var(axes, ddof=1)
    n = a.shape[0] * a.shape[1]
    covariance = ((a - mean_a) * (b - mean_b)).sum(axes) / (n - 1)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def image_error(first: Image, second: Image) -> float:
    """Mean squared difference of pixels, in floating point: unsigned bytes would wrap round."""
    a, b = (np.asarray(image.convert("RGB"), dtype=np.float64) for image in (first, second))
    return float(((a - b) ** 2).mean())


@dataclass
class Bench:
    """The model with reference pictures and UNet outputs, against which quantised ones are judged."""

    model: Model
    settings: Settings
    ranges: Ranges
    group: int = 0
    layers: dict[str, Layer] = field(init=False)
    _images: list[Image] = field(default_factory=list)
    calls: list[tuple[tuple, dict, Tensor]] = field(default_factory=list)
    """Every call of the UNet for the references: arguments and output."""

    def __post_init__(self) -> None:
        with self._recorded():
            self.layers = survey(self.model.denoiser)
            self._images = self.images()

    def scheme(self, name: str, bits: int, act_bits: int) -> Scheme:
        """A layer's scheme, its steps and grids found for these very widths."""
        layer = self.layers[name]
        weight: Any = find_layer(self.model.denoiser, name).weight
        ranges, search = self.ranges.get(name), self.settings.search
        return make_scheme(
            weight, layer, bits, act_bits, ranges=ranges, search=search, group=self.group
        )

    @contextmanager
    def quantised(self, schemes: Mapping[str, Scheme]) -> Iterator[None]:
        """While this holds, these layers are simulated."""
        bos = BosRows() if self.settings.bos_aware else None
        with self.model.lock:
            undo = simulate(self.model.denoiser, self.layers, schemes, bos=bos)
            try:
                yield
            finally:
                undo()

    def images(self) -> list[Image]:
        """The prompts' pictures by the model as it is."""
        settings = self.settings
        return [
            t2iedit.generate(
                self.model,
                Request(prompt, seeds=(index,), steps=settings.steps, size=settings.size),
            ).image
            for index, prompt in enumerate(settings.prompts)
        ]

    def similarity(self) -> float:
        """Mean structural similarity of the pictures made now to the references."""
        pairs = zip(self._images, self.images(), strict=True)
        return float(np.mean([ssim(reference, image) for reference, image in pairs]))

    def error(self) -> float:
        """Mean squared pixel difference of the pictures made now to the references."""
        pairs = zip(self._images, self.images(), strict=True)
        return float(np.mean([image_error(reference, image) for reference, image in pairs]))

    @torch.no_grad()
    def signal(self) -> float:
        """Mean SQNR in dB of the UNet's outputs now, on the inputs that the references had."""
        unet = self.model.denoiser
        made = [unet(*args, **kwargs)[0] for args, kwargs, _ in self.calls]
        pairs = zip(self.calls, made, strict=True)
        return float(np.mean([sqnr(reference, now) for (_, _, reference), now in pairs]))

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        def keep(module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            self.calls.append((args, kwargs, output[0].clone()))

        with self.model.lock:
            self.model.patch([])
            handle = self.model.denoiser.register_forward_hook(keep, with_kwargs=True)
            try:
                yield
            finally:
                handle.remove()


Table = dict[str, dict[str, dict[int, float]]]
"""`weights` or `activations` to layer to width to score."""


def measure(
    bench: Bench,
    of: Sequence[str],
    *,
    state: Path | None = None,
    decoupled: bool = True,
    on_score: Callable[[int], None] | None = None,
) -> Table:
    """Every layer's score at every width, one layer at a time, weights and inputs apart.

    With `state`, a file, each score is kept and a rerun goes on from there. Without `decoupled` all layers are judged by
    SQNR, which is the paper's ablation.
    """
    ranges = digest_of(sorted(bench.ranges.items()))
    digest = bench.settings.digest(f"{bench.model.fingerprint} {decoupled} {bench.group} {ranges}")
    known = _read(state, digest)
    table: Table = {part: {name: {} for name in bench.layers} for part in of}
    for part in of:
        for name, layer in bench.layers.items():
            for bits in BITS:
                key = f"{part}/{name}/{bits}"
                if key not in known:
                    known[key] = _score(bench, part, layer, bits, decoupled=decoupled)
                    _append(state, digest, key, known[key])
                table[part][name][bits] = known[key]
                if on_score is not None:
                    on_score(1)
    return table


def _score(bench: Bench, part: str, layer: Layer, bits: int, *, decoupled: bool) -> float:
    widths = (bits, WHOLE) if part == "weights" else (WHOLE, bits)
    with bench.quantised({layer.name: bench.scheme(layer.name, *widths)}):
        if decoupled and layer.group == "content":
            return bench.similarity()
        return bench.signal()


def _read(state: Path | None, digest: str) -> dict[str, float]:
    """The scores of an earlier run of the same settings; a last line cut off by a kill is ignored."""
    found: dict[str, float] = {}
    if state is None or not state.exists():
        return found
    for line in state.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            if entry["digest"] == digest:
                found[entry["key"]] = float(entry["score"])
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _append(state: Path | None, digest: str, key: str, score: float) -> None:
    if state is None:
        return
    state.parent.mkdir(parents=True, exist_ok=True)
    with state.open("a", encoding="utf-8") as file:
        # The line break first, so that a line that a kill cut off cannot swallow this one.
        file.write("\n" + json.dumps({"digest": digest, "key": key, "score": score}))
