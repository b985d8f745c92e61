"""How one layer is quantised: its bits, the steps of its weights and the grids of its inputs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from t2iedit_mixdq.quantizers import Affine, dequantize, quantize, symmetric_delta

WHOLE = 16
"""The bits of what is not quantised."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """One layer's quantisation; `delta` has a row for each part of a split input, `grids` likewise.

    `delta` is None where the weights stay whole, `grids` is empty where the inputs do.
    """

    weight_bits: int
    act_bits: int
    delta: Float[Tensor, "parts out"] | None = None
    grids: tuple[Affine, ...] = ()

    @property
    def untouched(self) -> bool:
        return self.delta is None and not self.grids


def split_channels(tensor: Tensor, split: int) -> list[Tensor]:
    """The parts of a weight or of a convolution's input along its channels; one part without a split."""
    return [tensor[:, :split], tensor[:, split:]] if split else [tensor]


def weight_delta(
    weight: Float[Tensor, "out ..."], bits: int, split: int, search: str = "minmax"
) -> Float[Tensor, "parts out"]:
    """The steps of a layer's weights, those of a split layer apart for each part of its input."""
    return torch.stack(
        [symmetric_delta(part, bits, search) for part in split_channels(weight, split)]
    )


def integer_weight(
    weight: Float[Tensor, "out ..."], bits: int, delta: Float[Tensor, "parts out"], split: int
) -> Int8[Tensor, "out ..."]:
    """The layer's weights as integers."""
    parts = zip(split_channels(weight, split), delta, strict=True)
    return torch.cat([quantize(part, steps, bits) for part, steps in parts], dim=1)


def float_weight(
    integers: Int8[Tensor, "out ..."], delta: Float[Tensor, "parts out"], split: int
) -> Float[Tensor, "out ..."]:
    """The weights that the integers stand for, in float32."""
    parts = zip(split_channels(integers, split), delta, strict=True)
    return torch.cat([dequantize(part, steps) for part, steps in parts], dim=1)
