"""The autoencoder: 128 px to 16 x 16 x 4 latents and back."""

# diffusers and transformers annotate less than they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false

import copy
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from t2iedit.shapes.renderer import render_array
from t2iedit.shapes.scenes import Scene, random_scene
from t2iedit.shapes.training.loop import Batch, Losses, Schedule, train
from t2iedit.shapes.training.scenes_by_step import picture, rng, to_tensor

CROPS = 0.88
"""The share of steps on crops."""
TEXTURED = 0.4
"""The share of objects with a texture; of the denoiser's scenes alone, 0.12, the autoencoder paints a dark stripe as background."""
KEPT = 0.3
"""The weight of how far latents of plain scenes move where an autoencoder is trained on."""
ROUGHNESS = 0.05
"""Standard deviation, in units of the latents', of the noise that the decoder learns to overlook."""


class Reconstruction(nn.Module):
    """Image to reconstruction, half-size reconstruction from halved latents, divergence of the latents, their mean."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        whole, half = self.vae.decode(latents).sample, self.vae.decode(halved(latents)).sample
        return whole, half, divergence, posterior.mean


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
    accelerator: Accelerator,
    vae: AutoencoderKL,
    schedule: Schedule,
    folder: Path,
    workers: int,
    *,
    trained_on: bool = False,
) -> None:
    """Train on half-size crops first, a quarter of the cost, then on whole pictures.

    One that is `trained_on` keeps the latents of plain scenes about where they were, so that its denoiser has little to
    learn anew.
    """
    size = vae.config["sample_size"]
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    before = _frozen(vae).to(accelerator.device) if trained_on else None

    def make_batch(step: int) -> Batch:
        first = step * schedule.batch_size
        side = size // 2 if step < CROPS * schedule.steps else size
        indices = range(first, first + schedule.batch_size)
        generator = torch.Generator().manual_seed(step)
        shape = (schedule.batch_size, 4, side // factor, side // factor)
        return {
            "images": to_tensor([_crop(index, size, side) for index in indices]),
            "plain": torch.tensor([_is_plain(_detailed_scene(index)) for index in indices]),
            "noise": torch.randn(shape, generator=generator),
        }

    def losses(module: nn.Module, batch: Batch, step: int) -> Losses:
        terms, latents = reconstruction_losses(module, batch)
        if before is not None:
            with torch.no_grad():
                was = before.encode(batch["images"]).latent_dist.mean
            scale = vae.config["scaling_factor"]
            terms["moved"] = KEPT * moved(scale * latents, scale * was, batch["plain"])
        return terms

    wrapped = Reconstruction(vae)
    train(accelerator, wrapped, make_batch, losses, schedule, folder, workers=workers)
    if not trained_on:
        vae.register_to_config(scaling_factor=latent_scale(vae, accelerator))


def moved(latents: Tensor, before: Tensor, plain: Tensor) -> Tensor:
    """Mean squared way of the latents (batch, ...) of plain scenes; the others may go where they like."""
    way = (latents - before).float().square().flatten(1).mean(1)
    return (way * plain).sum() / plain.sum().clamp(min=1)


def _frozen(vae: AutoencoderKL) -> AutoencoderKL:
    return copy.deepcopy(vae).eval().requires_grad_(False)


def _crop(index: int, size: int, side: int) -> np.ndarray:
    """A window of detailed scene `index` near one of its objects."""
    random = rng("crop", index)
    target = random.choice(_detailed_scene(index).objects)
    left, top = (
        round(min(max(centre * size - side * random.random(), 0), size - side))
        for centre in (target.x, target.y)
    )
    return _detailed(index, size)[top : top + side, left : left + side]


def _is_plain(scene: Scene) -> bool:
    return all(item.texture == "plain" for item in scene.objects)


def reconstruction_losses(module: nn.Module, batch: Batch) -> tuple[Losses, Tensor]:
    """What is lost, and how far halved latents are from meaning the halved picture; the latents themselves too.

    The second makes latents behave as pictures do (EQ-VAE, arXiv 2502.09509); without it outlines are written in
    patterns of single latents, which the denoiser takes far longer to learn.
    """
    images = batch["images"]
    output, small, divergence, latents = module(images, batch["noise"])
    whole, half = output.float() - images, small.float() - halved(images)
    terms = _errors(whole) | {
        "half": half.abs().mean() + 2 * half.square().mean(),
        "kl": 2e-3 * divergence.float(),
    }
    return terms, latents


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
    """Sharpen the decoder alone, on whole pictures.

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
    return render_array(_detailed_scene(index), size, rng("paint", "detailed", index))


def _detailed_scene(index: int) -> Scene:
    """With more textures and more small objects than the denoiser's."""
    random = rng("detailed", index)
    return random_scene(random, random.choice((1, 2, 3, 3)), textured=TEXTURED)


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, accelerator: Accelerator, count: int = 256) -> float:
    """The factor that gives latents unit variance."""
    size = vae.config["sample_size"]
    images = to_tensor([picture(-1 - k, size) for k in range(count)]).to(accelerator.device)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(32)])
    return round(1 / latents.std().item(), 5)
