"""MixDQ's quantisers (arXiv 2405.17873): symmetric weights per channel, asymmetric activations per tensor, 2, 4 and 8 bits.

The formulas are those of the authors' code. What is rounded is always `x / delta`, half to even.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, Shaped, UInt8
from torch import Tensor

BITS = (2, 4, 8)
"""The widths that are calibrated together; 16 stands for a layer that is left alone."""
EPS = 1e-6
"""The smallest step. Clamped channel by channel: one dead channel must not take the others' steps with it."""
SHRINKS = 100
"""How many ranges the search tries, from the full one down to a hundredth of it."""


@dataclass(frozen=True, slots=True)
class Affine:
    """An asymmetric grid: x is (q - zero) * delta, with q in 0 .. 2^bits - 1."""

    delta: float
    zero: int
    bits: int

    @property
    def levels(self) -> int:
        return 2**self.bits


def symmetric_delta(
    weight: Float[Tensor, "out ..."], bits: int, search: str = "minmax"
) -> Float[Tensor, " out"]:
    """Each output channel's step: max|w| / (2^(bits-1) - 1), or that of the shrunk range with the least squared error.

    `search` is `minmax`, as in the authors' configurations, or `mse`, which their code has as an option.
    """
    rows = weight.float().flatten(1)
    full = (rows.abs().amax(1) / top(bits)).clamp(min=EPS)
    if search == "minmax":
        return full
    best, least = full, torch.full_like(full, torch.inf)
    for share in _shares():
        delta = (full * share).clamp(min=EPS)
        error = (dequantize(quantize(rows, delta, bits), delta) - rows).square().sum(1)
        best = torch.where(error < least, delta, best)
        least = torch.minimum(error, least)
    return best


def top(bits: int) -> int:
    """The largest integer of a symmetric grid; the smallest is one further from zero."""
    return 2 ** (bits - 1) - 1


def quantize(
    weight: Float[Tensor, "out ..."], delta: Float[Tensor, " out"], bits: int
) -> Int8[Tensor, "out ..."]:
    """q = clamp(round(w / delta), -2^(bits-1), 2^(bits-1) - 1), the step of each output channel its own."""
    scaled = weight.float() / _along_rows(delta, weight)
    return scaled.round_().clamp_(-top(bits) - 1, top(bits)).to(torch.int8)


def dequantize(
    integers: Int8[Tensor, "out ..."], delta: Float[Tensor, " out"]
) -> Float[Tensor, "out ..."]:
    """w = q * delta, in float32."""
    return integers.float() * _along_rows(delta, integers)


def grouped(weight: Shaped[Tensor, "out ..."], groups: int) -> Shaped[Tensor, "rows size"]:
    """Each output channel as `groups` rows, so that steps for rows are steps for groups."""
    return weight.reshape(len(weight) * groups, -1)


def group_multipliers(
    weight: Float[Tensor, "out inputs"], bits: int, size: int, search: str = "minmax"
) -> tuple[Float[Tensor, " out"], UInt8[Tensor, "out groups"]]:
    """Steps for groups of `size` inputs (Q-BERT's idea) as whole multiples of a step for each output channel.

    w = q * multiplier * delta, the multipliers so small that q * multiplier fits eight bits: an integer kernel, which
    has one step for each output channel, can have them in its weights (our choice).
    """
    groups = weight.shape[1] // size
    steps = symmetric_delta(grouped(weight, groups), bits, search).view(-1, groups)
    most = 127 // (top(bits) + 1)
    delta = (steps.amax(1) / most).clamp(min=EPS)
    multipliers = torch.ceil(steps / delta[:, None] - 1e-4).clamp(1, most)
    return delta, multipliers.to(torch.uint8)


def multiplied(
    integers: Int8[Tensor, "out ..."], multipliers: UInt8[Tensor, "out groups"] | None
) -> Int8[Tensor, "out ..."]:
    """q times the multiplier of its group."""
    if multipliers is None:
        return integers
    by_group = grouped(integers, multipliers.shape[1])
    return (by_group * multipliers.to(torch.int8).flatten()[:, None]).view(integers.shape)


def affine(low: float, high: float, bits: int) -> Affine:
    """The grid over a range, widened to hold 0: delta = (hi - lo) / (2^bits - 1), zero = round(-lo / delta)."""
    low, high = min(low, 0.0), max(high, 0.0)
    # Rounded to float32, in which steps are stored and computed with.
    delta = torch.tensor(max((high - low) / (2**bits - 1), EPS)).item()
    return Affine(delta, round(-low / delta), bits)


def quantize_affine(x: Float[Tensor, "..."], grid: Affine) -> UInt8[Tensor, "..."]:
    """q = clamp(round(x / delta) + zero, 0, 2^bits - 1)."""
    q = (x.float() / grid.delta).round_().add_(grid.zero)
    return q.clamp_(0, grid.levels - 1).to(torch.uint8)


def fake_affine(x: Float[Tensor, "..."], grid: Affine) -> Float[Tensor, "..."]:
    """Quantised and back, in the dtype of `x`."""
    q = (x.float() / grid.delta).round_().add_(grid.zero).clamp_(0, grid.levels - 1)
    return q.sub_(grid.zero).mul_(grid.delta).to(x.dtype)


def clipped_share(x: Float[Tensor, "..."], grid: Affine) -> float:
    """The share of values that lie more than half a step outside the grid."""
    low, high = (-grid.zero - 0.5) * grid.delta, (grid.levels - 1 - grid.zero + 0.5) * grid.delta
    return ((x < low) | (x > high)).float().mean().item() if x.numel() else 0.0


def observed_ranges(
    x: Float[Tensor, "..."], search: str = "minmax", sample: int = 65_536
) -> Float[Tensor, "widths 2"]:
    """The (low, high) that one batch asks for at each of `BITS`.

    The search looks at evenly spaced values, `sample` of them at most; minimum and maximum see all.
    """
    if x.numel() == 0:
        return torch.zeros(len(BITS), 2)
    low, high = (float(v) for v in torch.aminmax(x.float()))
    if search == "minmax":
        return torch.tensor([[low, high]] * len(BITS))
    flat = x.float().flatten()
    values = flat[:: max(1, -(-len(flat) // sample))]
    return torch.tensor([_least_error(values, low, high, bits) for bits in BITS])


def _least_error(values: Tensor, low: float, high: float, bits: int) -> tuple[float, float]:
    errors = {}
    for share in _shares():
        grid = affine(low * share, high * share, bits)
        errors[share] = (fake_affine(values, grid) - values).square().sum().item()
    best = min(errors, key=lambda share: errors[share])
    return low * best, high * best


def _shares() -> list[float]:
    """From 1 down, so that the wider range wins a tie."""
    return [step / SHRINKS for step in range(SHRINKS, 0, -1)]


def _along_rows(delta: Tensor, like: Tensor) -> Tensor:
    return delta.float().view(-1, *[1] * (like.ndim - 1))
