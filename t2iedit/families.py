"""The families of models: which encoders they have, and how their embeddings are joined."""

import inspect
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from t2iedit.conditioning import Conditioning
from t2iedit.errors import ModelNotUsable
from t2iedit.hookspecs import hookimpl
from t2iedit.model import Defaults, Model
from t2iedit.text import TextEncoder


class StableDiffusion(Model):
    """SD 1.x and 2.x, and their Turbo forms: one CLIP, its last layer."""

    family = "sd"

    def __init__(self, pipeline: Any) -> None:
        encoder = TextEncoder("clip", pipeline.tokenizer, pipeline.text_encoder)
        super().__init__(pipeline, (encoder,), default_settings(pipeline))

    def denoiser_inputs(self, conditioning: Conditioning, batch: int) -> dict[str, Any]:
        named = self.inputs(conditioning)
        return {"encoder_hidden_states": _halves(named, "prompt_embeds", batch)}


class StableDiffusionXL(Model):
    """SDXL and SDXL-Turbo: CLIP-L and OpenCLIP-G, penultimate layers joined on features, G's pooled vector."""

    family = "sdxl"

    def __init__(self, pipeline: Any) -> None:
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


class StableDiffusion3(Model):
    """SD3 and 3.5: two CLIPs and T5, which is needed. Attention edits do not reach its joint attention."""

    family = "sd3"

    def __init__(self, pipeline: Any) -> None:
        layers: dict[str, Any] = {"layer": -2, "pooled": "text_embeds"}
        encoders = (
            TextEncoder("clip_l", pipeline.tokenizer, pipeline.text_encoder, **layers),
            TextEncoder("clip_g", pipeline.tokenizer_2, pipeline.text_encoder_2, **layers),
            TextEncoder("t5", pipeline.tokenizer_3, pipeline.text_encoder_3, window=256),
        )
        super().__init__(pipeline, encoders, default_settings(pipeline))

    def denoiser_inputs(self, conditioning: Conditioning, batch: int) -> dict[str, Any]:
        named = self.inputs(conditioning)
        return {
            "encoder_hidden_states": _halves(named, "prompt_embeds", batch),
            "pooled_projections": _halves(named, "pooled_prompt_embeds", batch),
        }


class Flux(Model):
    """FLUX.1: T5's rows and CLIP's pooled vector. Its guidance is told to the denoiser, so there is no negative half."""

    family = "flux"
    timesteps = 1000.0

    def __init__(self, pipeline: Any) -> None:
        encoders = (
            TextEncoder(
                "clip_l", pipeline.tokenizer, pipeline.text_encoder, pooled="pooler_output"
            ),
            TextEncoder("t5", pipeline.tokenizer_2, pipeline.text_encoder_2, window=512),
        )
        defaults = default_settings(pipeline)
        if not pipeline.transformer.config.guidance_embeds:
            # schnell, distilled to few steps without guidance.
            defaults = Defaults(4, 0.0, defaults.size)
        super().__init__(pipeline, encoders, defaults)

    def guided(self, guidance_scale: float) -> bool:
        return False

    @property
    def size_step(self) -> int:
        return self.pipeline.vae_scale_factor * 2

    def denoiser_inputs(self, conditioning: Conditioning, batch: int) -> dict[str, Any]:
        named = self.inputs(conditioning)
        return {
            "encoder_hidden_states": _halves(named, "prompt_embeds", batch),
            "pooled_projections": _halves(named, "pooled_prompt_embeds", batch),
        }


FAMILIES: dict[type[Model], tuple[type, ...]] = {
    StableDiffusion: (
        diffusers.StableDiffusionPipeline,
        diffusers.StableDiffusionImg2ImgPipeline,
        diffusers.StableDiffusionInpaintPipeline,
        diffusers.StableDiffusionControlNetPipeline,
        diffusers.StableDiffusionControlNetImg2ImgPipeline,
        diffusers.StableDiffusionControlNetInpaintPipeline,
    ),
    StableDiffusionXL: (
        diffusers.StableDiffusionXLPipeline,
        diffusers.StableDiffusionXLImg2ImgPipeline,
        diffusers.StableDiffusionXLInpaintPipeline,
        diffusers.StableDiffusionXLControlNetPipeline,
        diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
        diffusers.StableDiffusionXLControlNetInpaintPipeline,
    ),
    StableDiffusion3: (
        diffusers.StableDiffusion3Pipeline,
        diffusers.StableDiffusion3Img2ImgPipeline,
        diffusers.StableDiffusion3InpaintPipeline,
    ),
    Flux: (diffusers.FluxPipeline, diffusers.FluxImg2ImgPipeline, diffusers.FluxInpaintPipeline),
}
"""The pipelines of each family: one way of being told what to paint, several things to begin from."""


@hookimpl(trylast=True)
def wrap_pipeline(pipeline: DiffusionPipeline) -> Model | None:
    for family, pipelines in FAMILIES.items():
        if isinstance(pipeline, pipelines):
            _check_encoders(pipeline)
            return family(pipeline)  # type: ignore[call-arg]
    return None


def _check_encoders(pipeline: DiffusionPipeline) -> None:
    """SDXL's refiner has one encoder, and SD3 is often loaded without T5."""
    read = ("text_encoder", "tokenizer")
    missing = [k for k, part in pipeline.components.items() if k.startswith(read) and part is None]
    if missing:
        raise ModelNotUsable(
            f"this {type(pipeline).__name__} has no {', '.join(missing)}; open it with all its text encoders"
        )


SIDE = 64
"""Of latents, where a configuration does not say."""


def default_settings(pipeline: Any) -> Defaults:
    """The pipeline's own defaults; a Turbo checkpoint, told by its scheduler, wants one step and no guidance."""
    call = inspect.signature(type(pipeline).__call__).parameters
    unet = getattr(pipeline, "unet", None)
    side = pipeline.default_sample_size if unet is None else unet.config.sample_size or SIDE
    height, width = (side, side) if isinstance(side, int) else side
    size = width * pipeline.vae_scale_factor, height * pipeline.vae_scale_factor
    if _is_turbo(pipeline.scheduler):
        return Defaults(1, 0.0, size)
    return Defaults(call["num_inference_steps"].default, call["guidance_scale"].default, size)


def _is_turbo(scheduler: Any) -> bool:
    """sd-turbo and sdxl-turbo ship an Euler scheduler with trailing timesteps, as do models of zero terminal SNR."""
    config = scheduler.config
    trailing = config.get("timestep_spacing") == "trailing"
    from_pure_noise = config.get("rescale_betas_zero_snr", False)
    return trailing and not from_pure_noise and type(scheduler).__name__.startswith("Euler")


def _halves(named: dict[str, Tensor], key: str, batch: int) -> Tensor:
    """The negative half, if the batch has one, before the prompt's, as diffusers puts them."""
    sides = [named[key]]
    if f"negative_{key}" in named:
        sides.insert(0, named[f"negative_{key}"])
    return torch.cat([side.repeat_interleave(batch // len(sides), dim=0) for side in sides])
