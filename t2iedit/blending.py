"""Between two embeddings: straight lines, arcs, and how sequences of different length meet."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

PARALLEL = 0.9995
"""Cosine above which an arc is drawn as the straight line it nearly is."""


def between(
    first: Float[Tensor, "*rows dim"], second: Float[Tensor, "*rows dim"], weight: float, path: str
) -> Float[Tensor, "*rows dim"]:
    """`weight` of the way from the first to the second, row by row; rows that are equal stay bit for bit.

    `path` is "lerp" or "slerp".
    """
    mixed = slerp(first, second, weight) if path == "slerp" else torch.lerp(first, second, weight)
    same = (first == second).all(dim=-1, keepdim=True)
    return torch.where(same, first, mixed)


def slerp(
    first: Float[Tensor, "*rows dim"], second: Float[Tensor, "*rows dim"], weight: float
) -> Float[Tensor, "*rows dim"]:
    """Along the arc between the directions (Shoemake, SIGGRAPH 1985), the lengths interpolated straight.

    Nearly parallel rows, opposite ones and zeros have no unique arc and go straight. Computed in float32.
    """
    a, b = first.float(), second.float()
    lengths = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    tiny = torch.finfo(torch.float32).tiny
    directions = a / lengths[0].clamp_min(tiny), b / lengths[1].clamp_min(tiny)
    cosine = (directions[0] * directions[1]).sum(dim=-1, keepdim=True)
    angle = cosine.clamp(-1, 1).arccos()
    sine = angle.sin().clamp_min(tiny)
    arc = (
        ((1 - weight) * angle).sin() * directions[0] + (weight * angle).sin() * directions[1]
    ) / sine
    curved = arc * torch.lerp(*lengths, weight)
    straight = cosine.abs() > PARALLEL
    empty = (lengths[0] == 0) | (lengths[1] == 0)
    mixed = torch.where(straight | empty, torch.lerp(a, b, weight), curved)
    return mixed.to(first.dtype)


def common_length(first: int, second: int) -> int:
    """The rows at which two sequences can both be repeated whole."""
    return math.lcm(first, second)


def repeated(rows: Float[Tensor, "seq dim"], length: int) -> Float[Tensor, "length dim"]:
    """The sequence, repeated whole up to `length` rows.

    Cross-attention does not notice: each key comes equally often, so the softmax average stays the same.
    """
    return rows.repeat(length // len(rows), 1)
