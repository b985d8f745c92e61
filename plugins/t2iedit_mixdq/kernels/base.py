"""What a kernel is: quantised weights that multiply what a layer reads."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from t2iedit_mixdq.quantizers import Affine

Quantise = Callable[[Tensor, Affine], Tensor]
"""Floating point to unsigned integers on a grid."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """A layer's form; `shape` is that of its weight, (out, in) or (out, in, height, width)."""

    kind: Literal["linear", "conv"]
    shape: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
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
        tuple(module.stride),
        tuple(module.padding),
        tuple(module.dilation),
        module.groups,
    )


class Kernel(ABC):
    """One part's weights; called with floating point, it gives floating point of the same dtype."""

    engine: ClassVar[str]
    """What does the arithmetic, for the report."""

    @abstractmethod
    def __call__(self, x: Tensor, grid: Affine | None, bias: Tensor | None) -> Tensor:
        """The layer on `x`, quantised on `grid` if there is one; `bias` is float32."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """What the weights take while the layer does nothing."""
