"""The passes around integer layers, compiled from C for this very CPU; where that cannot be, torch's own.

A quantised layer is so fast that what stands around it decides: torch needs five passes to make integers of an input,
three for a gated GELU, and its attention takes twice as long as the one here. Where oneDNN has no exact products of
8-bit integers, or slow ones, they are compiled too.
"""

import ctypes
import hashlib
import math
import os
import shutil
import subprocess
import tempfile
import weakref
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn
from torch.nn import functional

from t2iedit_mixdq.kernels.base import Pair
from t2iedit_mixdq.quantizers import Affine, quantize_affine

SOURCES = tuple(Path(__file__).with_name(name) for name in ("cpu.c", "avx2.c", "amx.c"))
HEADER = Path(__file__).with_name("tiles.h")
FLAGS = (
    *("-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-shared", "-fPIC"),
    *("-ffinite-math-only", "-fno-signed-zeros", "-fno-math-errno", "-fno-trapping-math"),
)
KEYS = 256
"""Keys in a block of the attention in C."""
WIDEST = 256
"""The widest head that it takes."""


class Passes:
    """Torch's own passes, on any device and in any dtype."""

    attends = False
    """Whether `attention` is faster than torch's."""

    def quantise(
        self, x: Float[Tensor, "..."], grid: Affine, padding: tuple[int, int] = (0, 0)
    ) -> UInt8[Tensor, "..."]:
        """q = clamp(round(x / delta) + zero, 0, 2^bits - 1); an image is framed by `padding` zero points, high and wide."""
        q = quantize_affine(x, grid)
        if not any(padding):
            return q
        high, wide = padding
        return functional.pad(q, (wide, wide, high, high), value=grid.zero)

    def gated_gelu(self, x: Float[Tensor, "... two_n"]) -> Float[Tensor, "... n"]:
        """The first half of each row times the GELU of its second half."""
        value, gate = x.chunk(2, dim=-1)
        return value * functional.gelu(gate)

    def group_norm(
        self, x: Float[Tensor, "n c h w"], norm: nn.GroupNorm, *, activated: bool
    ) -> Float[Tensor, "n c h w"]:
        """The norm of images, and the SiLU of it if it is `activated`."""
        y = functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return functional.silu(y) if activated else y

    def attention(
        self,
        q: Float[Tensor, "batch queries width"],
        k: Float[Tensor, "batch tokens width"],
        v: Float[Tensor, "batch tokens width"],
        heads: int,
        scale: float,
    ) -> Float[Tensor, "batch queries width"]:
        """softmax(scale q k') v of each head, the heads side by side as the projections leave them."""
        query, key, value = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        mixed = functional.scaled_dot_product_attention(query, key, value, scale=scale)
        return mixed.transpose(1, 2).flatten(2)


class Native(Passes):
    """The same in one pass each, for float32 and bfloat16; all but `quantise` for bfloat16 alone."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._attention = library.has_attention()
        self.attends = bool(self._attention)

    def quantise(self, x: Tensor, grid: Affine, padding: tuple[int, int] = (0, 0)) -> Tensor:
        if x.dtype not in (torch.bfloat16, torch.float32):
            return super().quantise(x, grid, padding)
        # Images lie with their channels last, as oneDNN reads them.
        image = x.ndim == 4
        lying, step = _in_runs(x.permute(0, 2, 3, 1) if image else x.reshape(1, -1, 1, x.shape[-1]))
        (images, height, width, channels), (above, wide) = lying.shape, padding
        framed = images, height + 2 * above, width + 2 * wide, channels
        q = torch.empty(framed, dtype=torch.uint8)
        row = width * channels
        runs = (1, row, row) if step == channels else (width, channels, step)
        sizes = (images, height, *runs, above, wide * channels)
        half = int(x.dtype == torch.bfloat16)
        numbers = ctypes.c_float(1 / grid.delta), grid.zero, grid.levels - 1, _threads()
        self._library.quantise(_address(lying), half, _address(q), *map(_long, sizes), *numbers)
        return q.permute(0, 3, 1, 2) if image else q.view(x.shape)

    def gated_gelu(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16:
            return super().gated_gelu(x)
        x = x.contiguous()
        y = torch.empty(*x.shape[:-1], x.shape[-1] // 2, dtype=x.dtype)
        sizes = _long(y.numel() // y.shape[-1]), _long(y.shape[-1])
        self._library.gated_gelu(_address(x), _address(y), *sizes, _threads())
        return y

    def group_norm(self, x: Tensor, norm: nn.GroupNorm, *, activated: bool) -> Tensor:
        half = all(tensor.dtype == torch.bfloat16 for tensor in (x, norm.weight, norm.bias))
        if not self.attends or not half:
            return super().group_norm(x, norm, activated=activated)
        lying = x.permute(0, 2, 3, 1).contiguous()
        y = torch.empty_like(lying)
        sizes = map(_long, (len(lying), lying[0, ..., 0].numel(), lying.shape[3], norm.num_groups))
        tensors = (_address(tensor) for tensor in (lying, norm.weight, norm.bias, y))
        epsilon = ctypes.c_float(norm.eps)
        self._library.group_norm(*tensors, *sizes, epsilon, int(activated), _threads())
        return y.permute(0, 3, 1, 2)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
        (batch, queries, width), tokens = q.shape, k.shape[1]
        dim = width // heads
        if not self._attention or q.dtype != torch.bfloat16 or dim % 2 or dim > WIDEST:
            return super().attention(q, k, v, heads, scale)
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        wide, deep, padded = _up(dim, 32), _up(dim, 16), _up(tokens, KEYS)
        room = torch.empty(batch * heads * padded * (wide + deep), dtype=q.dtype)
        out = torch.empty_like(q)
        tensors = (_address(x) for x in (q, k, v, out, room))
        sizes = map(_long, (batch, queries, tokens, heads, dim))
        log2 = ctypes.c_float(scale * math.log2(math.e))
        self._library.attention(*tensors, *sizes, log2, self._attention - 1, _threads())
        return out


@dataclass(frozen=True, slots=True)
class Panels:
    """Weights as the products want them: `inputs` are filled up to whole steps, outputs to whole panels."""

    content: Int8[Tensor, "panels n"] | UInt8[Tensor, "panels bytes"]
    inputs: int
    outputs: int
    bits: int
    """Less than 8 if each panel is packed."""
    fitting: int
    """Pairs of products that sixteen bits hold together; 0 if not even one."""


class Products:
    """Exact products of 8-bit integers in C."""

    engine: ClassVar[str]
    step: ClassVar[int]
    """Inputs are filled up to whole multiples of this."""
    unpacks: ClassVar[bool]
    """Whether weights may be packed."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def fitting(self, largest: int) -> int:
        """The `Panels.fitting` of weights of at most this magnitude."""
        raise NotImplementedError

    def multiply(
        self,
        q: UInt8[Tensor, "images height width channels"],
        window: Pair,
        stride: Pair,
        weights: Panels,
        scale: Float[Tensor, " filled"],
        bias: Float[Tensor, " filled"],
        dtype: torch.dtype,
    ) -> Float[Tensor, "images high wide out"]:
        """sum * scale + bias of each patch of framed images, in float32 or bfloat16; `scale` and `bias` fill whole panels."""
        q = q.contiguous()
        images, height, width, channels = q.shape
        high, wide = (
            (n - w) // s + 1 for n, w, s in zip(q.shape[1:3], window, stride, strict=True)
        )
        y = torch.empty(images, high, wide, weights.outputs, dtype=dtype)
        half = int(dtype == torch.bfloat16)
        sizes = (images, height, width, channels, high, wide, *window, *stride)
        self._multiply(
            _address(q),
            _address(weights.content),
            _long(weights.bits if self.unpacks else weights.fitting),
            _address(scale),
            _address(bias),
            _address(y),
            half,
            *map(_long, (*sizes, weights.inputs, weights.outputs)),
            _threads(),
        )
        return y

    @property
    def _multiply(self) -> Any:
        raise NotImplementedError


class Avx2(Products):
    """Where there is nothing better: pairs of products are added in sixteen bits."""

    engine, step, unpacks = "AVX2 int8", 2, False

    def fitting(self, largest: int) -> int:
        return 32767 // (2 * 255 * largest)

    @property
    def _multiply(self) -> Any:
        return self._library.multiply_avx2


class Amx(Products):
    """By matrix tiles, which add in 32 bits: all weights are alike."""

    engine, step, unpacks = "AMX int8", 64, True

    def fitting(self, largest: int) -> int:
        return 1

    @property
    def _multiply(self) -> Any:
        return self._library.multiply_amx


@dataclass
class Remembered:
    """The last tensor that was quantised: queries, keys and values read the same one, on the same grid."""

    passes: Passes
    _asked: Any = None
    _answer: Tensor | None = None

    def quantise(self, x: Tensor, grid: Affine, padding: tuple[int, int] = (0, 0)) -> Tensor:
        """As that of the passes."""
        version = 0 if x.is_inference() else x._version
        if self._asked is not None:
            reference, *asked = self._asked
            if reference() is x and asked == [version, grid, padding]:
                assert self._answer is not None
                return self._answer
        self._answer = self.passes.quantise(x, grid, padding)
        self._asked = weakref.ref(x), version, grid, padding
        return self._answer


def passes(*, native: bool) -> tuple[Passes, str]:
    """The passes of this machine, and the reason why they are torch's where C was wanted and cannot be."""
    if not native:
        return Passes(), ""
    library, reason = _library()
    return (Passes() if library is None else Native(library)), reason


def products() -> list[Products]:
    """Those of this machine, the best first; none where they cannot be compiled."""
    library, _ = _library()
    if library is None:
        return []
    tiles: list[Products] = [Amx(library)] if library.has_tiles() else []
    return [*tiles, Avx2(library)] if library.has_avx2() else tiles


@cache
def _library() -> tuple[Any, str]:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc"))), None)
    if compiler is None:
        return None, "no C compiler, so inputs are quantised in several passes"
    try:
        return ctypes.CDLL(str(_compiled(compiler))), ""
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        reason = " ".join(str(told).split())[:120]
        return None, f"{compiler} failed ({reason}), so inputs are quantised in several passes"


def _compiled(compiler: str) -> Path:
    """The library in the user's cache, made if it is not there for this source and this CPU."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    target = [compiler, "-march=native", "-Q", "--help=target"]
    cpu = subprocess.run(target, capture_output=True, text=True).stdout
    sources = [source.read_text(encoding="utf-8") for source in (*SOURCES, HEADER)]
    parts = (*sources, version.stdout, cpu, *FLAGS)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t2iedit"
    library = root / f"mixdq-{digest}.so"
    if not library.exists():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as scratch:
            made = Path(scratch) / library.name
            command = [compiler, *FLAGS, *map(str, SOURCES), "-o", str(made), "-lm"]
            subprocess.run(command, capture_output=True, text=True, check=True)
            made.replace(library)
    return library


def _in_runs(x: Float[Tensor, "n h w c"]) -> tuple[Float[Tensor, "n h w c"], int]:
    """The image, copied unless its pixels are equally far apart, as those of some of its channels are; and how far."""
    _, height, width, channels = x.shape
    step = x.stride(2)
    if x.stride() == (height * width * step, width * step, step, 1):
        return x, step
    return x.contiguous(), channels


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


_long = ctypes.c_long


def _threads() -> int:
    return torch.get_num_threads()


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
