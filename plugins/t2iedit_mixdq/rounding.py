"""Learned rounding: FlexRound (arXiv 2306.00317), layer by layer, on a sample of what the layers read.

    W^ = s1 * clamp(round(W / (s1 * S2 * s3)))       s1 the step, S2 a factor for each weight, s3 one for each output

All three are positive and learned by making the layer's output on quantised inputs that of the float layer on whole
ones. Our choices: factors are learned as logarithms, from rounding to the nearest on; s1 is one step for each output
channel, as everywhere here; s4, the paper's factor for each input channel of a convolution, is left to S2; and a layer
whose error does not fall keeps the nearest.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from t2iedit import Model
from t2iedit_mixdq.bos import BosRows
from t2iedit_mixdq.calibration import Settings, denoise
from t2iedit_mixdq.kernels.base import Geometry, geometry_of
from t2iedit_mixdq.quantizers import fake_affine, top
from t2iedit_mixdq.schemes import WHOLE, Scheme, float_weight, integer_weight, split_channels
from t2iedit_mixdq.simulation import simulate
from t2iedit_mixdq.wiring import Layer, find_layer, survey

ROWS = 1024
"""Inputs of a layer that its rounding is learned from: rows of a linear layer, patches of a convolution."""
AT_ONCE = 64
"""Of these, how many one forward pass of the layer gives at most, so that the sample spreads over prompts and steps."""
STEPS, BATCH, RATE = 300, 256, 5e-3
MEMORY = 2**29
"""Bytes of sampled inputs that may be held at once; more layers take another pass over the prompts."""


@dataclass
class Sample:
    """Some of what a layer read, evenly from all that it read (Vitter's reservoir)."""

    geometry: Geometry
    split: int
    rows: Tensor | None = None
    _seen: int = 0
    _random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def add(self, x: Tensor) -> None:
        """What one forward pass read."""
        rows = self._some(x)
        if self.rows is None:
            self.rows = rows.new_empty(0, rows.shape[1])
        room = ROWS - len(self.rows)
        self.rows = torch.cat([self.rows, rows[:room]])
        self._seen += min(room, len(rows))
        for row in rows[room:]:
            self._seen += 1
            place = int(torch.randint(self._seen, (), generator=self._random))
            if place < ROWS:
                self.rows[place] = row

    def _some(self, x: Tensor) -> Float[Tensor, "rows inputs"]:
        if self.geometry.kind == "linear":
            rows = x.reshape(-1, x.shape[-1])
        else:
            rows = patches(x, self.geometry)
        order = torch.randperm(len(rows), generator=self._random)[:AT_ONCE]
        return rows[order.to(rows.device)].float()


def patches(
    x: Float[Tensor, "batch channels height width"], geometry: Geometry
) -> Float[Tensor, "rows inputs"]:
    """What each output pixel of a convolution reads, in the order of a flattened weight."""
    window = tuple(geometry.shape[2:])
    columns = functional.unfold(
        x, window, geometry.dilation, padding=geometry.padding, stride=geometry.stride
    )
    return columns.transpose(1, 2).flatten(0, 1)


def learn(
    weight: Float[Tensor, "out ..."],
    scheme: Scheme,
    layer: Layer,
    rows: Float[Tensor, "rows inputs"],
    *,
    steps: int = STEPS,
) -> Scheme:
    """The scheme with the integers and steps that make the layer's output nearest to the whole one on these inputs."""
    flat = weight.float().flatten(1)
    target, read = rows @ flat.T, through_grids(rows, scheme, weight, layer)
    step = steps_of(scheme, weight, layer.split)
    free = [torch.zeros_like(step[:, :1]), torch.zeros_like(flat), torch.zeros_like(step[:, :1])]
    for tensor in free:
        tensor.requires_grad_()
    optimiser = torch.optim.Adam(free, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    random = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for _ in range(steps):
            some = torch.randint(len(rows), (min(BATCH, len(rows)),), generator=random)
            some = some.to(rows.device)
            made, _ = flexround(flat, step, *free, bits=scheme.weight_bits)
            loss = (read[some] @ made.T - target[some]).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    s1, s2, s3 = (tensor.detach() for tensor in free)
    made, integers = flexround(flat, step, s1, s2, s3, bits=scheme.weight_bits)
    nearest = float_weight(integer_weight(weight, scheme, layer.split), scheme, layer.split)
    before = (read @ nearest.flatten(1).T - target).square().mean()
    if not (read @ made.T - target).square().mean() < before:
        return scheme
    assert scheme.delta is not None
    delta = (scheme.delta.to(s1.device) * s1.exp()[:, 0]).contiguous()
    return replace(scheme, delta=delta, integers=integers.to(torch.int8).view(weight.shape))


def flexround(
    weight: Float[Tensor, "out inputs"],
    step: Float[Tensor, "out inputs"],
    s1: Float[Tensor, "out one"],
    s2: Float[Tensor, "out inputs"],
    s3: Float[Tensor, "out one"],
    *,
    bits: int,
) -> tuple[Float[Tensor, "out inputs"], Float[Tensor, "out inputs"]]:
    """FlexRound's weights and their integers; the three factors are logarithms, rounding passes gradients through."""
    grid = step * s1.exp()
    divided = weight / (grid * s2.exp() * s3.exp())
    rounded = divided + (divided.round() - divided).detach()
    integers = rounded.clamp(-top(bits) - 1, top(bits))
    return grid * integers, integers


def steps_of(scheme: Scheme, weight: Tensor, split: int) -> Float[Tensor, "out inputs"]:
    """Every weight's step."""
    assert scheme.delta is not None
    delta = scheme.delta.to(weight.device)
    if scheme.multipliers is not None:
        by_group = delta[0][:, None] * scheme.multipliers.to(weight.device)
        size = weight.shape[1] // by_group.shape[1]
        return by_group.repeat_interleave(size, dim=1)
    parts = zip(split_channels(weight.flatten(2) if split else weight, split), delta, strict=True)
    widened = [d[:, None].expand(-1, part[0].numel()) for part, d in parts]
    return torch.cat(widened, dim=1).contiguous()


def through_grids(
    rows: Float[Tensor, "rows inputs"], scheme: Scheme, weight: Tensor, layer: Layer
) -> Float[Tensor, "rows inputs"]:
    """The inputs as the quantised layer reads them."""
    if not scheme.grids:
        return rows
    area = weight[0, 0].numel()
    parts = zip(split_channels(rows, layer.split * area), scheme.grids, strict=True)
    return torch.cat([fake_affine(part, grid) for part, grid in parts], dim=1)


@dataclass(frozen=True, slots=True)
class Learned:
    """The layers' learned schemes, each in a file of its own: called with a layer's name and its scheme of the nearest."""

    folder: Path
    digest: str

    def __call__(self, name: str, scheme: Scheme) -> Scheme:
        found = self.load(name)
        if found is None or scheme.delta is None or "integers" not in found:
            return scheme
        return replace(scheme, delta=found["delta"], integers=found["integers"])

    def load(self, name: str) -> dict[str, Tensor] | None:
        """None if this layer has not been learned for these settings yet."""
        try:
            with safe_open(self._file(name), "pt") as file:
                if (file.metadata() or {}).get("digest") != self.digest:
                    return None
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None

    def keep(self, name: str, scheme: Scheme) -> None:
        """What was learned; only the step where the nearest was as good."""
        assert scheme.delta is not None
        tensors = {"delta": scheme.delta.cpu()}
        if scheme.integers is not None:
            tensors["integers"] = scheme.integers.cpu().contiguous()
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / "layer.part"
        save_file(tensors, part, metadata={"digest": self.digest})
        part.replace(self._file(name))

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def learn_all(
    model: Model,
    settings: Settings,
    schemes: Mapping[str, Scheme],
    learned: Learned,
    *,
    on_layer: Callable[[int], None] | None = None,
) -> None:
    """Learn the rounding of every layer with quantised weights; layers that `learned` has are taken over."""
    unet: Any = model.denoiser
    layers = survey(unet)
    wanted = [
        name
        for name, scheme in schemes.items()
        if scheme.delta is not None and geometry_of(find_layer(unet, name)) is not None
    ]
    open_ones = [name for name in wanted if learned.load(name) is None]
    if on_layer is not None:
        on_layer(len(wanted) - len(open_ones))
    for names in batches(open_ones, layers, unet):
        samples = sample(model, settings, layers, names)
        for name in names:
            rows = samples.pop(name).rows
            assert rows is not None
            weight = find_layer(unet, name).weight
            learned.keep(name, learn(weight, schemes[name], layers[name], rows.to(weight.device)))
            if on_layer is not None:
                on_layer(1)


def batches(
    names: list[str], layers: Mapping[str, Layer], unet: Any, memory: int = MEMORY
) -> Iterator[list[str]]:
    """The layers in as many goes as their samples need."""
    held, size = [], 0
    for name in names:
        width = find_layer(unet, name).weight[0].numel() * 4 * ROWS
        if held and size + width > memory:
            yield held
            held, size = [], 0
        held.append(name)
        size += width
    if held:
        yield held


@torch.no_grad()
def sample(
    model: Model, settings: Settings, layers: Mapping[str, Layer], names: list[str]
) -> dict[str, Sample]:
    """What these layers read while the model paints the calibration prompts; BOS rows left out."""
    unet: Any = model.denoiser
    samples = {}
    for name in names:
        geometry = geometry_of(find_layer(unet, name))
        assert geometry is not None
        samples[name] = Sample(geometry, layers[name].split)
    whole = {name: Scheme(WHOLE, WHOLE) for name in names}
    bos = BosRows() if settings.bos_aware else None

    def look(layer: Layer, parts: list[Tensor]) -> None:
        samples[layer.name].add(torch.cat(parts, dim=1) if layer.split else parts[0])

    with model.lock:
        model.patch([])
        undo = simulate(unet, layers, whole, bos=bos, observer=look)
        try:
            for index in range(len(settings.prompts)):
                denoise(model, settings, index)
        finally:
            undo()
    return samples
