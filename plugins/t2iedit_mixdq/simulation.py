"""Quantisation simulated in floating point: exact, on any device, and undone without a trace."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2iedit_mixdq.bos import BosRows, put_rows
from t2iedit_mixdq.quantizers import fake_affine
from t2iedit_mixdq.schemes import Scheme, float_weight, integer_weight, split_channels
from t2iedit_mixdq.wiring import Layer, find_layer, replace_layer

Sees = Callable[[Layer, list[Tensor]], None]
"""Looks at what a layer reads, part by part."""


class Simulated(nn.Module):
    """A layer with fake-quantised weights and inputs. BOS rows of text layers go through the original.

    `bos` None quantises them like all others, which is what a naive quantiser does.
    """

    def __init__(
        self,
        original: nn.Module,
        layer: Layer,
        scheme: Scheme,
        *,
        bos: BosRows | None,
        observer: Sees | None = None,
    ) -> None:
        super().__init__()
        self.original = original
        self.layer, self.observer = layer, observer
        self.bos = bos if layer.text else None
        copy_form(original, self)
        self.rounded = (
            original.weight if scheme.delta is None else _rounded(original, layer, scheme)
        )
        # They are in `rounded` now.
        self.scheme = replace(scheme, integers=None)

    @property
    def weight(self) -> Tensor:
        """The original's, for code that looks at its shape or layout."""
        return self.original.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.original.bias  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        rows = [] if self.bos is None else self.bos.among(x.shape[1])
        if self.observer is not None:
            self.observer(self.layer, self._observed(x))
        y = apply_layer(self.original, self._through_grids(x), self.rounded)  # type: ignore[arg-type]
        return put_rows(y, rows, self.original(x[:, rows])) if rows else y

    def _observed(self, x: Tensor) -> list[Tensor]:
        if self.bos is None:
            return split_channels(x, self.layer.split)
        return [x[:, self.bos.others(x.shape[1])]]

    def _through_grids(self, x: Tensor) -> Tensor:
        if not self.scheme.grids:
            return x
        parts = zip(split_channels(x, self.layer.split), self.scheme.grids, strict=True)
        faked = [fake_affine(part, grid) for part, grid in parts]
        return faked[0] if len(faked) == 1 else torch.cat(faked, dim=1)


def copy_form(original: nn.Module, stand_in: nn.Module) -> None:
    """The sizes that pipelines ask layers for."""
    for name in ("in_features", "out_features", "in_channels", "out_channels"):
        if hasattr(original, name):
            setattr(stand_in, name, getattr(original, name))


def apply_layer(original: Any, x: Tensor, weight: Tensor) -> Tensor:
    """A linear or convolution layer with other weights."""
    if isinstance(original, nn.Linear):
        return functional.linear(x, weight, original.bias)
    return original._conv_forward(x, weight, original.bias)


def simulate(
    unet: nn.Module,
    layers: Mapping[str, Layer],
    schemes: Mapping[str, Scheme],
    *,
    bos: BosRows | None,
    observer: Sees | None = None,
) -> Callable[[], None]:
    """Put simulated layers into the UNet; what is returned puts the very same originals back."""
    originals: dict[str, nn.Module] = {}

    def undo() -> None:
        for name, original in originals.items():
            replace_layer(unet, name, original)

    try:
        for name, scheme in schemes.items():
            if scheme.untouched and observer is None:
                continue
            original = find_layer(unet, name)
            module = Simulated(original, layers[name], scheme, bos=bos, observer=observer)
            originals[name] = replace_layer(unet, name, module.eval())
    except BaseException:
        undo()
        raise
    return undo


def _rounded(original: nn.Module, layer: Layer, scheme: Scheme) -> nn.Parameter:
    weight: Tensor = original.weight  # type: ignore[assignment]
    integers = integer_weight(weight, scheme, layer.split)
    rounded = float_weight(integers, scheme, layer.split).to(weight.dtype)
    like = torch.empty_like(weight)  # keeps the memory format
    return nn.Parameter(like.copy_(rounded), requires_grad=False)
