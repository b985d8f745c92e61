"""The autoencoder: 128 px to 16 x 16 x 4 latents and back."""

# diffusers and transformers annotate less than they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from t2iedit.shapes.renderer import render_array
from t2iedit.shapes.scenes import random_scene
from t2iedit.shapes.training.loop import Batch, Losses, Schedule, train
from t2iedit.shapes.training.scenes_by_step import picture, rng, scene, to_tensor

CROPS = 0.88
"""The share of steps on crops."""
ROUGHNESS = 0.05
"""Standard deviation, in units of the latents', of the noise that the decoder learns to overlook."""


class Reconstruction(nn.Module):
    """Image to reconstruction, half-size reconstruction from halved latents, and divergence of the latents."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return self.vae.decode(latents).sample, self.vae.decode(halved(latents)).sample, divergence


def halved(images: Tensor) -> Tensor:
    """Images or latents at half their size."""
    return F.avg_pool2d(images, 2)


def new_vae(size: int = 128, channels: tuple[int, ...] = (16, 24, 64, 96)) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=size,
        mid_block_add_attention=False,
    )


def train_vae(
    accelerator: Accelerator, vae: AutoencoderKL, schedule: Schedule, folder: Path, workers: int
) -> None:
    """Train on half-size crops first, a quarter of the cost, then on whole pictures."""
    size = vae.config["sample_size"]
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)

    def make_batch(step: int) -> Batch:
        first = step * schedule.batch_size
        side = size // 2 if step < CROPS * schedule.steps else size
        images = to_tensor([_crop(first + k, size, side) for k in range(schedule.batch_size)])
        generator = torch.Generator().manual_seed(step)
        shape = (schedule.batch_size, 4, side // factor, side // factor)
        return {"images": images, "noise": torch.randn(shape, generator=generator)}

    train(
        accelerator,
        Reconstruction(vae),
        make_batch,
        reconstruction_losses,
        schedule,
        folder,
        workers=workers,
    )
    vae.register_to_config(scaling_factor=latent_scale(vae, accelerator))


def _crop(index: int, size: int, side: int) -> np.ndarray:
    """A window of scene `index` near one of its objects."""
    random = rng("crop", index)
    target = random.choice(scene(index).objects)
    left, top = (
        round(min(max(centre * size - side * random.random(), 0), size - side))
        for centre in (target.x, target.y)
    )
    return picture(index, size)[top : top + side, left : left + side]


def reconstruction_losses(module: nn.Module, batch: Batch, step: int) -> Losses:
    """What is lost, and how far halved latents are from meaning the halved picture.

    The second makes latents behave as pictures do (EQ-VAE, arXiv 2502.09509); without it outlines are written in
    patterns of single latents, which the denoiser takes far longer to learn.
    """
    images = batch["images"]
    output, small, divergence = module(images, batch["noise"])
    whole, half = output.float() - images, small.float() - halved(images)
    return _errors(whole) | {
        "half": half.abs().mean() + 2 * half.square().mean(),
        "kl": 2e-3 * divergence.float(),
    }


def _errors(error: Tensor) -> Losses:
    return {
        "l1": error.abs().mean(),
        "mse": 2 * error.square().mean(),
        "edges": (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()) / 2,
    }


class Decoding(nn.Module):
    """Image to reconstruction, the encoder as it is, from latents as rough as a denoiser leaves them."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad():
            latents = self.vae.encode(images).latent_dist.mean
            rough = latents + ROUGHNESS / self.vae.config["scaling_factor"] * noise
        return self.vae.decode(rough).sample


def train_decoder(
    accelerator: Accelerator, vae: AutoencoderKL, schedule: Schedule, folder: Path, workers: int
) -> None:
    """Sharpen the decoder alone, on whole pictures with more textures and more small objects than usual.

    Latents stay what they were, so this may come after the denoiser.
    """
    size = vae.config["sample_size"]
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)

    def make_batch(step: int) -> Batch:
        indices = range(step * schedule.batch_size, (step + 1) * schedule.batch_size)
        generator = torch.Generator().manual_seed(step)
        shape = (schedule.batch_size, 4, size // 8, size // 8)
        images = to_tensor([_detailed(index, size) for index in indices])
        return {"images": images, "noise": torch.randn(shape, generator=generator)}

    def losses(module: nn.Module, batch: Batch, step: int) -> Losses:
        error = module(batch["images"], batch["noise"]).float() - batch["images"]
        return _errors(error)

    train(accelerator, Decoding(vae), make_batch, losses, schedule, folder, workers=workers)


def _detailed(index: int, size: int) -> np.ndarray:
    random = rng("detailed", index)
    scene = random_scene(random, random.choice((1, 2, 3, 3)), textured=0.3)
    return render_array(scene, size, rng("paint", "detailed", index))


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, accelerator: Accelerator, count: int = 256) -> float:
    """The factor that gives latents unit variance."""
    size = vae.config["sample_size"]
    images = to_tensor([picture(-1 - k, size) for k in range(count)]).to(accelerator.device)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(32)])
    return round(1 / latents.std().item(), 5)
