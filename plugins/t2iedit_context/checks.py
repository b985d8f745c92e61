"""What cannot be learned, said before anything is computed."""

from typing import Any

import torch

from t2iedit import Model, UserError, Wording, occurrences
from t2iedit_context.embeddings import LONGEST_NAME
from t2iedit_context.finetuning import check_finetuning
from t2iedit_context.objective import Noised, encoded, predicted
from t2iedit_context.placing import is_one_token, stand_in, worded
from t2iedit_context.probe import probed
from t2iedit_context.prompts import filled
from t2iedit_context.settings import Settings

TINY = 16
"""The side of latents, large enough for any UNet's levels."""


def check_settings(model: Model, settings: Settings) -> None:
    """Raises `UserError` for a model that cannot learn, and for what its encoders cannot take."""
    check_model(model, settings)
    check_placeholder(model, settings.placeholder)
    check_category(model, settings.category)
    for template in (*settings.templates, settings.instance_template):
        if occurrences(template, settings.placeholder):
            raise UserError(
                f'the prompt "{template}" holds the placeholder itself; write {{}} where the concept should stand'
            )
        _check_fits(model, settings, template)
    if settings.resolution is not None:
        model.check_size((settings.resolution, settings.resolution))
    if settings.finetune_unet:
        check_finetuning(model, settings)


def check_model(model: Model, settings: Settings) -> None:
    """Raises `UserError` for a denoiser that predicts no noise of these latents, or whose attention cannot be read."""
    parts: dict[str, Any] = model.pipeline.components
    if "unet" not in parts:
        raise UserError(
            f'a model of the family "{model.family}" cannot learn concepts; give one of SD 1.x, SD 2.x or SDXL'
        )
    reads, given = parts["unet"].config.in_channels, parts["vae"].config.latent_channels
    if reads != given:
        raise UserError(
            f"this denoiser reads {reads} channels and a picture has {given}, as inpainting checkpoints do; learn on"
            " the checkpoint it was made from, whose concepts fit here too"
        )
    if settings.attention_weight:
        with probed(model.denoiser):
            pass
    check_differentiable(model)


@torch.enable_grad()
def check_differentiable(model: Model) -> None:
    """Raises `UserError` for a denoiser through which no gradient comes, found by one pass on a tiny picture."""
    embeddings = encoded(model, [e.tokenize("") for e in model.encoders], {})
    told = tuple(e.with_hidden(e.hidden.detach().requires_grad_()) for e in embeddings)
    unet: Any = model.denoiser
    latents = torch.zeros(1, unet.config.in_channels, TINY, TINY, device=model.device)
    at = torch.zeros(1, dtype=torch.long, device=model.device)
    if not predicted(model, told, Noised(latents, at, latents)).requires_grad:
        raise UserError(
            "no gradient comes through this model's denoiser; learn on one that is not quantised"
        )


def check_placeholder(model: Model, name: str) -> None:
    """Raises `UserError` for a name that cannot stand in a prompt, or is a word already."""
    if len(name) > LONGEST_NAME:
        raise UserError(
            f"a placeholder has at most {LONGEST_NAME} characters, not {len(name)}; shorten it"
        )
    if not name or any(c.isspace() or c == "," for c in name) or not occurrences(f"a {name}", name):
        raise UserError(
            f'"{name}" cannot be a placeholder; give a name without spaces and commas, like "<my-toy>"'
        )
    if any(is_one_token(name, [encoder]) for encoder in model.encoders):
        raise UserError(
            f'the placeholder "{name}" is a word that this model knows; give a name that is none, like "<{name}>"'
        )


def check_category(model: Model, category: str) -> None:
    """Raises `UserError` for a category that is not one token."""
    for encoder in model.encoders:
        read = encoder.tokenize(category)
        if len(read.words) != 1:
            pieces = encoder.tokenizer.convert_ids_to_tokens(read.ids[read.words].tolist())
            listed = ", ".join(str(piece).removesuffix("</w>") for piece in pieces)
            raise UserError(
                f'the category "{category}" is {len(pieces)} tokens for the encoder "{encoder.name}"'
                f" ({listed or 'none'}); give one word that it knows, the plainest for what the pictures show"
            )


def _check_fits(model: Model, settings: Settings, template: str) -> None:
    prompt = Wording.of(filled(template, settings.placeholder, settings.category))
    words = " ".join([stand_in(settings.category, model.encoders)] * settings.vectors)
    for encoder in model.encoders:
        tokens = encoder.tokenize(worded(prompt, settings.placeholder, words))
        if tokens.lost:
            raise UserError(
                f'the prompt "{template}" is too long for the encoder "{encoder.name}", which reads'
                f" {len(tokens.ids)} tokens; shorten it"
            )
