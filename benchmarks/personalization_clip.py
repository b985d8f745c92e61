"""CLIP-T and CLIP-I, the literature's scores: by a CLIP of transformers, or by one of the bundled world's own.

The bundled model has CLIP's text tower. Its picture tower is not in the package, so one is trained here, by contrast with
the frozen text tower, in a few minutes; it never sees the new concepts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from t2iedit.opening import computes_in_bfloat16
from t2iedit.shapes.training.scenes_by_step import to_tensor
from t2iedit.shapes.training.text import PICTURE, Contrast, contrast_batch, contrast_losses

STEPS, BATCH, RATE = 400, 128, 1e-3
HELD_OUT = 10**6
"""A step whose scenes no training reaches."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Unit vectors of pictures and of texts, and what the tower is worth: the share of pictures that find their caption."""

    looks: Callable[[Sequence[Image.Image]], Tensor]
    words: Callable[[Sequence[str]], Tensor]
    accuracy: float | None = None


def pretrained(source: str) -> Clip:
    """A CLIP of transformers, from a folder or hub id."""
    from transformers import CLIPModel, CLIPProcessor

    clip: Any = CLIPModel.from_pretrained(source)
    processor: Any = CLIPProcessor.from_pretrained(source)

    @torch.no_grad()
    def looks(images: Sequence[Image.Image]) -> Tensor:
        pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
        return normalize(clip.get_image_features(pixel_values=pixels), dim=-1)

    @torch.no_grad()
    def words(texts: Sequence[str]) -> Tensor:
        read = processor(text=list(texts), return_tensors="pt", padding=True)
        return normalize(clip.get_text_features(**read), dim=-1)

    return Clip(looks, words)


def of_the_world(model: Any, folder: Path, steps: int = STEPS) -> Clip:
    """The bundled model's text tower and a picture tower trained to meet it, kept in `folder`."""
    encoder = model.encoders[0]
    config = encoder.transformer.config
    with torch.random.fork_rng():
        torch.manual_seed(0)
        contrast = Contrast(encoder.transformer, config.hidden_size, config.num_hidden_layers)
    contrast.to(model.device)
    path = folder / f"clip-{model.fingerprint}-{steps}.safetensors"
    if path.exists():
        contrast.load_state_dict(load_file(path), strict=False)
    else:
        _train(contrast, encoder.tokenizer, steps)
        own = {k: v for k, v in contrast.state_dict().items() if not k.startswith("text.")}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(own, path)
    contrast.eval()

    @torch.no_grad()
    def looks(images: Sequence[Image.Image]) -> Tensor:
        small = [np.asarray(i.convert("RGB").resize((PICTURE, PICTURE))) for i in images]
        pooled = contrast.vision(pixel_values=to_tensor(small).to(model.device)).pooler_output
        return normalize(contrast.visual_projection(pooled), dim=-1).cpu()

    @torch.no_grad()
    def words(texts: Sequence[str]) -> Tensor:
        tokens = [encoder.tokenize(text) for text in texts]
        ends = [len(read.words) + 1 for read in tokens]
        rows = [e.hidden[end] for e, end in zip(encoder.encode_batch(tokens), ends, strict=True)]
        return normalize(contrast.text_projection(torch.stack(rows)), dim=-1).cpu()

    return Clip(looks, words, _accuracy(contrast, encoder.tokenizer))


def _train(contrast: Contrast, tokenizer: Any, steps: int) -> None:
    """Everything but the text tower, which stays as the model has it."""
    own = [p for n, p in contrast.named_parameters() if not n.startswith("text.")]
    optimizer = torch.optim.AdamW(own, lr=RATE)
    device = own[0].device
    quick = device.type == "cuda" or computes_in_bfloat16()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    with torch.enable_grad():
        for step in tqdm(range(steps), desc="picture tower", unit="step"):
            batch = _batch(tokenizer, step, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=quick):
                loss = contrast_losses(contrast, batch, step)["contrast"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def _accuracy(contrast: Contrast, tokenizer: Any) -> float:
    batch = _batch(tokenizer, HELD_OUT, contrast.log_scale.device)
    similarity, _ = contrast(batch["ids"], batch["ends"], batch["images"])
    found = batch["ids"][similarity.argmax(dim=0)]
    return float((found == batch["ids"]).all(dim=-1).float().mean())


def _batch(tokenizer: Any, step: int, device: torch.device) -> dict[str, Tensor]:
    return {k: v.to(device) for k, v in contrast_batch(tokenizer, step, BATCH).items()}
