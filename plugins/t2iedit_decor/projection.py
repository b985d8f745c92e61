"""DECOR's mathematics: the row space of undesired vectors, and what is left of a matrix without it."""

import torch
from jaxtyping import Float
from torch import Tensor


def row_space(
    vectors: Float[Tensor, "undesired dim"],
    rank_tol: float,
    *,
    rank: int | None = None,
    energy: float = 1.0,
    soft: float = 0.0,
) -> Float[Tensor, "rank dim"]:
    """An orthonormal basis V^T of the rows of X~ = U S V^T, directions with s <= rank_tol * s_max left out.

    DECOR (arXiv 2412.09169). The rest is our choice: the tolerance, since P depends on the spanned space alone and a
    direction that is only rounding noise would count as much as any other; `rank`, the most directions kept; `energy`,
    the share of the sum of s^2 at which no more are taken; and `soft`, which makes every direction weigh
    s^2 / (s^2 + soft * s_max^2) in P. Float32 inside, since half precision has no SVD on CPUs.
    """
    rows = vectors.to(_precision(vectors))
    if len(rows) == 0:
        return rows
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    squares = values.square()
    kept = values > rank_tol * values.max()
    if energy < 1:
        kept &= squares.cumsum(0) - squares < energy * squares.sum()
    if rank is not None:
        kept[rank:] = False
    if soft == 0:
        return directions[kept]
    # P is B^T B for the basis B, so B carries the weights' roots.
    weights = squares / (squares + soft * squares.max())
    return directions[kept] * weights[kept].sqrt()[:, None]


def project_out(
    rows: Float[Tensor, "seq dim"],
    basis: Float[Tensor, "rank dim"],
    alpha: float,
    centre: Float[Tensor, " dim"] | None = None,
) -> Float[Tensor, "seq dim"]:
    """X' = X - alpha X P with P = V V^T (DECOR), never building the dim x dim projector.

    With a `centre` m, our addition, X' = X - alpha (X - m) P, so that what all rows share stays.
    """
    precise = rows.to(basis.dtype)
    moved = precise if centre is None else precise - centre.to(basis.dtype)
    return (precise - alpha * (moved @ basis.T) @ basis).to(rows.dtype)


def removed_energy(before: Float[Tensor, "seq dim"], after: Float[Tensor, "seq dim"]) -> float:
    """The share of the rows' squared norm that is gone, 0 to 1."""
    total = before.double().square().sum()
    return float(1 - after.double().square().sum() / total) if total > 0 else 0.0


def _precision(vectors: Tensor) -> torch.dtype:
    return torch.float64 if vectors.dtype == torch.float64 else torch.float32
