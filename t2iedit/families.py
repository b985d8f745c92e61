"""The families of models: which encoders they have, and how their embeddings are joined."""

import inspect
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor

from t2iedit.conditioning import Conditioning
from t2iedit.hookspecs import hookimpl
from t2iedit.model import Defaults, Model
from t2iedit.text import TextEncoder


class StableDiffusion(Model):
    """SD 1.x and 2.x, and their Turbo forms: one CLIP, its last layer."""

    family = "sd"

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        encoder = TextEncoder("clip", pipeline.tokenizer, pipeline.text_encoder)
        super().__init__(pipeline, (encoder,), default_settings(pipeline))

    def denoiser_inputs(self, conditioning: Conditioning, batch: int) -> dict[str, Any]:
        named = self.inputs(conditioning)
        return {"encoder_hidden_states": _halves(named, "prompt_embeds", batch)}


class StableDiffusionXL(Model):
    """SDXL and SDXL-Turbo: CLIP-L and OpenCLIP-G, penultimate layers joined on features, G's pooled vector."""

    family = "sdxl"

    def __init__(self, pipeline: StableDiffusionXLPipeline) -> None:
        encoders = (
            TextEncoder("clip_l", pipeline.tokenizer, pipeline.text_encoder, layer=-2),
            TextEncoder(
                "clip_g",
                pipeline.tokenizer_2,
                pipeline.text_encoder_2,
                layer=-2,
                pooled="text_embeds",
            ),
        )
        zero = bool(pipeline.config["force_zeros_for_empty_prompt"])
        super().__init__(pipeline, encoders, default_settings(pipeline), zero_negative=zero)

    def denoiser_inputs(self, conditioning: Conditioning, batch: int) -> dict[str, Any]:
        named = self.inputs(conditioning)
        return {
            "encoder_hidden_states": _halves(named, "prompt_embeds", batch),
            "added_cond_kwargs": {"text_embeds": _halves(named, "pooled_prompt_embeds", batch)},
        }


@hookimpl(trylast=True)
def wrap_pipeline(pipeline: DiffusionPipeline) -> Model | None:
    if isinstance(pipeline, StableDiffusionPipeline):
        return StableDiffusion(pipeline)
    if isinstance(pipeline, StableDiffusionXLPipeline):
        return StableDiffusionXL(pipeline)
    return None


def default_settings(pipeline: Any) -> Defaults:
    """The pipeline's own defaults; a Turbo checkpoint, told by its scheduler, wants one step and no guidance."""
    call = inspect.signature(type(pipeline).__call__).parameters
    side = pipeline.unet.config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    size = width * pipeline.vae_scale_factor, height * pipeline.vae_scale_factor
    if _is_turbo(pipeline.scheduler):
        return Defaults(1, 0.0, size)
    return Defaults(call["num_inference_steps"].default, call["guidance_scale"].default, size)


def _is_turbo(scheduler: Any) -> bool:
    """sd-turbo and sdxl-turbo are the checkpoints that ship an Euler scheduler with trailing timesteps."""
    trailing = scheduler.config.get("timestep_spacing") == "trailing"
    return trailing and type(scheduler).__name__.startswith("Euler")


def _halves(named: dict[str, Tensor], key: str, batch: int) -> Tensor:
    """The negative half, if the batch has one, before the prompt's, as diffusers puts them."""
    sides = [named[key]]
    if f"negative_{key}" in named:
        sides.insert(0, named[f"negative_{key}"])
    return torch.cat([side.repeat_interleave(batch // len(sides), dim=0) for side in sides])
