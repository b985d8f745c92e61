"""T2I-Zero's Algorithm 2, cross-token non-maximum suppression, on plain tensors (arXiv 2310.07419)."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Heads = Literal["mean", "each"]
Renormalise = Literal["none", "concepts", "all"]
SIGMA = 1.0
_LINE = torch.softmax(-(torch.arange(-1.0, 2.0) ** 2) / (2 * SIGMA**2), dim=0)
GAUSSIAN = torch.outer(_LINE, _LINE)
"""The smoothing that the algorithm box names: a kernel of 3 x 3, sigma 1."""


def suppress(
    probs: Float[Tensor, "image head pixel token"],
    concepts: Sequence[Sequence[int]],
    size: tuple[int, int],
    *,
    strength: float,
    heads: Heads = "mean",
    balance: bool = False,
    renormalise: Renormalise = "none",
) -> Float[Tensor, "image head pixel token"]:
    """At each pixel of a (height, width) map, every concept but the strongest times 1 - `strength`.

    Steps 1 to 5 of the algorithm box at `strength` 1: the concepts' maps, smoothed, their maximum, the others suppressed.
    Our choices where it is silent: a concept of several tokens has the mean of their maps; only the concepts' own
    tokens are suppressed, since zeroing BOS and padding too would take nearly all attention away; heads decide together
    (`mean`) or `each` for itself; with `balance` each concept's map is first divided by its mean over the pixels, so that
    one that is weak everywhere wins where it is least weak; the mass that goes is lost (`none`), given to the winner
    (`concepts`), or to all tokens in proportion (`all`).
    """
    columns = [token for tokens in concepts for token in tokens]
    owner = [number for number, tokens in enumerate(concepts) for _ in tokens]
    chosen = probs[..., columns]
    seen = chosen.mean(dim=1, keepdim=True) if heads == "mean" else chosen
    maps = smoothed(seen @ _means(concepts, probs), size)
    if balance:
        maps = maps / maps.mean(dim=2, keepdim=True).clamp_min(1e-12)
    winner = maps.argmax(dim=-1)
    wins = winner[..., None] == torch.tensor(owner, device=probs.device)
    kept = torch.where(wins, chosen, chosen * (1 - strength))
    if renormalise == "concepts":
        lost, won = (chosen - kept).sum(-1, keepdim=True), chosen * wins
        kept = kept + lost * won / won.sum(-1, keepdim=True).clamp_min(1e-12)
    edited = probs.clone()
    edited[..., columns] = kept
    if renormalise == "all":
        edited *= probs.sum(-1, keepdim=True) / edited.sum(-1, keepdim=True)
    return edited


def smoothed(
    maps: Float[Tensor, "image head pixel concept"], size: tuple[int, int]
) -> Float[Tensor, "image head pixel concept"]:
    """Each map blurred by a 3 x 3 Gaussian of sigma 1; the border is repeated outwards, so a flat map stays flat."""
    images, head_count, _, count = maps.shape
    planes = maps.permute(0, 1, 3, 2).reshape(-1, 1, *size)
    padded = functional.pad(planes, (len(GAUSSIAN) // 2,) * 4, mode="replicate")
    blurred = functional.conv2d(padded, GAUSSIAN.to(maps)[None, None])
    return blurred.reshape(images, head_count, count, -1).permute(0, 1, 3, 2)


def _means(concepts: Sequence[Sequence[int]], like: Tensor) -> Float[Tensor, "column concept"]:
    """What takes the maps of all concepts' tokens to each concept's mean."""
    shares = [
        [float(row == column) / len(tokens) for column in range(len(concepts))]
        for row, tokens in enumerate(concepts)
        for _ in tokens
    ]
    return torch.tensor(shares, dtype=like.dtype, device=like.device)
