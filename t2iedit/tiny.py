"""Tiny random pipelines of each family, built in memory: the real classes at a size that runs in milliseconds."""

# diffusers and transformers annotate less than they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

FAMILIES = ("sd1", "sd2", "sdxl")
WORDS = ("a", "and", "red", "blue", "cat", "dog", "car", "fog", "photo", "of")


def tiny_pipeline(family: str = "sd1", *, seed: int = 0) -> DiffusionPipeline:
    """An untrained pipeline that paints noise: `sd1`, `sd2` (pads with "!") or `sdxl`; the same for equal seeds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = _sdxl() if family == "sdxl" else _sd(pad="!" if family == "sd2" else None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_tokenizer(pad: str | None = None) -> CLIPTokenizer:
    """CLIP's layout with a few whole words; other words fall into letters. `pad` as SD 2.x has it, else EOT."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = alphabet + [letter + "</w>" for letter in alphabet]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        letters = [*word[:-1], word[-1] + "</w>"]
        while len(letters) > 1:
            merges.append((letters[0], letters[1]))
            letters[:2] = ["".join(letters[:2])]
    pieces += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    extra: dict[str, Any] = {} if pad is None else {"pad_token": pad}
    return CLIPTokenizer(
        vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=77, **extra
    )


def _text_config(tokenizer: CLIPTokenizer, width: int, projection: int = 32) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _unet(width: int, **extra: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        cross_attention_dim=width,
        **extra,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
    )


def _schedule() -> dict[str, Any]:
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _sd(pad: str | None) -> StableDiffusionPipeline:
    tokenizer = tiny_tokenizer(pad)
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer, 32)),
        tokenizer=tokenizer,
        unet=_unet(32),
        scheduler=DDIMScheduler(**_schedule(), clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    first, second = tiny_tokenizer(), tiny_tokenizer("!")
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(first, 32)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(second, 48, projection=40)),
        tokenizer=first,
        tokenizer_2=second,
        unet=_unet(
            80,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=40 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(**_schedule(), steps_offset=1),
    )
