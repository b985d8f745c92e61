"""UNets that recipes are known for, by their configuration alone: shapes and wiring without a single weight."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "sdxl": {
        "sample_size": 128,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
}
"""SDXL's and SD 1.5's own configurations, where they differ from the defaults of diffusers."""


def hollow(config: Any) -> UNet2DConditionModel:
    """The UNet of a configuration on torch's meta device: shapes only, no memory."""
    # The names that from_config would warn about are those diffusers itself adds when it saves.
    known = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    with torch.device("meta"):
        return UNet2DConditionModel(**known).eval()


def example_inputs(unet: Any, size: int | Sequence[int], batch: int = 1) -> dict[str, Any]:
    """Zeros of the shapes that the UNet wants for `size` latents, on its own device and in its dtype."""
    height, width = (size, size) if isinstance(size, int) else size
    like: dict[str, Any] = {"device": unet.device, "dtype": unet.dtype}
    config = unet.config
    inputs: dict[str, Any] = {
        "sample": torch.zeros(batch, config.in_channels, height, width, **like),
        "timestep": torch.zeros((), device=unet.device),
        "encoder_hidden_states": torch.zeros(batch, 77, config.cross_attention_dim, **like),
    }
    if config.addition_embed_type == "text_time":
        ids = 6
        pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.zeros(batch, pooled, **like),
            "time_ids": torch.zeros(batch, ids, **like),
        }
    return inputs
