"""Muon for matrices and convolutions, AdamW for the rest."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MakeOptimizers = Callable[[nn.Module, float, float], list[torch.optim.Optimizer]]
"""From a module, a learning rate and a weight decay."""
OUTER = ("conv_in", "conv_out", "time_embedding")
"""Layers between a denoiser and the world: Muon is for what lies between them."""


class FlatMuon(torch.optim.Muon):
    """torch's Muon, which takes matrices only, on convolutions too: each is seen as a matrix (out, in x height x width)."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        self.parameters = parameters
        # Views of the same memory, so that a step on them is one on the parameters.
        self.flat = [nn.Parameter(each.data.view(len(each), -1)) for each in parameters]
        super().__init__(
            self.flat, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for flat, whole in zip(self.flat, self.parameters, strict=True):
            flat.grad = None if whole.grad is None else whole.grad.reshape(flat.shape)
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for whole in self.parameters:
            whole.grad = None


def adamw(module: nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    return [_adamw(list(module.parameters()), lr, weight_decay)]


def muon(module: nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Steps of both are of one size, so that one rate serves them."""
    inner: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        is_inner = parameter.ndim > 1 and not name.startswith(OUTER)
        (inner if is_inner else rest).append(parameter)
    return [_adamw(rest, lr, weight_decay), FlatMuon(inner, lr, weight_decay)]


def _adamw(parameters: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=True)
