"""Int8 on x86: oneDNN's linear and convolution, with bias, both scales and the output's dtype inside the kernel."""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int8, Int32, UInt8
from torch import Tensor
from torch.nn import functional

from t2iedit_mixdq.kernels.base import Geometry, Kernel, Weights, as_rows
from t2iedit_mixdq.kernels.native import Remembered
from t2iedit_mixdq.packing import pack, unpack_into
from t2iedit_mixdq.quantizers import Affine

_ops: Any = torch.ops.onednn


def available() -> bool:
    """Whether this CPU multiplies 8-bit integers without overflowing on the way: AVX-512 VNNI or AMX."""
    return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported())


def fits(weights: Weights) -> str:
    """Empty if the kernel takes these weights, else why not."""
    if weights.multipliers is not None and weights.geometry.shape[1] % LANE:
        return f"steps for groups of inputs that are no multiple of {LANE}"
    return ""


LANE = 64
"""oneDNN fills up inputs to a multiple of this."""
PERIOD = 4099
Forms = dict[Geometry, tuple[Tensor, int]]
"""Blocked weights of each form, and how many outputs make a block of them."""
Prepack = Callable[[Tensor], Tensor]
"""oneDNN's own reordering."""


class Scratch:
    """One model's blocked weights that packed layers of equal size unpack into, one after the other.

    `forms` help to make kernels and may be cleared when all are made.
    """

    def __init__(self) -> None:
        self.forms: Forms = {}
        self._held: dict[tuple, tuple[Tensor, Int8[Tensor, " n"]]] = {}

    def like(self, blocked: Tensor, key: tuple) -> tuple[Tensor, Int8[Tensor, " n"]]:
        """The shared blocked weights of this form, and their bytes."""
        if key not in self._held:
            copy = blocked.clone()
            self._held[key] = copy, _bytes(copy)
        return self._held[key]

    @property
    def nbytes(self) -> int:
        return sum(len(content) for _, content in self._held.values())


class OneDnn(Kernel):
    """Weights in oneDNN's blocked order: as they are at 8 bits, packed at 4 and 2 and unpacked for each call.

    The input's zero point goes into the bias: sum_k (q - zero) w = sum_k q w - zero sum_k w, the image being framed by
    zero points first. oneDNN's own correction makes its convolutions take half as long again.
    """

    engine = "oneDNN int8"

    def __init__(self, weights: Weights, tools: Remembered, scratch: Scratch) -> None:
        super().__init__(weights)
        self.bits, self.tools = weights.bits, tools
        self.zeros = torch.zeros(len(self.delta), dtype=torch.int32)
        self.sums = row_sums(as_rows(weights.multiplied()))
        self._linear = self.geometry.kind == "linear"
        blocked = self._blocked(weights.integers, scratch.forms)
        self._whole = blocked if self.bits == 8 else None
        self._packed: Tensor | None = None
        self._groups: Tensor | None = None
        if self.bits != 8:
            self._pack(blocked, scratch)
        if weights.multipliers is not None:
            self._group(weights.multipliers, scratch.forms[self.geometry][1])

        self._prepared: tuple[Affine, Tensor | None, Tensor] | None = None

    def _pack(self, blocked: Tensor, scratch: Scratch) -> None:
        """Keep the blocked bytes packed; the sums that oneDNN keeps behind them do not fit and stay bytes."""
        content = _bytes(blocked)
        body = len(content) - _unpackable(content, self.bits, len(self.delta))
        self._packed, self._tail = pack(content[:body], self.bits), content[body:].clone()
        self._shared, self._room = scratch.like(blocked, (self.geometry, len(content)))

    def _group(self, multipliers: UInt8[Tensor, "out groups"], block: int) -> None:
        """The multipliers in the order of the blocks, and the sums of what is really multiplied with."""
        if not block:
            raise RuntimeError("it orders these weights in a way of its own")
        rows = _padded(len(multipliers), block) - len(multipliers)
        padded = functional.pad(multipliers.to(torch.int8), (0, 0, 0, rows))
        self._groups = padded.unflatten(0, (-1, block)).transpose(1, 2)[:, :, None, :, None]
        sums = functional.pad(self.sums.neg(), (0, rows)).to(torch.int32)
        self._tail = sums.view(torch.int8).clone()

    def _blocked(self, integers: Tensor, forms: Forms) -> Tensor:
        if self._linear:
            return block(integers, forms, self.geometry, lambda w: _ops.qlinear_prepack(w, None))
        steps, form = self.delta, self._form()
        return block(
            integers,
            forms,
            self.geometry,
            lambda w: _ops.qconv_prepack(w, steps, 1.0, 0, *form, None),
        )

    def _form(self) -> tuple:
        """How the convolution moves; its padding is in the image already."""
        shape = self.geometry
        return list(shape.stride), [0, 0], list(shape.dilation), shape.groups

    @property
    def nbytes(self) -> int:
        steps = self.delta.nbytes + self.zeros.nbytes + self.sums.nbytes
        if self._whole is not None:
            return torch.ops.mkldnn._nbytes(self._whole) + steps
        assert self._packed is not None
        groups = 0 if self._groups is None else self._groups.nbytes
        return self._packed.nbytes + self._tail.nbytes + groups + steps

    def __call__(self, x: Tensor, grid: Affine | None, bias: Tensor | None) -> Tensor:
        assert grid is not None
        arguments = (grid.delta, 0, self._weight(), self.delta, self.zeros, self._bias(grid, bias))
        if self._linear:
            q = self.tools.quantise(x, grid).view(-1, x.shape[-1])
            y = _ops.qlinear_pointwise(q, *arguments, *_plain(x.dtype))
            return y.view(*x.shape[:-1], -1)
        q = self.tools.quantise(x, grid, self.geometry.padding)
        q = q.contiguous(memory_format=torch.channels_last)
        return _ops.qconv_pointwise(q, *arguments, *self._form(), *_plain(x.dtype))

    def _bias(self, grid: Affine, bias: Tensor | None) -> Tensor:
        """The bias less what the zero point adds, kept for the next call."""
        if self._prepared is None or self._prepared[0] != grid or self._prepared[1] is not bias:
            shift = self.sums * self.delta * -(grid.delta * grid.zero)
            self._prepared = grid, bias, shift if bias is None else bias + shift
        return self._prepared[2]

    def _weight(self) -> Tensor:
        if self._whole is not None:
            return self._whole
        assert self._packed is not None
        body = len(self._room) - len(self._tail)
        unpack_into(self._packed, self.bits, self._room[:body])
        self._room[body:] = self._tail
        if self._groups is not None:
            blocks, groups, _, block, _ = self._groups.shape
            self._room[:body].view(blocks, groups, -1, block, 4).mul_(self._groups)
        return self._shared


def block(
    integers: Int8[Tensor, "out ..."], forms: Forms, geometry: Geometry, prepack: Prepack
) -> Tensor:
    """A layer's weights in oneDNN's blocked order.

    oneDNN's own reordering takes longer than reading the weights from disk. So it does one of each form, and where
    that turns out as `_arrange` would have it, the rest are arranged by torch into copies of that one.
    """
    if geometry not in forms:
        forms[geometry] = _form(geometry, prepack)
    template, size = forms[geometry]
    if not size:
        return prepack(integers.contiguous())
    blocked = template.clone()
    _arrange(as_rows(integers), size, _bytes(blocked))
    return blocked


def _form(geometry: Geometry, prepack: Prepack) -> tuple[Tensor, int]:
    """Weights of this form as oneDNN orders them, and how many outputs make a block; 0 if they are ordered otherwise."""
    generator = torch.Generator().manual_seed(0)
    # A prime number of bytes over and over: no order but the right one puts them in their places.
    period = torch.randint(-128, 128, (PERIOD,), dtype=torch.int8, generator=generator)
    count = torch.Size(geometry.shape).numel()
    probe = period.repeat(-(-count // PERIOD))[:count].view(geometry.shape)
    template, rows = prepack(probe), as_rows(probe)
    content = _bytes(template)
    trial = torch.empty_like(content)
    for size in (64, 48, 32, 16):
        if _columns(rows.shape, size, len(content)):
            _arrange(rows, size, trial)
            if torch.equal(trial, content):
                return template, size
    return template, 0


def _columns(shape: tuple[int, ...], block: int, length: int) -> int:
    """How many bytes of each row lie in blocks, if so many bytes may be blocks of `block` rows; else 0.

    Linear layers are filled up to 64 inputs and have an int32 behind for each row; convolutions have neither.
    """
    out, inputs = shape
    rows = _padded(out, block)
    if length == rows * (_padded(inputs, LANE) + 4):
        return _padded(inputs, LANE)
    return inputs if length == rows * inputs and inputs % 4 == 0 else 0


def _arrange(integers: Int8[Tensor, "out in"], block: int, into: Int8[Tensor, " n"]) -> None:
    """Blocks of outputs, in each the inputs by fours, in each its outputs; behind them minus the sums over inputs."""
    out, inputs = integers.shape
    rows, columns = _padded(out, block), _columns(integers.shape, block, len(into))
    padded = integers
    if (rows, columns) != (out, inputs):
        padded = functional.pad(integers, (0, columns - inputs, 0, rows - out))
    fours = padded.contiguous().view(torch.int32).unflatten(0, (-1, block)).transpose(1, 2)
    into[: rows * columns].view(torch.int32).view(fours.shape).copy_(fours)
    if len(into) > rows * columns:
        into[rows * columns :].view(torch.int32).copy_(row_sums(padded).neg_())


def row_sums(integers: Int8[Tensor, "out inputs"]) -> Int32[Tensor, " out"]:
    """A product with ones: torch's own sum of bytes takes longer than loading them."""
    ones = torch.ones(integers.shape[1], 8, dtype=torch.int8)
    return torch._int_mm(integers.contiguous(), ones)[:, 0].contiguous()


def _padded(size: int, block: int) -> int:
    return -(-size // block) * block


def _plain(dtype: torch.dtype) -> tuple:
    """Output scale and zero point, its dtype, and no operation behind."""
    return 1.0, 0, dtype, "none", [], ""


def _bytes(blocked: Tensor) -> Int8[Tensor, " n"]:
    """The memory of oneDNN's opaque tensor itself; it must not outlive the tensor."""
    size = torch.ops.mkldnn._nbytes(blocked)
    address = torch.ops.mkldnn.data_ptr(blocked)
    return torch.frombuffer((ctypes.c_int8 * size).from_address(address), dtype=torch.int8)


def _unpackable(content: Int8[Tensor, " n"], bits: int, channels: int) -> int:
    """How many bytes at the end do not hold weights: an int32 for each output channel, in whole blocks of channels."""
    limit = 2 ** (bits - 1)
    for block in (0, 1, 8, 16, 32, 48, 64):
        tail = 0 if block == 0 else 4 * block * -(-channels // block)
        body = content[: len(content) - tail]
        if bool(((body >= -limit) & (body < limit)).all()):
            return tail
    raise AssertionError("oneDNN's blocked weights hold more than the weights and their sums")
