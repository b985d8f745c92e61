"""How much cross-attention each token gets, read off explicit probabilities, layer by layer."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from t2iedit import EditNotSupported
from t2iedit_context.regularisation import mean_map

KNOWN = (AttnProcessor, AttnProcessor2_0)


@dataclass(frozen=True, slots=True)
class Means:
    """Each cross-attention layer's mean map (batch x tokens), and how many values a token's maps have in it."""

    layers: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def at(self, rows: list[int]) -> dict[str, Tensor]:
        """The mean maps at these tokens, by layer."""
        return {name: means[:, rows] for name, means in self.layers.items()}


class Probe:
    """Opened cross-attention; `reading` collects what the denoiser's calls inside it show."""

    def __init__(self) -> None:
        # With gradient checkpointing another thread may run the layers again, in the backward pass.
        self.own = threading.local()

    @contextmanager
    def reading(self) -> Iterator[Means]:
        self.own.means = means = Means()
        try:
            yield means
        finally:
            self.own.means = None

    def see(self, layer: str, probs: Tensor) -> None:
        """Take note of one call's probabilities (batch x heads x pixels x tokens)."""
        means, found = mean_map(probs), getattr(self.own, "means", None)
        if found is not None:
            found.layers[layer] = means
            found.sizes[layer] = probs.shape[1] * probs.shape[2]


@contextmanager
def probed(denoiser: nn.Module) -> Iterator[Probe]:
    """While this holds, cross-attention computes its probabilities in the open; afterwards it is as it was.

    Keep it around the backward pass too: gradient checkpointing runs the layers again. Raises `EditNotSupported` for
    attention that other code has replaced.
    """
    unet: Any = denoiser
    before = dict(unet.attn_processors)
    probe = Probe()
    opened = {
        name: _Opened(name, probe) if _is_cross(name) else processor
        for name, processor in before.items()
    }
    for name, processor in before.items():
        if _is_cross(name) and type(processor) not in KNOWN:
            raise EditNotSupported(
                f"the denoiser's cross-attention has a {type(processor).__name__}, whose probabilities core cannot read;"
                " leave out what put it there, or set the attention weight to 0"
            )
    unet.set_attn_processor(dict(opened))
    try:
        yield probe
    finally:
        unet.set_attn_processor(before)


def _is_cross(name: str) -> bool:
    return ".attn2." in name


class _Opened:
    """diffusers' `AttnProcessor`, which computes softmax(Q K^T) explicitly, with an eye on it."""

    def __init__(self, layer: str, probe: Probe) -> None:
        self.layer, self.probe = layer, probe

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        batch, tokens, _ = states.shape
        mask = attn.prepare_attention_mask(attention_mask, tokens, batch)
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(states))
        value = attn.head_to_batch_dim(attn.to_v(states))
        probs = attn.get_attention_scores(query, key, mask)
        self.probe.see(self.layer, probs.unflatten(0, (batch, attn.heads)))
        attended = attn.batch_to_head_dim(torch.bmm(probs, value))
        attended = attn.to_out[1](attn.to_out[0](attended))
        if attn.residual_connection:
            attended = attended + hidden_states
        return attended / attn.rescale_output_factor
