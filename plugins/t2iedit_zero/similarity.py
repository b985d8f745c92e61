"""T2I-Zero's Algorithm 1, correction by similarities, on plain tensors (arXiv 2310.07419)."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Normalise = Literal["before", "after"]
Maximum = Literal["all", "row", "feature"]


def correct(
    rows: Float[Tensor, "seq dim"],
    concepts: Sequence[int],
    scope: Sequence[int],
    *,
    tau: float,
    gamma: int,
    alpha: float,
    normalise: Normalise = "before",
    maximum: Maximum = "all",
    include_self: bool = True,
    simultaneous: bool = True,
) -> Float[Tensor, "seq dim"]:
    """Each concept row f_c becomes (1 - alpha) f_c + alpha g.

    g = sum over i in scope of S~[i] * f_i, elementwise over features, where S[i, j] = f_cj f_ij; S~ is S thresholded by
    tau and normalised by its maximum, and zero for |i - c| > gamma. Steps 1 to 5 of the algorithm box. Where it is
    silent: `scope`, the order of thresholding, which `maximum`, whether the own row takes part, and whether all concepts
    are corrected from the rows as given (`simultaneous`) or each from what those before it made of them.
    """
    precise = rows.to(torch.promote_types(rows.dtype, torch.float32))
    working = precise.clone()
    for concept in concepts:
        source = precise if simultaneous else working
        others = [i for i in scope if include_self or i != concept]
        window = precise.new_tensor([float(abs(i - concept) <= gamma) for i in others])
        weights = similarity(
            source[concept], source[others], tau=tau, normalise=normalise, maximum=maximum
        )
        corrected = (weights * window[:, None] * source[others]).sum(dim=0)
        working[concept] = (1 - alpha) * source[concept] + alpha * corrected
    edited = rows.clone()
    edited[list(concepts)] = working[list(concepts)].to(rows.dtype)
    return edited


def similarity(
    concept: Float[Tensor, " dim"],
    rows: Float[Tensor, "seq dim"],
    *,
    tau: float,
    normalise: Normalise,
    maximum: Maximum = "all",
) -> Float[Tensor, "seq dim"]:
    """Phi(S, tau) for S[i, j] = f_cj f_ij: what does not exceed tau is zero, the maximum is one (steps 1 and 2).

    `before` divides by the maximum first, so that tau in [0, 1] means a share of it; `after` thresholds raw products,
    which the box names first, and where tau has no fixed scale. The maximum is over rows and features (`all`), as the
    box reads, or each row's or each feature's own. Where none is positive, nothing is alike.
    """
    products = concept * rows
    if products.numel() == 0:
        return products
    largest = {
        "all": products.max(),
        "row": products.amax(dim=1, keepdim=True),
        "feature": products.amax(dim=0, keepdim=True),
    }[maximum]
    scaled = products / torch.where(largest > 0, largest, torch.inf)
    return torch.where((scaled if normalise == "before" else products) > tau, scaled, 0)
