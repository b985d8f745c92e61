"""T2I-Zero's Algorithm 1, correction by similarities, on plain tensors (arXiv 2310.07419)."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Normalise = Literal["before", "after"]


def correct(
    rows: Float[Tensor, "seq dim"],
    concepts: Sequence[int],
    scope: Sequence[int],
    *,
    tau: float,
    gamma: int,
    alpha: float,
    normalise: Normalise = "before",
    include_self: bool = True,
) -> Float[Tensor, "seq dim"]:
    """Each concept row f_c becomes (1 - alpha) f_c + alpha g, all computed from the rows as given.

    g = sum over i in scope of S~[i] * f_i, elementwise over features, where S[i, j] = f_cj f_ij; S~ is S thresholded by
    tau and normalised by its maximum, and zero for |i - c| > gamma. Steps 1 to 5 of the algorithm box; that all concepts
    are corrected from the original rows, `scope`, and the order of thresholding are our choices where it is silent.
    """
    precise = rows.to(torch.promote_types(rows.dtype, torch.float32))
    edited = rows.clone()
    for concept in concepts:
        others = [i for i in scope if include_self or i != concept]
        window = [float(abs(i - concept) <= gamma) for i in others]
        weights = similarity(precise[concept], precise[others], tau=tau, normalise=normalise)
        corrected = (weights * precise.new_tensor(window)[:, None] * precise[others]).sum(dim=0)
        blend = (1 - alpha) * precise[concept] + alpha * corrected
        edited[concept] = blend.to(rows.dtype)
    return edited


def similarity(
    concept: Float[Tensor, " dim"],
    rows: Float[Tensor, "seq dim"],
    *,
    tau: float,
    normalise: Normalise,
) -> Float[Tensor, "seq dim"]:
    """Phi(S, tau) for S[i, j] = f_cj f_ij: what does not exceed tau is zero, the maximum is one (steps 1 and 2).

    `before` divides by the maximum first, so that tau in [0, 1] means a share of it; `after` thresholds raw products,
    which the box names first, and where tau has no fixed scale. The maximum is over rows and features.
    """
    products = concept * rows
    largest = products.max() if products.numel() else products.sum()
    if largest <= 0:
        return torch.zeros_like(products)
    scaled = products / largest
    return torch.where((scaled if normalise == "before" else products) > tau, scaled, 0)
