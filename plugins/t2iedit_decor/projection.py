"""DECOR's mathematics: the row space of undesired vectors, and what is left of a matrix without it."""

import torch
from jaxtyping import Float
from torch import Tensor


def row_space(
    vectors: Float[Tensor, "undesired dim"], rank_tol: float
) -> Float[Tensor, "rank dim"]:
    """An orthonormal basis V^T of the rows of X~ = U S V^T, directions with s <= rank_tol * s_max left out.

    DECOR (arXiv 2412.09169). The tolerance is our choice: P depends on the spanned space alone, so a direction that is
    only rounding noise would count as much as any other. Float32 inside, since half precision has no SVD on CPUs.
    """
    rows = vectors.to(_precision(vectors))
    if len(rows) == 0:
        return rows
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    return directions[values > rank_tol * values.max()]


def project_out(
    rows: Float[Tensor, "seq dim"], basis: Float[Tensor, "rank dim"], alpha: float
) -> Float[Tensor, "seq dim"]:
    """X' = X - alpha X P with P = V V^T (DECOR), never building the dim x dim projector."""
    precise = rows.to(basis.dtype)
    return (precise - alpha * (precise @ basis.T) @ basis).to(rows.dtype)


def removed_energy(before: Float[Tensor, "seq dim"], after: Float[Tensor, "seq dim"]) -> float:
    """The share of the rows' squared norm that is gone, 0 to 1."""
    total = before.double().square().sum()
    return float(1 - after.double().square().sum() / total) if total > 0 else 0.0


def _precision(vectors: Tensor) -> torch.dtype:
    return torch.float64 if vectors.dtype == torch.float64 else torch.float32
