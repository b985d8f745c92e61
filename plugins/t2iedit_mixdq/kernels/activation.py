"""Floating point to unsigned integers: in one fused pass where torch can compile one, else in several."""

import os
import shutil
from functools import cache
from typing import Any

import torch
from torch import Tensor

from t2iedit_mixdq.kernels.base import Quantise
from t2iedit_mixdq.quantizers import Affine, quantize_affine


def quantiser(*, fused: bool) -> tuple[Quantise, str]:
    """How to quantise what layers read, and the reason why not fused where that was wanted and cannot be."""
    if not fused:
        return quantize_affine, ""
    if not shutil.which(os.environ.get("CXX", "g++")):
        return quantize_affine, "no C++ compiler, so inputs are quantised in several passes"
    return _Fused(), ""


class _Fused:
    """The compiled pass; several passes from the first call on that torch cannot compile."""

    def __init__(self) -> None:
        self._works = True

    def __call__(self, x: Tensor, grid: Affine) -> Tensor:
        if self._works:
            try:
                return _one_pass(x, grid)
            # Compilers fail in their own ways, and none of them is the user's business.
            except Exception:
                self._works = False
        return quantize_affine(x, grid)


def _one_pass(x: Tensor, grid: Affine) -> Tensor:
    """Flat, so that every size and layout shares one compiled kernel."""
    flat = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
    numbers = torch.tensor([1 / grid.delta, grid.zero, grid.levels - 1], device=x.device)
    q = _compiled()(flat.reshape(-1), numbers).view(flat.shape)
    return q.permute(0, 3, 1, 2) if x.ndim == 4 else q


@cache
def _compiled() -> Any:
    return torch.compile(_rounded, dynamic=True, fullgraph=True)


def _rounded(x: Tensor, numbers: Tensor) -> Tensor:
    q = torch.round(x.float() * numbers[0]) + numbers[1]
    return torch.minimum(q.clamp(min=0), numbers[2]).to(torch.uint8)
