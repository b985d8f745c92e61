"""Weights unpacked to floating point for each call: small in memory wherever no integer kernel helps."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torch.nn import functional

from t2iedit_mixdq.kernels.base import Geometry, Kernel
from t2iedit_mixdq.packing import pack, unpack
from t2iedit_mixdq.quantizers import Affine, fake_affine


class Dequantised(Kernel):
    """Packed weights, a floating-point multiplication, inputs rounded to their grid if they have one."""

    engine = "dequantised"

    def __init__(
        self,
        integers: Int8[Tensor, "out ..."],
        bits: int,
        delta: Float[Tensor, " out"],
        geometry: Geometry,
    ) -> None:
        self.bits, self.geometry = bits, geometry
        self.delta = delta.view(-1, *[1] * (integers.ndim - 1))
        flat = integers.flatten()
        self.packed = flat.clone() if bits == 8 else pack(flat, bits)

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.delta.nbytes

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
        shape = self.geometry.shape
        if self.bits == 8:
            integers = self.packed.view(shape)
        else:
            integers = unpack(self.packed, self.bits, torch.Size(shape).numel()).view(shape)
        weight = integers.to(dtype) * self.delta.to(dtype)
        return weight.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else weight
