"""Int8 on x86 by products of our own in C: on AMX faster than oneDNN's, on AVX2 exact where its own would saturate."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torch.nn import functional

from t2iedit_mixdq.kernels.base import Kernel, Weights, as_rows
from t2iedit_mixdq.kernels.native import Panels, Products, Remembered
from t2iedit_mixdq.packing import pack, unpack_into
from t2iedit_mixdq.quantizers import Affine

OUTPUTS = 16
"""Outputs of a panel of weights."""


class Room:
    """Memory that one model's packed layers unpack into, one after the other; as large as the largest needs."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.int8)

    def take(self, size: int) -> Int8[Tensor, " n"]:
        """So many bytes, which the next layer will write over."""
        if len(self._bytes) < size:
            self._bytes = torch.empty(size, dtype=torch.int8)
        return self._bytes[:size]

    @property
    def nbytes(self) -> int:
        return len(self._bytes)


def fits(weights: Weights) -> str:
    """Empty if the kernel takes these weights, else why not."""
    shape = weights.geometry
    if shape.groups != 1 or shape.dilation != (1, 1):
        return "grouped or dilated convolution"
    groups = 1 if weights.multipliers is None else weights.multipliers.shape[1]
    if weights.multipliers is not None and shape.shape[1] // groups % 4:
        return "steps for groups of inputs that are no multiple of 4"
    return ""


class Paneled(Kernel):
    """Weights in panels of 16 outputs, their inputs by fours or twos: as they are at 8 bits, else packed and unpacked for
    each call, by the products themselves if they can. The input's zero point goes into the bias, as in oneDNN's kernel."""

    def __init__(self, weights: Weights, tools: Remembered, products: Products, room: Room) -> None:
        super().__init__(weights)
        self.engine = products.engine
        self.tools, self.products, self.room, self.bits = tools, products, room, weights.bits
        self.whole = self.bits == 8 or (products.unpacks and weights.multipliers is None)
        rows = as_rows(weights.multiplied())
        low, high = (int(value) for value in torch.aminmax(rows))
        self.fitting = products.fitting(max(-low, high, 1))
        self.depth = 4 if self.fitting else 2
        panels = arranged(as_rows(weights.integers), self.depth, products.step).flatten(1)
        self.inputs = panels.shape[1] // OUTPUTS
        self._content = panels if self.bits == 8 else pack(panels, self.bits)
        self._multipliers: Tensor | None = None
        if weights.multipliers is not None:
            more = (0, 0, 0, -len(rows) % OUTPUTS)
            padded = functional.pad(weights.multipliers.to(torch.int8), more)
            # In each panel the groups, then what is the same for all inputs of a group.
            by_panel = padded.unflatten(0, (-1, OUTPUTS)).transpose(1, 2)
            self._multipliers = by_panel[:, :, None, :, None].contiguous()
        self._prepared: tuple[Affine, Tensor | None, Tensor, Tensor] | None = None
        if not self.whole:
            room.take(panels.numel())
        self.sums = self._row_sums(rows.shape[1])

    @property
    def nbytes(self) -> int:
        groups = 0 if self._multipliers is None else self._multipliers.nbytes
        return self._content.nbytes + groups + self.delta.nbytes + self.sums.nbytes

    def __call__(self, x: Tensor, grid: Affine | None, bias: Tensor | None) -> Tensor:
        assert grid is not None
        made = x.dtype if x.dtype in (torch.float32, torch.bfloat16) else torch.float32
        arguments = (self._panels(), *self._constants(grid, bias), made)
        if self.geometry.kind == "linear":
            q = self.tools.quantise(x, grid).reshape(1, -1, 1, x.shape[-1])
            y = self.products.multiply(q, (1, 1), (1, 1), *arguments)
            return y.view(*x.shape[:-1], -1).to(x.dtype)
        q = self.tools.quantise(x, grid, self.geometry.padding).permute(0, 2, 3, 1)
        high, wide = self.geometry.shape[2:]
        y = self.products.multiply(q, (high, wide), self.geometry.stride, *arguments)
        return y.permute(0, 3, 1, 2).to(x.dtype)

    def _constants(self, grid: Affine, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scale and bias of each output in whole panels, the zero point in the bias; kept for the next call."""
        if self._prepared is None or self._prepared[0] != grid or self._prepared[1] is not bias:
            shift = self.sums * self.delta * -(grid.delta * grid.zero)
            shift = shift if bias is None else bias + shift
            more = (0, -len(shift) % OUTPUTS)
            scale = functional.pad(self.delta * grid.delta, more)
            self._prepared = grid, bias, scale, functional.pad(shift, more)
        return self._prepared[2:]

    def _row_sums(self, inputs: int) -> Float[Tensor, " out"]:
        """A product with ones: torch's own sum of bytes takes longer than loading them. Exact, being below 2^24."""
        ones = torch.ones(1, 1, 1, inputs, dtype=torch.uint8)
        filled = len(self.delta) + -len(self.delta) % OUTPUTS
        plain = torch.ones(filled), torch.zeros(filled), torch.float32
        return self.products.multiply(ones, (1, 1), (1, 1), self._panels(), *plain).flatten()

    def _panels(self) -> Panels:
        content, bits = (self._content, self.bits) if self.whole else (self._unpacked(), 8)
        return Panels(content, self.inputs, len(self.delta), bits, self.fitting)

    def _unpacked(self) -> Int8[Tensor, "panels n"]:
        panels = len(self._content)
        room = self.room.take(panels * OUTPUTS * self.inputs).view(panels, -1)
        unpack_into(self._content, self.bits, room)
        if self._multipliers is not None:
            real = room[:, : OUTPUTS * self.geometry.shape[1]]
            groups = self._multipliers.shape[1]
            real.unflatten(1, (groups, -1, OUTPUTS, self.depth)).mul_(self._multipliers)
        return room


def arranged(
    rows: Int8[Tensor, "out inputs"], depth: int, step: int
) -> Int8[Tensor, "panels steps outputs depth"]:
    """Panels of outputs, in each the inputs by `depth`, in each its outputs; filled up with zeros to whole steps."""
    out, inputs = rows.shape
    more = (0, -inputs % max(depth, step), 0, -out % OUTPUTS)
    filled = functional.pad(rows, more) if any(more) else rows
    # Moved as whole numbers of so many bytes, which torch does faster than byte by byte.
    steps = filled.contiguous().view(torch.int32 if depth == 4 else torch.int16)
    panels = steps.unflatten(0, (-1, OUTPUTS)).transpose(1, 2).contiguous()
    return panels.view(torch.int8).unflatten(2, (OUTPUTS, depth))
