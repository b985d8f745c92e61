"""What stands between the layers of a packed UNet, in one pass each: attention, gated GELU, group norm with SiLU."""

from types import MethodType
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional

from t2iedit_mixdq.kernels.native import Passes


class GatedGelu(nn.Module):
    """diffusers' GEGLU; its projection keeps its name."""

    def __init__(self, proj: nn.Module, passes: Passes) -> None:
        super().__init__()
        self.proj, self._passes = proj, passes

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._passes.gated_gelu(self.proj(x))


class OnePassNorm(nn.Module):
    """A group norm of images, and the SiLU after it if it is `activated`."""

    def __init__(self, norm: nn.GroupNorm, passes: Passes, *, activated: bool) -> None:
        super().__init__()
        self.norm, self._passes, self._activated = norm, passes, activated

    def forward(self, x: Tensor) -> Tensor:
        return self._passes.group_norm(x, self.norm, activated=self._activated)


class SiluOfTime(nn.Module):
    """A residual block's SiLU, of the time embedding alone: images come out of its norms with theirs."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.ndim == 4 else functional.silu(x)


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


def _output_as_it_lies(
    self: Transformer2DModel,
    hidden_states: Tensor,
    residual: Tensor,
    batch_size: int,
    height: int,
    width: int,
    inner_dim: int,
) -> Tensor:
    """diffusers' method, less the copy that puts channels first: the next layer would have to put them last again."""
    if self.use_linear_projection:
        hidden_states = self.proj_out(hidden_states)
    image = hidden_states.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
    return residual + (image if self.use_linear_projection else self.proj_out(image))


def _norms_meet_silu(block: Any) -> bool:
    return isinstance(block.nonlinearity, nn.SiLU) and block.time_embedding_norm == "default"


def shorten(unet: Any, passes: Passes) -> None:
    """Put the passes into a UNet in bfloat16, the one dtype for which they are faster."""
    if not passes.attends or unet.dtype != torch.bfloat16:
        return
    for module in list(unet.modules()):
        for name, child in module.named_children():
            if type(child) is GEGLU:
                setattr(module, name, GatedGelu(child.proj, passes))
        if type(module) is Transformer2DModel:
            _normalise(module, "norm", passes, activated=False)
            module._get_output_for_continuous_inputs = MethodType(_output_as_it_lies, module)
        if type(module) is ResnetBlock2D and _norms_meet_silu(module):
            for name in ("norm1", "norm2"):
                _normalise(module, name, passes, activated=True)
            module.nonlinearity = SiluOfTime()
    unet.set_attn_processor(OnePassAttention(passes))


def _normalise(module: nn.Module, name: str, passes: Passes, *, activated: bool) -> None:
    setattr(module, name, OnePassNorm(getattr(module, name), passes, activated=activated))
