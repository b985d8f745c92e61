"""What the latents look like while the denoising goes on, cheaply."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

SMALL = 20_000_000
"""Parameters of a decoder that is fast enough to be asked itself."""
# Linear fits of RGB to the latents of the two well-known autoencoders, as community previewers use them.
SD = torch.tensor(
    [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]]
)
SDXL = torch.tensor(
    [
        [0.3651, 0.4232, 0.4341],
        [-0.2533, -0.0042, 0.1068],
        [0.1076, 0.1111, -0.0362],
        [-0.3165, -0.2492, -0.2188],
    ]
)
LONGEST = 512
"""Pixels of a preview's longer side."""


@torch.no_grad()
def preview(model: Any, latents: Tensor) -> Image.Image:
    """The first image of a batch of latents (image channel height width), decoded or guessed."""
    latents = latents[:1]
    vae = model.pipeline.vae
    if sum(parameter.numel() for parameter in vae.parameters()) < SMALL:
        decoded = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample[0]
        return as_image(decoded.float() / 2 + 0.5)
    return enlarged(as_image(guessed(latents[0].float().cpu(), model.family)))


def guessed(latents: Tensor, family: str) -> Tensor:
    """RGB from 0 to 1 (3 height width) by a linear fit; the first channels, stretched, where none is known."""
    if latents.shape[0] == 4:
        factors = SDXL if family == "sdxl" else SD
        return torch.einsum("chw,cr->rhw", latents, factors) / 2 + 0.5
    some = latents[[0, 1 % len(latents), 2 % len(latents)]]
    low, high = some.amin(dim=(1, 2), keepdim=True), some.amax(dim=(1, 2), keepdim=True)
    return (some - low) / (high - low).clamp(min=1e-6)


def as_image(colours: Tensor) -> Image.Image:
    """Values from 0 to 1 (3 height width) as a picture."""
    values = (colours.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, LONGEST // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
