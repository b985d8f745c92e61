"""Quantised layers that compute in integers, and keep nothing but packed weights."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from t2iedit_mixdq.bos import BosRows, BosTable, put_rows
from t2iedit_mixdq.kernels import onednn, panels
from t2iedit_mixdq.kernels.base import Geometry, Kernel, Weights
from t2iedit_mixdq.kernels.dequantised import Dequantised
from t2iedit_mixdq.kernels.int_mm import IntMm, fits
from t2iedit_mixdq.kernels.native import Amx, Products, Remembered, passes, products
from t2iedit_mixdq.quantizers import Affine, affine, fake_affine
from t2iedit_mixdq.schemes import Scheme, split_channels
from t2iedit_mixdq.wiring import Layer

NO_PRODUCTS = "there are no integer products for this CPU, so weights are packed and the arithmetic stays in floating point"


@dataclass
class Workshop:
    """What the kernels of one UNet share, and where they are chosen; `notes` are said once, to the user."""

    device: torch.device
    passes: Remembered
    products: Products | None = None
    """The integer products of CPUs on which oneDNN's are slow or wrong."""
    scratch: onednn.Scratch = field(default_factory=onednn.Scratch)
    room: panels.Room = field(default_factory=panels.Room)
    notes: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """What layers unpack into."""
        return self.scratch.nbytes + self.room.nbytes

    def kernel(self, weights: Weights, *, whole_inputs: bool) -> tuple[Kernel, str]:
        """The kernel for one part of a layer, and why it is not an integer one if it is not."""
        reason = self._obstacle(weights, whole_inputs)
        if reason:
            return Dequantised(weights), reason
        if self.device.type == "cuda":
            return IntMm(weights), ""
        if self.products is not None:
            return panels.Paneled(weights, self.passes, self.products, self.room), ""
        try:
            return onednn.OneDnn(weights, self.passes, self.scratch), ""
        except RuntimeError as error:
            refusal = f"oneDNN refuses it ({str(error).splitlines()[0][:80]})"
            return Dequantised(weights), refusal

    def _obstacle(self, weights: Weights, whole_inputs: bool) -> str:
        if whole_inputs:
            return "its inputs stay in 16 bits"
        if self.device.type == "cuda":
            return fits(weights.geometry)
        if self.device.type != "cpu":
            return f"there are no integer kernels for {self.device.type}"
        if self.products is not None:
            return panels.fits(weights)
        if onednn.available():
            return onednn.fits(weights)
        if NO_PRODUCTS not in self.notes:
            self.notes.append(NO_PRODUCTS)
        return "no integer products for this CPU"


def workshop(device: torch.device, *, large: bool) -> Workshop:
    """For a UNet on this device. Small ones have passes of their own in C only where they have products too."""
    if device.type != "cpu":
        return Workshop(device, Remembered(passes(native=False)[0]))
    # AVX2's products are for CPUs on which oneDNN's saturate.
    made = [p for p in products() if isinstance(p, Amx) or not onednn.available()]
    chosen, reason = passes(native=large or bool(made) or not onednn.available())
    return Workshop(
        device, Remembered(chosen), made[0] if made else None, notes=[reason] if reason else []
    )


def one_at_a_time(network: nn.Module) -> None:
    """Let threads wait for each other: on a CPU the layers of one network write into memory that they share."""
    lock, forward = threading.RLock(), network.forward

    @wraps(forward)
    def alone(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return forward(*args, **kwargs)

    network.forward = alone


class Executed(nn.Module):
    """A layer on packed weights. BOS rows of text layers come from a table made with the original weights."""

    def __init__(
        self,
        layer: Layer,
        scheme: Scheme,
        kernels: Sequence[Kernel],
        *,
        bias: Float[Tensor, " out"] | None,
        table: BosTable | None = None,
        bos: BosRows | None = None,
        reason: str = "",
    ) -> None:
        super().__init__()
        self.layer, self.scheme, self.kernels, self.reason = layer, scheme, tuple(kernels), reason
        self.table, self.bos, self.bias = table, bos, bias
        assert scheme.delta is not None
        # As integers, so that no cast of the whole UNet to half precision can touch the steps.
        self.register_buffer("steps", scheme.delta.contiguous().view(torch.int32))

    @property
    def engine(self) -> str:
        return self.kernels[0].engine

    @property
    def nbytes(self) -> int:
        """What the layer takes while it does nothing."""
        extra = [self.bias] + ([] if self.table is None else [self.table.outputs])
        tensors = sum(tensor.nbytes for tensor in extra if tensor is not None)
        return tensors + sum(kernel.nbytes for kernel in self.kernels)

    def forward(self, x: Tensor) -> Tensor:
        y = self._multiplied(x, self.bias)
        if self.table is None or self.bos is None:
            return y
        rows = self.bos.among(x.shape[1])
        return put_rows(y, rows, self._bos_rows(x, rows, self.table).to(y.dtype))

    def _multiplied(self, x: Tensor, bias: Tensor | None) -> Tensor:
        grids = self.scheme.grids or (None,) * len(self.kernels)
        parts = zip(self.kernels, split_channels(x, self.layer.split), grids, strict=True)
        outputs = [
            kernel(part, grid, bias if index == 0 else None)
            for index, (kernel, part, grid) in enumerate(parts)
        ]
        return outputs[0] if len(outputs) == 1 else outputs[0].add_(outputs[1])

    def _bos_rows(self, x: Tensor, rows: Sequence[int], table: BosTable) -> Tensor:
        known, residual = table.nearest(x, rows)
        if residual is not None:
            known = known + self._precise(residual)
        known = known if self.bias is None else known + self.bias.to(known.dtype)
        return known.unflatten(0, (len(x), len(rows)))

    def _precise(self, x: Tensor) -> Tensor:
        """The layer on an outlier: two passes of 8 bits, the second on what the first left over, make some 16."""
        (kernel,) = self.kernels
        if not self.scheme.grids:
            return kernel(x, None, None)
        first = _own_grid(x)
        rest = x - fake_affine(x, first)
        return kernel(x, first, None) + kernel(rest, _own_grid(rest), None)


def _own_grid(x: Tensor) -> Affine:
    low, high = (float(value) for value in torch.aminmax(x.float()))
    return affine(low, high, 8)


def execute_layer(
    layer: Layer,
    scheme: Scheme,
    integers: Int8[Tensor, "out ..."],
    geometry: Geometry,
    tools: Workshop,
    *,
    bias: Float[Tensor, " out"] | None,
    table: BosTable | None = None,
    bos: BosRows | None = None,
) -> Executed:
    """The layer that multiplies these integers, with a kernel for each part of its input."""
    assert scheme.delta is not None
    kernels, reasons = [], []
    for part, delta in zip(split_channels(integers, layer.split), scheme.delta, strict=True):
        form = geometry.with_inputs(part.shape[1]) if layer.split else geometry
        multipliers = scheme.multipliers
        if multipliers is not None:
            multipliers = multipliers.to(tools.device)
        part, delta = part.to(tools.device), delta.to(tools.device)
        weights = Weights(part, scheme.weight_bits, delta, form, multipliers)
        kernel, reason = tools.kernel(weights, whole_inputs=not scheme.grids)
        kernels.append(kernel)
        reasons.append(reason)
    return Executed(
        layer,
        scheme,
        kernels,
        bias=None if bias is None else bias.float().to(tools.device),
        table=table,
        bos=bos,
        reason=next(filter(None, reasons), ""),
    ).eval()
