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
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

FAMILIES = ("sd1", "sd2", "sdxl")
"""Those whose attention edits can reach."""
TRANSFORMERS = ("sd3", "flux")
WORDS = ("a", "and", "red", "blue", "cat", "dog", "car", "fog", "photo", "of")


def tiny_pipeline(family: str = "sd1", *, seed: int = 0) -> DiffusionPipeline:
    """An untrained pipeline that paints noise, the same for equal seeds.

    `sd1`, `sd2` (pads with "!"), `sdxl`, `sd3` or `flux`.
    """
    builders = {"sd1": _sd, "sd2": lambda: _sd(pad="!"), "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline: Any = builders[family]()
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


def _vae(**extra: Any) -> AutoencoderKL:
    values: dict[str, Any] = {"latent_channels": 4} | extra
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 16),
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
        **values,
    )


def _schedule() -> dict[str, Any]:
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _sd(pad: str | None = None) -> StableDiffusionPipeline:
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


def tiny_t5_tokenizer() -> PreTrainedTokenizerFast:
    """T5's layout: no BOS, pieces that swallow the space before them, "</s>" at the end."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *("▁" + word for word in WORDS), *letters]
    scores = [0.0, 0.0, 0.0, -4.0, *[-1.0] * len(WORDS), *[-6.0] * len(letters)]
    tokenizer = Tokenizer(Unigram(list(zip(pieces, scores, strict=True)), unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **special)


def _t5(tokenizer: PreTrainedTokenizerFast, width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=2 * width, num_layers=2, num_heads=2
    )
    return T5EncoderModel(config)


def _sd3() -> StableDiffusion3Pipeline:
    first, second, third = tiny_tokenizer(), tiny_tokenizer("!"), tiny_t5_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            # diffusers' inpainting knows SD3 by its 16 channels.
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=64,
            pooled_projection_dim=32 + 40,
            out_channels=16,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(
            latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06
        ),
        text_encoder=CLIPTextModelWithProjection(_text_config(first, 16)),
        tokenizer=first,
        text_encoder_2=CLIPTextModelWithProjection(_text_config(second, 24, projection=40)),
        tokenizer_2=second,
        text_encoder_3=_t5(third, 64),
        tokenizer_3=third,
    )


def _flux() -> FluxPipeline:
    first, second = tiny_tokenizer(), tiny_t5_tokenizer()
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(
            latent_channels=1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06
        ),
        text_encoder=CLIPTextModel(_text_config(first, 32)),
        tokenizer=first,
        text_encoder_2=_t5(second, 32),
        tokenizer_2=second,
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
    )
    pipeline.default_sample_size = 8
    return pipeline
