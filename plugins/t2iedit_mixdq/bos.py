"""The rows of a text embedding that start a prompt: CLIP's outlier, which MixDQ never quantises.

Their largest values are some fifty times those of other rows, so one range for all of them would leave the words a
handful of levels. CLIP is causal: the row is one constant for each encoder, whatever the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

WINDOW = 77
"""CLIP's positions. A text axis of several windows has a BOS row at the start of each."""


@dataclass(frozen=True, slots=True)
class BosRows:
    """Which rows of a text axis start a prompt: those given, else the first of every window of `WINDOW`."""

    given: tuple[int, ...] | None = None

    def among(self, length: int) -> list[int]:
        if self.given is not None:
            return [row for row in self.given if row < length]
        return list(range(0, length, WINDOW)) if length % WINDOW == 0 else [0]

    def others(self, length: int) -> list[int]:
        start = set(self.among(length))
        return [row for row in range(length) if row not in start]


@dataclass(frozen=True, slots=True)
class BosTable:
    """What a text layer makes of known BOS rows, computed with its unquantised weights.

    `rows` are distinct inputs and `outputs` what they become, without the bias.
    """

    rows: Float[Tensor, "known dim"]
    outputs: Float[Tensor, "known out"]

    def nearest(
        self, x: Float[Tensor, "n dim"]
    ) -> tuple[Float[Tensor, "n out"], Float[Tensor, "n dim"] | None]:
        """The output of the known row nearest to each given one, a row of zeros among the known, and what is left over.

        The layer is linear, so a row that is not known is the nearest one plus a residual, which the quantised weights
        may carry: a negative prompt zeroed by SDXL gives exactly zero, an encoder changed by a LoRA a small residual.
        None means that every row was known exactly.
        """
        rows = torch.cat([torch.zeros_like(self.rows[:1]), self.rows]).to(x.dtype)
        outputs = torch.cat([torch.zeros_like(self.outputs[:1]), self.outputs]).to(x.dtype)
        index = torch.cdist(x.float(), rows.float()).argmin(1)
        residual = x - rows[index]
        return outputs[index], residual if bool(residual.any()) else None


def put_rows(
    y: Float[Tensor, "batch seq out"], rows: Sequence[int], values: Float[Tensor, "batch rows out"]
) -> Float[Tensor, "batch seq out"]:
    """`y` with these rows replaced, in place."""
    y[:, list(rows)] = values
    return y
