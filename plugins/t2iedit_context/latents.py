"""Pictures as latents, encoded once, so that no step waits for the autoencoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor

from t2iedit import Model, T2IEditError
from t2iedit_context.objective import Noised, noised
from t2iedit_context.pictures import prepared


@dataclass(frozen=True, slots=True)
class Bank:
    """The autoencoder's means and deviations for many changed pictures (crops x channels x height x width)."""

    mean: Tensor
    deviation: Tensor
    scale: float
    shift: float

    def draw(self, count: int, schedule: DDPMScheduler, random: Random) -> Noised:
        """`count` crops as noisy latents at times drawn evenly; equal `random` draws equal ones."""
        generator = torch.Generator().manual_seed(random.getrandbits(63))
        chosen = torch.randint(len(self.mean), (count,), generator=generator)
        mean = self.mean[chosen]
        latents = mean + self.deviation[chosen] * torch.randn(mean.shape, generator=generator)
        latents = (latents - self.shift) * self.scale
        noise = torch.randn(mean.shape, generator=generator)
        total = int(schedule.config["num_train_timesteps"])
        times = torch.randint(total, (count,), generator=generator)
        return noised(schedule, latents, noise, times)


@torch.no_grad()
def encode_pictures(
    model: Model,
    pictures: Sequence[Image.Image],
    size: int,
    crops: int,
    seed: int,
    *,
    augment: bool,
) -> Bank:
    """A bank of `crops` changed pictures, every picture about equally often; without `augment` one of each."""
    vae = model.pipeline.vae
    means, deviations = [], []
    for number in range(max(crops, len(pictures)) if augment else len(pictures)):
        random = Random(f"{seed} crop {number}") if augment else None
        pixels = prepared(pictures[number % len(pictures)], size, random)[None]
        found = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        means.append(found.mean.float().cpu())
        deviations.append(found.std.float().cpu())
    mean, deviation = torch.cat(means), torch.cat(deviations)
    if not (mean.isfinite().all() and deviation.isfinite().all()):
        raise T2IEditError(
            f"the autoencoder in {vae.dtype} gives no finite latents; open the model with dtype float32"
        )
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return Bank(mean, deviation, float(vae.config.scaling_factor), float(shift))


def moved(noisy: Noised, device: torch.device) -> Noised:
    return Noised(*(value.to(device) for value in (noisy.latents, noisy.times, noisy.target)))
