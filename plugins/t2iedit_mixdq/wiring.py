"""Which layers of a UNet can be quantised, what they are to the picture, and what they read."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from t2iedit import EditNotSupported
from t2iedit_mixdq.architectures import example_inputs, hollow
from t2iedit_mixdq.digests import digest_of
from t2iedit_mixdq.errors import said

Group = Literal["content", "quality"]
TOWER = "encoder.layers."
"""In the name of every layer of a CLIP text encoder's tower, and of none of a UNet's."""
BASE = "base_layer"
"""Where peft keeps the layer that a LoRA adds to."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear or convolution layer: its size, and how many values it reads for one image.

    `split` is the number of channels in the first part of its input where that is a concatenation of two, else 0.
    """

    name: str
    kind: Literal["linear", "conv"]
    weights: int
    inputs: int
    split: int = 0

    @property
    def group(self) -> Group:
        """What it matters to: content (feed-forward and cross-attention) or quality (all else). MixDQ's rule by names."""
        return "content" if ".ff." in self.name or ".attn2." in self.name else "quality"

    @property
    def text(self) -> bool:
        """Whether it reads rows of text, whose BOS row must not be quantised."""
        return TOWER in self.name or self.name.endswith((".attn2.to_k", ".attn2.to_v"))

    @property
    def parts(self) -> int:
        return 2 if self.split else 1

    @property
    def form(self) -> tuple[str, int, int]:
        """What a recipe for this layer depends on."""
        return self.kind, self.weights, self.split


def survey(unet: Any, size: int | None = None) -> dict[str, Layer]:
    """Every quantisable layer by name, in the order of the modules, found by one forward pass without weights.

    `size` is the side of the latents, the UNet's own unless given. A layer's input is split where it reads a
    concatenation directly, so block types that this module has never heard of are right too.

    Raises `EditNotSupported` for a UNet that cannot be followed.
    """
    if not isinstance(unet, UNet2DConditionModel):
        raise EditNotSupported(
            f"mixdq quantises the UNets of SD 1.x, 2.x and SDXL, and this model's denoiser is a {type(unet).__name__}"
        )
    config = dict(unet.config)
    frozen = tuple(sorted((key, _frozen(value)) for key, value in config.items()))
    layers = _survey(frozen, size)
    if hasattr(unet, "mixdq"):
        return dict(layers)
    names = {name for name, _ in quantisable(unet)}
    missing = sorted(names ^ set(layers))
    if missing:
        raise EditNotSupported(
            f'this UNet\'s layers are not those its configuration describes ("{missing[0]}" and'
            f" {len(missing) - 1} more); quantise it before other code replaces its layers"
        )
    return dict(layers)


def quantisable(unet: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear and convolution layers by name; those of a LoRA, which stay whole, left out."""
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in name:
            yield name.removesuffix(f".{BASE}"), module


def find_layer(unet: nn.Module, name: str) -> Any:
    """The layer of this name, under a LoRA's wrapping if it has one."""
    found = unet.get_submodule(name)
    return getattr(found, BASE, found)


def weights_digest(unet: nn.Module, layers: Iterable[str]) -> str:
    """Tells apart UNets of one architecture and dtype by some rows of each layer's weights, LoRAs on top left out."""
    weights = ((name, find_layer(unet, name).weight) for name in sorted(layers))
    # A few rows alone, since flattening copies weights that have their channels last.
    return digest_of((name, w[:: max(1, len(w) // 8)]) for name, w in weights)


def replace_layer(unet: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put a module in the place of this layer; what was there is returned."""
    parent, _, leaf = name.rpartition(".")
    holder = unet.get_submodule(name)
    if hasattr(holder, BASE):
        leaf = BASE
    else:
        holder = unet.get_submodule(parent)
    before = getattr(holder, leaf)
    setattr(holder, leaf, module)
    return before


@lru_cache(maxsize=8)
def _survey(frozen: tuple, size: int | None) -> dict[str, Layer]:
    seen: dict[str, tuple[int, int]] = {}
    try:
        unet: Any = hollow(dict(frozen))
        with torch.no_grad(), _Concatenations() as made, _watched(unet, seen, made):
            unet(**example_inputs(unet, size or unet.config.sample_size))
    except Exception as error:
        raise EditNotSupported(
            f"mixdq cannot follow this UNet ({type(error).__name__}: {said(error)}); it knows those of SD 1.x, 2.x and SDXL"
        ) from error
    return {
        name: Layer(
            name,
            "linear" if isinstance(module, nn.Linear) else "conv",
            module.weight.numel(),  # type: ignore[union-attr, operator]
            *seen[name],
        )
        for name, module in quantisable(unet)
        if name in seen
    }


@contextmanager
def _watched(
    unet: nn.Module, seen: dict[str, tuple[int, int]], concatenations: "_Concatenations"
) -> Iterator[None]:
    def watch(name: str) -> Any:
        def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name] = args[0].numel(), concatenations.first_part(args[0])

        return look

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in quantisable(unet)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Concatenations(TorchFunctionMode):
    """Remembers what was concatenated on channels while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        # The tensors are held, so that no other one can get their identity.
        self._made: dict[int, tuple[Tensor, int]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.cat, torch.concat):
            parts = args[0] if args else (kwargs or {})["tensors"]
            if result.ndim == 4 and len(parts) == 2 and parts[0].shape[2:] == parts[1].shape[2:]:
                self._made[id(result)] = result, parts[0].shape[1]
        return result

    def first_part(self, tensor: Tensor) -> int:
        """The channels of the first of two concatenated parts, 0 if this is no concatenation."""
        _, channels = self._made.get(id(tensor), (None, 0))
        return channels


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
