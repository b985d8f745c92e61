"""Cross-attention with its probabilities in the open, whatever processor computes it.

The probabilities are computed beside the layer's own kernel, from the queries, keys and values that it made, and only
the difference that an edit makes goes into the layer's output. So the fused kernel stays, an edit that changes nothing
changes no bit, and IP-Adapter's processors, LoRA layers and quantised layers need no code of their own.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from t2iedit.clock import Clock
from t2iedit.errors import EditNotSupported


@dataclass(frozen=True, slots=True)
class Site:
    """One cross-attention layer at one moment: its name, the size of its map, and how far the denoising has come."""

    layer: str
    height: int
    width: int
    heads: int
    fraction: float


Probabilities = Float[Tensor, "image head pixel token"]
Look = Callable[[Probabilities], Probabilities]


@contextmanager
def opened(
    denoiser: nn.Module, scheduler: Any, look: Callable[[Site], Look | None], *, guided: bool
) -> Iterator[None]:
    """While this holds, every cross-attention layer asks `look` what to do with its probabilities.

    `look(site)` gives a function of the prompt's probabilities (image head pixel token), in float32 and without the
    negative half, or None where nothing is to be done: there none are computed. Raises `EditNotSupported` if the
    denoiser has no layers that can be opened.
    """
    moment = _Moment(Clock(scheduler), guided)
    with ExitStack() as hooks:
        hooks.callback(denoiser.register_forward_pre_hook(moment.begin, with_kwargs=True).remove)
        for name, layer in openable(denoiser).items():
            opening = _Opening(name, layer, moment, look)
            for handle in opening.hooks():
                hooks.callback(handle.remove)
        yield


def openable(denoiser: nn.Module) -> dict[str, Any]:
    """The cross-attention layers by name. Raises `EditNotSupported` if there are none, or they are fused."""
    layers = {name: m for name, m in denoiser.named_modules() if name.endswith("attn2")}
    if not layers or not all(hasattr(layer, "to_q") for layer in layers.values()):
        raise EditNotSupported(
            f"the cross-attention of a {type(denoiser).__name__} cannot be opened; use an edit of the embeddings alone"
        )
    if any(getattr(layer, "fused_projections", False) for layer in layers.values()):
        raise EditNotSupported(
            "the attention layers' projections are fused; call pipeline.unfuse_qkv_projections() first"
        )
    return layers


def map_size(latents: tuple[int, int], pixels: int) -> tuple[int, int]:
    """Height and width of a map of so many pixels, the latents halved and rounded up until they fit."""
    height, width = latents
    while height * width > pixels:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != pixels:
        raise EditNotSupported(
            f"an attention map of {pixels} pixels does not fit latents of {latents[1]}x{latents[0]}"
        )
    return height, width


@dataclass
class _Moment:
    """What the denoiser's call under way is about."""

    clock: Clock
    guided: bool
    fraction: float = 0.0
    latents: tuple[int, int] = (0, 0)

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample"]
        self.latents = sample.shape[-2], sample.shape[-1]
        self.fraction = self.clock.fraction(kwargs["timestep"] if "timestep" in kwargs else args[1])


@dataclass
class _Opening:
    """One layer's hooks: what it is asked, what it projected, what goes into its output."""

    name: str
    layer: Any
    moment: _Moment
    look: Callable[[Site], Look | None]
    act: Look | None = None
    seen: dict[str, Tensor] = field(default_factory=dict)

    def hooks(self) -> Iterator[Any]:
        yield self.layer.register_forward_pre_hook(self._ask, with_kwargs=True)
        for part in ("to_q", "to_k", "to_v"):
            yield getattr(self.layer, part).register_forward_hook(self._keep(part))
        yield self.layer.to_out[0].register_forward_pre_hook(self._change)

    def _ask(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        pixels = hidden.shape[1] if hidden.ndim == 3 else hidden.shape[2] * hidden.shape[3]
        height, width = map_size(self.moment.latents, pixels)
        self.act = self.look(Site(self.name, height, width, self.layer.heads, self.moment.fraction))
        self.seen.clear()

    def _keep(self, part: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
            if self.act is not None:
                self.seen[part] = self._prompts_half(output)

        return keep

    def _change(self, module: nn.Module, args: tuple) -> tuple[Tensor, ...] | None:
        if self.act is None:
            return None
        output = args[0]
        if len(self.seen) < 3 or output.ndim != 3:
            raise EditNotSupported(
                f"the attention processor {type(self.layer.processor).__name__} does not go through the layer's own"
                " projections, so its probabilities cannot be opened; unload it, or leave out the edit"
            )
        query, key, value = (self._by_head(self.seen[part]) for part in ("to_q", "to_k", "to_v"))
        self.seen.clear()
        probabilities = torch.softmax(query @ key.transpose(-1, -2) * self.layer.scale, dim=-1)
        difference = (self.act(probabilities) - probabilities) @ value
        changed = output.clone()
        half = self._prompts_half(changed)
        half += difference.transpose(1, 2).flatten(2).to(output.dtype)
        return changed, *args[1:]

    def _prompts_half(self, batch: Tensor) -> Tensor:
        """diffusers puts the negative half first."""
        return batch[len(batch) // 2 :] if self.moment.guided else batch

    def _by_head(self, projected: Tensor) -> Float[Tensor, "image head row dim"]:
        return projected.float().unflatten(-1, (self.layer.heads, -1)).transpose(1, 2)
