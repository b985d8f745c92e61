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


class BosLookup:
    """The known BOS rows of a model, a row of zeros among them, and which of them a text embedding has.

    All text layers of a forward pass read the same tensor, so the answer to the last one is kept: looking anew in each
    would make CUDA wait for it each time.
    """

    def __init__(self, rows: Float[Tensor, "known dim"]) -> None:
        self.rows = torch.cat([torch.zeros_like(rows[:1]), rows])
        self._last: tuple[Tensor, int, tuple[Tensor, Tensor | None]] | None = None

    def find(
        self, x: Float[Tensor, "batch seq dim"], places: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """For each BOS row the index of the nearest known one, and what is left over; None if nothing is, anywhere."""
        version = 0 if x.is_inference() else x._version
        last = self._last
        if last is None or last[0] is not x or last[1] != version:
            given = x[:, list(places)].flatten(0, 1)
            known = self.rows.to(x.dtype)
            index = torch.cdist(given.float(), known.float()).argmin(1)
            residual = given - known[index]
            last = x, version, (index, residual if bool(residual.any()) else None)
            self._last = last
        return last[2]


@dataclass(frozen=True, slots=True)
class BosTable:
    """What a text layer makes of known BOS rows, computed with its unquantised weights, without the bias.

    The layer is linear, so a row that is not known is the nearest one plus a residual, which the quantised weights may
    carry: a negative prompt zeroed by SDXL gives exactly zero, an encoder changed by a LoRA a small residual.
    """

    lookup: BosLookup
    outputs: Float[Tensor, "known out"]

    def nearest(
        self, x: Float[Tensor, "batch seq dim"], places: Sequence[int]
    ) -> tuple[Float[Tensor, "n out"], Float[Tensor, "n dim"] | None]:
        """The outputs of the known rows nearest to the BOS rows of `x`, and what the quantised weights must add."""
        index, residual = self.lookup.find(x, places)
        outputs = torch.cat([torch.zeros_like(self.outputs[:1]), self.outputs]).to(x.dtype)
        return outputs[index], residual


def put_rows(
    y: Float[Tensor, "batch seq out"], rows: Sequence[int], values: Float[Tensor, "batch rows out"]
) -> Float[Tensor, "batch seq out"]:
    """`y` with these rows replaced, in place."""
    y[:, list(rows)] = values
    return y
