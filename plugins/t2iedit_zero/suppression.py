"""T2I-Zero's Algorithm 2, cross-token non-maximum suppression, on plain tensors (arXiv 2310.07419)."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

Heads = Literal["mean", "each"]
Renormalise = Literal["none", "concepts", "all"]
KERNEL, SIGMA = 3, 1.0
"""The smoothing that the algorithm box names."""


def suppress(
    probs: Float[Tensor, "image head pixel token"],
    concepts: Sequence[Sequence[int]],
    size: tuple[int, int],
    *,
    strength: float,
    heads: Heads = "mean",
    renormalise: Renormalise = "none",
) -> Float[Tensor, "image head pixel token"]:
    """At each pixel of a (height, width) map, every concept but the strongest times 1 - `strength`.

    Steps 1 to 5 of the algorithm box at `strength` 1: the concepts' maps, smoothed, their maximum, the others suppressed.
    Our choices where it is silent: a concept of several tokens has the mean of their maps; only the concepts' own
    tokens are suppressed, since zeroing BOS and padding too would take nearly all attention away; heads decide together
    (`mean`) or `each` for itself; the mass that goes is lost (`none`), given to the winner (`concepts`), or to all tokens
    in proportion (`all`).
    """
    maps = torch.stack([probs[..., list(tokens)].mean(dim=-1) for tokens in concepts], dim=-1)
    if heads == "mean":
        maps = maps.mean(dim=1, keepdim=True)
    winner = smoothed(maps, size).argmax(dim=-1)
    factors = _factors(winner, concepts, probs.shape[-1], strength)
    edited = probs * factors
    if renormalise == "all":
        return edited * (probs.sum(-1, keepdim=True) / edited.sum(-1, keepdim=True))
    if renormalise == "concepts":
        lost = (probs - edited).sum(-1, keepdim=True)
        won = probs * _is_winner(winner, concepts, probs.shape[-1])
        return edited + lost * won / won.sum(-1, keepdim=True).clamp_min(1e-12)
    return edited


def smoothed(
    maps: Float[Tensor, "image head pixel concept"], size: tuple[int, int]
) -> Float[Tensor, "image head pixel concept"]:
    """Each map blurred by a 3 x 3 Gaussian of sigma 1; the border is repeated outwards, so a flat map stays flat."""
    images, head_count, _, count = maps.shape
    planes = maps.permute(0, 1, 3, 2).reshape(-1, 1, *size)
    line = torch.exp(
        -((torch.arange(KERNEL, device=maps.device) - KERNEL // 2) ** 2) / (2 * SIGMA**2)
    )
    line = (line / line.sum()).to(maps.dtype)
    padded = functional.pad(planes, (KERNEL // 2,) * 4, mode="replicate")
    blurred = functional.conv2d(padded, (line[:, None] * line)[None, None])
    return blurred.reshape(images, head_count, count, -1).permute(0, 1, 3, 2)


def _factors(
    winner: Int[Tensor, "image head pixel"],
    concepts: Sequence[Sequence[int]],
    length: int,
    strength: float,
) -> Float[Tensor, "image head pixel token"]:
    """1 for the winner's tokens and for all that belong to no concept, 1 - strength for the losers'."""
    in_concepts = torch.zeros(length, dtype=torch.bool, device=winner.device)
    in_concepts[[index for tokens in concepts for index in tokens]] = True
    losers = in_concepts & ~_is_winner(winner, concepts, length)
    return 1 - strength * losers.float()


def _is_winner(
    winner: Int[Tensor, "image head pixel"], concepts: Sequence[Sequence[int]], length: int
) -> Bool[Tensor, "image head pixel token"]:
    """Whether a token belongs to the concept that won the pixel; -1 is the concept of all other tokens."""
    owner = torch.full((length,), -1, device=winner.device)
    for number, tokens in enumerate(concepts):
        owner[list(tokens)] = number
    return winner[..., None] == owner
