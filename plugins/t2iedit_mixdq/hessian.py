"""Sensitivity from second derivatives: all layers at all widths from a few backward passes, none quantised for it.

At the float model the loss |unet' - unet|^2 has no gradient, and its Hessian is twice J'J, J being what the output does
when a weight or an input moves. Rounding moves them by what is known, so the noise in the output is about

    sum_i h_i (q_i - x_i)^2        h_i = E_v (v' J)_i^2,  v random with unit variance

Q-BERT (arXiv 1909.05840) ranks layers by the Hessian's largest eigenvalues; the diagonal, weighted by the very errors
that rounding makes, is our choice. It holds where rounding errors are small and independent: at 8 bits and 4 rather
than at 2.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import grad

from t2iedit_mixdq.bos import BosRows
from t2iedit_mixdq.quantizers import BITS, fake_affine
from t2iedit_mixdq.schemes import WHOLE, Scheme, float_weight, integer_weight, split_channels
from t2iedit_mixdq.sensitivity import Bench, Table, decibels
from t2iedit_mixdq.wiring import find_layer

PROBES = 4
"""Random directions for each recorded call of the UNet."""
Noise = dict[tuple[str, str, int], float]
"""Part, layer and width to the noise that it adds to the output, as a sum of squares."""


def predict(
    bench: Bench,
    of: Sequence[str],
    *,
    probes: int = PROBES,
    on_score: Callable[[int], None] | None = None,
) -> Table:
    """The SQNR in dB of the UNet's output that each layer alone would leave, at every width."""
    noise: Noise = {}
    signal = 0.0
    random = torch.Generator().manual_seed(0)
    unet: Any = bench.model.denoiser
    with bench.model.lock, _listening(bench, of, noise):
        for args, kwargs, reference in bench.calls:
            for _ in range(probes):
                _backward(unet, args, kwargs, reference, random)
                signal += reference.double().square().sum().item()
                if on_score is not None:
                    on_score(1)
    return {
        part: {
            name: {bits: decibels(signal, noise.get((part, name, bits), 0.0)) for bits in BITS}
            for name in bench.layers
        }
        for part in of
    }


def _backward(
    unet: Any, args: tuple, kwargs: dict[str, Any], like: Tensor, random: torch.Generator
) -> None:
    with torch.enable_grad():
        output = unet(*args, **kwargs)[0]
        direction = torch.randn(like.shape, generator=random).to(like)
        output.backward(direction)


@contextmanager
def _listening(bench: Bench, of: Sequence[str], noise: Noise) -> Iterator[None]:
    """While this holds, every layer adds to `noise` when a gradient comes back to its output."""

    def listen(name: str) -> Any:
        def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
            if not output.requires_grad:
                output.requires_grad_()
            x = args[0].detach()
            output.register_hook(lambda gradient: _add(bench, of, noise, name, x, gradient))

        return keep

    handles = [
        find_layer(bench.model.denoiser, name).register_forward_hook(listen(name))
        for name in bench.layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _add(
    bench: Bench, of: Sequence[str], noise: Noise, name: str, x: Tensor, gradient: Tensor
) -> None:
    module, layer = find_layer(bench.model.denoiser, name), bench.layers[name]
    if layer.text and bench.settings.bos_aware:
        rows = BosRows().others(x.shape[1])
        x, gradient = x[:, rows], gradient[:, rows]
    x, gradient, weight = x.float(), gradient.float(), module.weight.float()
    for part in of:
        if part == "weights":
            curvature = weight_gradient(module, x, weight, gradient).square_()
        else:
            curvature = input_gradient(module, x, weight, gradient).square_()
        for bits in BITS:
            widths = (bits, WHOLE) if part == "weights" else (WHOLE, bits)
            scheme = bench.scheme(name, *widths)
            moved = weight_error if part == "weights" else input_error
            error = moved(weight if part == "weights" else x, scheme, layer.split)
            key = part, name, bits
            noise[key] = noise.get(key, 0.0) + float((curvature * error.square()).sum())


def weight_gradient(
    module: Any, x: Tensor, weight: Tensor, gradient: Tensor
) -> Float[Tensor, "out ..."]:
    """What a layer's weights change in the probed direction."""
    if isinstance(module, nn.Linear):
        return gradient.flatten(0, -2).T @ x.flatten(0, -2)
    form = module.stride, module.padding, module.dilation, module.groups
    return grad.conv2d_weight(x, weight.shape, gradient, *form)


def input_gradient(
    module: Any, x: Tensor, weight: Tensor, gradient: Tensor
) -> Float[Tensor, "..."]:
    """What this layer's input changes in it, by way of this layer alone."""
    if isinstance(module, nn.Linear):
        return gradient @ weight
    form = module.stride, module.padding, module.dilation, module.groups
    return grad.conv2d_input(x.shape, weight, gradient, *form)


def weight_error(weight: Tensor, scheme: Scheme, split: int) -> Float[Tensor, "out ..."]:
    """By how much rounding moves each weight."""
    return float_weight(integer_weight(weight, scheme, split), scheme, split) - weight


def input_error(x: Tensor, scheme: Scheme, split: int) -> Float[Tensor, "..."]:
    """By how much its grid moves each input."""
    parts = zip(split_channels(x, split), scheme.grids, strict=True)
    moved = [fake_affine(part, grid) - part for part, grid in parts]
    return moved[0] if len(moved) == 1 else torch.cat(moved, dim=1)
