"""The pictures of many prompts from few passes of the denoiser, so that a GPU has something to do."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

import t2iedit

BATCH = 36
"""Pictures at once; a guided denoiser has twice as many rows."""


def painted(model: Any, prompts: Sequence[str], seeds: int, **how: Any) -> list[Image.Image]:
    """Every prompt with the seeds 0, 1 and so on. A prompt is encoded, and fitted, once for all of them."""
    pictures: list[Image.Image] = []
    together = max(1, BATCH // seeds)
    with model.lock:
        model.pipeline.set_progress_bar_config(disable=True)
        for first in range(0, len(prompts), together):
            some = prompts[first : first + together]
            told = [model.inputs(t2iedit.encode(model, prompt, **how)) for prompt in some]
            pictures += _together(model, told, seeds)
    return pictures


def _together(model: Any, told: Sequence[dict[str, Any]], seeds: int) -> list[Image.Image]:
    """Each seed has its noise to itself, whatever else is in the batch."""
    width, height = model.defaults.size
    return model.pipeline(
        **{name: torch.cat([each[name] for each in told]) for name in told[0]},
        width=width,
        height=height,
        num_inference_steps=model.defaults.steps,
        guidance_scale=model.defaults.guidance_scale,
        num_images_per_prompt=seeds,
        generator=[torch.Generator().manual_seed(seed) for _ in told for seed in range(seeds)],
    ).images
