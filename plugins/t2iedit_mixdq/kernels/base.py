"""What a kernel is: quantised weights that multiply what a layer reads."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from t2iedit_mixdq.packing import pack, unpack
from t2iedit_mixdq.quantizers import Affine, multiplied

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Geometry:
    """A layer's form; `shape` is that of its weight, (out, in) or (out, in, height, width)."""

    kind: Literal["linear", "conv"]
    shape: tuple[int, ...]
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def with_inputs(self, channels: int) -> "Geometry":
        """The same for fewer input channels."""
        return Geometry(
            self.kind,
            (self.shape[0], channels, *self.shape[2:]),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )


def geometry_of(module: nn.Module) -> Geometry | None:
    """A layer's form; None if no kernel here can have it."""
    if isinstance(module, nn.Linear):
        return Geometry("linear", tuple(module.weight.shape))
    assert isinstance(module, nn.Conv2d)
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    return Geometry(
        "conv",
        tuple(module.weight.shape),
        _pair(module.stride),
        _pair(module.padding),
        _pair(module.dilation),
        module.groups,
    )


def _pair(sizes: tuple[int, ...]) -> Pair:
    high, wide = sizes
    return high, wide


@dataclass(frozen=True, slots=True)
class Weights:
    """One part of a layer as integers q of `bits` bits: w = q * delta, or q * multiplier * delta with steps for groups."""

    integers: Int8[Tensor, "out ..."]
    bits: int
    delta: Float[Tensor, " out"]
    geometry: Geometry
    multipliers: UInt8[Tensor, "out groups"] | None = None

    def multiplied(self) -> Int8[Tensor, "out ..."]:
        """The integers that are multiplied with: they fit eight bits with the multipliers in them."""
        return multiplied(self.integers, self.multipliers)


def lying_last(flat: Int8[Tensor, " n"], shape: tuple[int, ...]) -> Int8[Tensor, "out ..."]:
    """Weights of this shape, (out, in, height, width) if they have four axes, that lie in memory with channels last."""
    if len(shape) != 4:
        return flat.view(shape)
    out, inputs, *window = shape
    return flat.view(out, *window, inputs).permute(0, 3, 1, 2)


def as_rows(integers: Int8[Tensor, "out ..."]) -> Int8[Tensor, "out inputs"]:
    """A row for each output; those of a convolution with its channels last."""
    return integers.permute(0, 2, 3, 1).flatten(1) if integers.ndim == 4 else integers


class Store:
    """Integers in as few bytes as their bits ask for, those of convolutions with their channels last."""

    def __init__(
        self, integers: Int8[Tensor, "out ..."], bits: int, multipliers: Tensor | None = None
    ) -> None:
        self.shape, self.bits, self.multipliers = integers.shape, bits, multipliers
        lying = integers.permute(0, 2, 3, 1) if integers.ndim == 4 else integers
        flat = lying.contiguous().flatten()
        self.content = flat.clone() if bits == 8 else pack(flat, bits)

    def integers(self) -> Int8[Tensor, "out ..."]:
        """What is multiplied with, unpacked for this call."""
        flat = self.content
        if self.bits != 8:
            flat = unpack(flat, self.bits, self.shape.numel())
        return multiplied(lying_last(flat, self.shape), self.multipliers)

    @property
    def nbytes(self) -> int:
        return self.content.nbytes + (0 if self.multipliers is None else self.multipliers.nbytes)


class Kernel(ABC):
    """One part's weights; called with floating point, it gives floating point of the same dtype."""

    engine: str
    """What does the arithmetic, for the report."""

    def __init__(self, weights: Weights) -> None:
        self.geometry, self.delta = weights.geometry, weights.delta.contiguous()

    @abstractmethod
    def __call__(self, x: Tensor, grid: Affine | None, bias: Tensor | None) -> Tensor:
        """The layer on `x`, quantised on `grid` if there is one; `bias` is float32."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """What the weights take while the layer does nothing."""
