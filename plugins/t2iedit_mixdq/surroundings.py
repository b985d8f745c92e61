"""What stands between the layers of a packed UNet, in one pass each: attention and gated GELU."""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn

from t2iedit_mixdq.kernels.native import Passes


class GatedGelu(nn.Module):
    """diffusers' GEGLU; its projection keeps its name."""

    def __init__(self, proj: nn.Module, passes: Passes) -> None:
        super().__init__()
        self.proj, self._passes = proj, passes

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._passes.gated_gelu(self.proj(x))


class OnePassAttention(AttnProcessor2_0):
    """diffusers' processor for the layers that Stable Diffusion has; any other layer takes its own way."""

    def __init__(self, passes: Passes) -> None:
        super().__init__()
        self._passes = passes

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        given = hidden_states, encoder_hidden_states, attention_mask, temb
        if attention_mask is not None or hidden_states.ndim != 3 or not _plain(attn):
            return super().__call__(attn, *given, *args, **kwargs)
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        mixed = self._passes.attention(q, k, v, attn.heads, attn.scale)
        return attn.to_out[1](attn.to_out[0](mixed))


def _plain(attn: Any) -> bool:
    norms = attn.group_norm, attn.spatial_norm, attn.norm_q, attn.norm_k, attn.norm_cross
    others = attn.residual_connection, attn.rescale_output_factor != 1
    return all(norm is None for norm in norms) and not any(others)


def shorten(unet: Any, passes: Passes) -> None:
    """Put the passes into a UNet in bfloat16, the one dtype for which they are faster."""
    if not passes.attends or unet.dtype != torch.bfloat16:
        return
    for module in list(unet.modules()):
        for name, child in module.named_children():
            if type(child) is GEGLU:
                setattr(module, name, GatedGelu(child.proj, passes))
    unet.set_attn_processor(OnePassAttention(passes))
