"""How one layer is quantised: its bits, the steps of its weights and the grids of its inputs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from t2iedit_mixdq.quantizers import (
    Affine,
    dequantize,
    group_multipliers,
    grouped,
    multiplied,
    quantize,
    symmetric_delta,
)

WHOLE = 16
"""The bits of what is not quantised."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """One layer's quantisation; `delta` has a row for each part of a split input, `grids` likewise.

    `delta` is None where the weights stay whole, `grids` is empty where the inputs do. `multipliers` are there where
    groups of inputs have steps of their own, `integers` where rounding was learned: else weights go to the nearest.
    """

    weight_bits: int
    act_bits: int
    delta: Float[Tensor, "parts out"] | None = None
    grids: tuple[Affine, ...] = ()
    multipliers: UInt8[Tensor, "out groups"] | None = None
    integers: Int8[Tensor, "out ..."] | None = None

    @property
    def untouched(self) -> bool:
        return self.delta is None and not self.grids


def split_channels(tensor: Tensor, split: int) -> list[Tensor]:
    """The parts of a weight or of a convolution's input along its channels; one part without a split."""
    return [tensor[:, :split], tensor[:, split:]] if split else [tensor]


def weight_scheme(
    weight: Float[Tensor, "out ..."], bits: int, split: int, search: str = "minmax", group: int = 0
) -> Scheme:
    """The steps of a layer's weights, those of a split layer apart for each part of its input.

    With `group`, linear layers under 8 bits have steps for groups of so many inputs, where these are whole groups.
    """
    if group and bits < 8 and weight.ndim == 2 and weight.shape[1] % group == 0:
        delta, multipliers = group_multipliers(weight, bits, group, search)
        return Scheme(bits, WHOLE, delta[None], multipliers=multipliers)
    parts = [symmetric_delta(part, bits, search) for part in split_channels(weight, split)]
    return Scheme(bits, WHOLE, torch.stack(parts))


def integer_weight(
    weight: Float[Tensor, "out ..."], scheme: Scheme, split: int
) -> Int8[Tensor, "out ..."]:
    """The layer's weights as integers of the scheme's bits."""
    if scheme.integers is not None:
        return scheme.integers.to(weight.device)
    assert scheme.delta is not None
    delta = scheme.delta.to(weight.device)
    if scheme.multipliers is not None:
        steps = delta[0][:, None] * scheme.multipliers.to(weight.device)
        rows = grouped(weight, steps.shape[1])
        return quantize(rows, steps.flatten(), scheme.weight_bits).view(weight.shape)
    parts = zip(split_channels(weight, split), delta, strict=True)
    return torch.cat([quantize(part, steps, scheme.weight_bits) for part, steps in parts], dim=1)


def float_weight(
    integers: Int8[Tensor, "out ..."], scheme: Scheme, split: int
) -> Float[Tensor, "out ..."]:
    """The weights that the integers stand for, in float32."""
    assert scheme.delta is not None
    delta, multipliers = scheme.delta.to(integers.device), scheme.multipliers
    if multipliers is not None:
        integers = multiplied(integers, multipliers.to(integers.device))
    parts = zip(split_channels(integers, split), delta, strict=True)
    return torch.cat([dequantize(part, steps) for part, steps in parts], dim=1)
