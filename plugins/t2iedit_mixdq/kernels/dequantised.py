"""Weights unpacked to floating point for each call: small in memory wherever no integer kernel helps."""

import torch
from torch import Tensor
from torch.nn import functional

from t2iedit_mixdq.kernels.base import Kernel, Store, Weights
from t2iedit_mixdq.quantizers import Affine, fake_affine


class Dequantised(Kernel):
    """Packed weights, a floating-point multiplication, inputs rounded to their grid if they have one."""

    engine = "dequantised"

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.store = Store(weights.integers, weights.bits, weights.multipliers)
        self._steps = self.delta.view(-1, *[1] * (weights.integers.ndim - 1))

    @property
    def nbytes(self) -> int:
        return self.store.nbytes + self.delta.nbytes

    def __call__(self, x: Tensor, grid: Affine | None, bias: Tensor | None) -> Tensor:
        rounded = x if grid is None else fake_affine(x, grid)
        bias = None if bias is None else bias.to(x.dtype)
        weight = self._weight(x.dtype)
        if self.geometry.kind == "linear":
            return functional.linear(rounded, weight, bias)
        shape = self.geometry
        return functional.conv2d(
            rounded, weight, bias, shape.stride, shape.padding, shape.dilation, shape.groups
        )

    def _weight(self, dtype: torch.dtype) -> Tensor:
        weight = self.store.integers().to(dtype) * self._steps.to(dtype)
        return weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight
