"""The text encoder: CLIP trained by contrast with pictures, its rows kept close to their own words."""

# diffusers and transformers annotate less than they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from t2iedit.shapes.captions import caption
from t2iedit.shapes.renderer import render_array
from t2iedit.shapes.scenes import HELD_OUT, Scene
from t2iedit.shapes.training.loop import Batch, Losses, Schedule, train
from t2iedit.shapes.training.scenes_by_step import rng, scene, to_tensor

PICTURE = 64
LONGEST = 32
"""Positions trained on; captions are shorter, and a causal encoder's earlier rows do not see later ones."""
WORD_WEIGHT = 0.1
"""Of the head that reads each row's own word back: without it neighbouring rows smear into one another."""


class Contrast(nn.Module):
    """A text and a vision tower that meet in one space, and a head that reads a row's own word."""

    def __init__(self, text: CLIPTextModel, width: int, layers: int) -> None:
        super().__init__()
        vision = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 40,
            image_size=PICTURE,
            patch_size=8,
            attn_implementation="eager",
        )
        self.text, self.vision = text, CLIPVisionModel(vision)
        self.text_projection = nn.Linear(text.config.hidden_size, width, bias=False)
        self.visual_projection = nn.Linear(width, width, bias=False)
        self.word_head = nn.Linear(text.config.hidden_size, text.config.vocab_size)
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    def forward(self, ids: Tensor, ends: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Similarities (caption, picture) and each row's word logits (caption, seq, vocab)."""
        rows = self.text(ids).last_hidden_state
        captions = self.text_projection(rows[torch.arange(len(rows)), ends])
        pictures = self.visual_projection(self.vision(images).pooler_output)
        scale = self.log_scale.clamp(max=4.6).exp()
        similarity = F.normalize(captions, dim=-1) @ F.normalize(pictures, dim=-1).T
        return scale * similarity.float(), self.word_head(rows).float()


def new_text_encoder(tokenizer: CLIPTokenizer, width: int = 160, layers: int = 4) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 40,
            max_position_embeddings=77,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",
        )
    )


def train_text_encoder(
    accelerator: Accelerator,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    schedule: Schedule,
    folder: Path,
    workers: int,
) -> None:
    def make_batch(step: int) -> Batch:
        return contrast_batch(tokenizer, step, schedule.batch_size)

    module = Contrast(text, text.config.hidden_size, text.config.num_hidden_layers)
    train(accelerator, module, make_batch, contrast_losses, schedule, folder, workers=workers)


def contrast_batch(tokenizer: CLIPTokenizer, step: int, batch_size: int) -> Batch:
    """Captioned pictures; half of the scenes of several objects come with a swapped twin."""
    captions, pictures = [], []
    index = step * batch_size
    while len(captions) < batch_size:
        index += 1
        original, template = scene(index), ("caption", index, step)
        for version in [original, *_twins(original, index)]:
            captions.append(caption(version, rng(*template)))
            pictures.append(render_array(version, PICTURE, rng("paint", index)))
    encoded = tokenizer(
        captions[:batch_size],
        padding="max_length",
        max_length=LONGEST,
        truncation=True,
        return_tensors="pt",
    )
    ids = encoded.input_ids
    ends = (ids == tokenizer.eos_token_id).int().argmax(dim=1)
    return {"ids": ids, "ends": ends, "images": to_tensor(pictures[:batch_size])}


def contrast_losses(module: nn.Module, batch: Batch, step: int) -> Losses:
    ids, ends = batch["ids"], batch["ends"]
    logits, words = module(ids, ends, batch["images"])
    # Equal captions describe each other's pictures, so both count as right.
    same = (ids[:, None] == ids[None]).all(dim=-1).float()
    target = same / same.sum(dim=1, keepdim=True)
    contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    inner = torch.arange(ids.shape[1], device=ids.device)[None] < ends[:, None]
    inner[:, 0] = False
    own_word = F.cross_entropy(words[inner], ids[inner])
    return {"contrast": contrast, "own_word": WORD_WEIGHT * own_word}


def _twins(original: Scene, index: int) -> list[Scene]:
    """At most one: the scene with two objects' colours or shapes exchanged, unless held out of training."""
    random = rng("twin", index)
    if len(original.objects) < 2 or random.random() < 0.5:
        return []
    first, second, *rest = original.objects
    attribute = random.choice(("color", "shape"))
    mine, theirs = getattr(first, attribute), getattr(second, attribute)
    swapped = (
        replace(first, **{attribute: theirs}),
        replace(second, **{attribute: mine}),
        *rest,
    )
    known = all((item.color, item.shape) not in HELD_OUT for item in swapped)
    return [replace(original, objects=swapped)] if known and mine != theirs else []
