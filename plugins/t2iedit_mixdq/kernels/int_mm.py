"""Int8 by `torch._int_mm`: CUDA's tensor cores for linear layers, and for convolutions as one multiplication of patches.

It runs on CPUs too, slower than oneDNN there, which is how its arithmetic is tested without a GPU.
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Int8, Int32
from torch import Tensor
from torch.nn import functional

from t2iedit_mixdq.kernels.base import Geometry, Kernel, Store, Weights
from t2iedit_mixdq.quantizers import Affine

SHIFT = 128
"""From unsigned to signed integers."""
ROWS = 32
"""CUDA's kernel wants more than 16 rows; fewer are padded."""


def fits(geometry: Geometry) -> str:
    """Empty if the kernel takes this form, else why not: CUDA wants multiples of 8."""
    out, inputs = geometry.shape[0], torch.Size(geometry.shape[1:]).numel()
    if geometry.groups != 1:
        return "grouped convolution"
    if out % 8 or inputs % 8:
        return f"{inputs} inputs and {out} outputs are not multiples of 8"
    return ""


class IntMm(Kernel):
    """out = (acc - correction) * scale + bias, with correction[n] = zero * sum_k W[n, k]."""

    engine = "int_mm"

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.sums = weights.multiplied().flatten(1).sum(1, dtype=torch.int32)
        rows = weights.integers
        if rows.ndim == 4:
            # Patches are (height, width, channel), as channels_last inputs lie in memory.
            rows = rows.permute(0, 2, 3, 1).flatten(1)
        self.store = Store(rows, weights.bits, weights.multipliers)
        self._prepared: tuple[Affine, tuple[Tensor, Tensor, Tensor]] | None = None

    @property
    def nbytes(self) -> int:
        return self.store.nbytes + self.delta.nbytes + self.sums.nbytes

    def __call__(self, x: Tensor, grid: Affine | None, bias: Tensor | None) -> Tensor:
        assert grid is not None
        numbers, correction, scale = self._constants(grid)
        quantise, finish = _steps(x.is_cuda)
        if self.geometry.kind == "linear":
            q = quantise(x.reshape(-1, x.shape[-1]), numbers)
            y = finish(self._products(q), correction, scale, bias, x.dtype)
            return y.view(*x.shape[:-1], -1)
        q = quantise(x.permute(0, 2, 3, 1), numbers)
        patches, height, width = unfold(q, self.geometry, grid.zero - SHIFT)
        y = finish(self._products(patches), correction, scale, bias, x.dtype)
        return y.view(len(x), height, width, -1).permute(0, 3, 1, 2)

    def _constants(self, grid: Affine) -> tuple[Tensor, Tensor, Tensor]:
        """What a grid makes of the steps and sums, kept on the device for the next call."""
        if self._prepared is None or self._prepared[0] != grid:
            numbers = [1 / grid.delta, grid.zero - SHIFT, grid.levels - 1 - SHIFT]
            kept = torch.tensor(numbers, device=self.delta.device)
            correction = self.sums * (grid.zero - SHIFT)
            self._prepared = grid, (kept, correction, self.delta * grid.delta)
        return self._prepared[1]

    def _products(self, q: Int8[Tensor, "rows in"]) -> Int32[Tensor, "rows out"]:
        padded = functional.pad(q, (0, 0, 0, max(0, ROWS - len(q))))
        return torch._int_mm(padded.contiguous(), self.store.integers().t())[: len(q)]


def _quantise(x: Tensor, numbers: Tensor) -> Tensor:
    """The grid's integers less 128; `numbers` are one over the step, the zero point and the top, less 128 too."""
    q = torch.round(x.float() * numbers[0]) + numbers[1]
    return torch.minimum(q.clamp(min=-SHIFT), numbers[2]).to(torch.int8)


def _finish(
    products: Tensor, correction: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    y = (products - correction).float() * scale
    return (y if bias is None else y + bias).to(dtype)


@cache
def _steps(compiled: bool) -> tuple[Any, Any]:
    """Before and after the multiplication; on CUDA each compiled into one pass."""
    if not compiled:
        return _quantise, _finish
    return torch.compile(_quantise, dynamic=True), torch.compile(_finish, dynamic=True)


def unfold(
    q: Int8[Tensor, "batch height width channels"], geometry: Geometry, zero: int
) -> tuple[Int8[Tensor, "rows patch"], int, int]:
    """The patches a convolution sees, and the height and width it makes; outside lies real zero, which is `zero` here."""
    (down, right), (stride_y, stride_x) = geometry.padding, geometry.stride
    q = functional.pad(q, (0, 0, right, right, down, down), value=zero)
    rows, columns = geometry.shape[2:]
    reach_y, reach_x = geometry.dilation[0] * (rows - 1), geometry.dilation[1] * (columns - 1)
    height = (q.shape[1] - reach_y - 1) // stride_y + 1
    width = (q.shape[2] - reach_x - 1) // stride_x + 1
    b, y, x, c = q.stride()
    windows = q.as_strided(
        (len(q), height, width, rows, columns, q.shape[3]),
        (b, y * stride_y, x * stride_x, y * geometry.dilation[0], x * geometry.dilation[1], c),
    )
    return windows.reshape(len(q) * height * width, -1), height, width
