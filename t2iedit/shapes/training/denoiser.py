"""The denoiser: velocity prediction on stored latents, the frozen text encoder's rows as condition."""

# diffusers and transformers annotate less than they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextModel, CLIPTokenizer

from t2iedit.shapes.training.loop import Batch, Losses, Schedule, train
from t2iedit.shapes.training.optimizers import MakeOptimizers, adamw, muon
from t2iedit.shapes.training.scenes_by_step import caption_of, picture, rng, to_tensor

FIRST = 10_000_000
"""The bank's scenes begin here, far from those the autoencoder saw."""
PART = 1000
TYPICAL, SPREAD = -0.5, 1.6
"""Mean and deviation of the log SNR trained on. In 16 x 16 latents, shapes are decided at an SNR of 0.05 to 1."""
ANY = 0.1
"""The share of timesteps drawn evenly, so that none is left out, pure noise above all."""
UNCONDITIONAL = 0.1
"""The share of captions left empty, for guidance."""


def new_scheduler() -> DDIMScheduler:
    """SD's noise, rescaled to end in pure noise: without that, black and white backgrounds come out gray."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def new_sampler() -> EulerAncestralDiscreteScheduler:
    """On the same noise levels. Its fresh noise lets later steps mend what early ones began wrongly."""
    return EulerAncestralDiscreteScheduler.from_config(new_scheduler().config)  # type: ignore[return-value]


def new_unet(
    width: int, sample_size: int = 16, channels: tuple[int, ...] = (64, 128, 192)
) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=sample_size,
        down_block_types=("CrossAttnDownBlock2D",) * (len(channels) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(channels) - 1),
        block_out_channels=channels,
        layers_per_block=1,
        # The number of heads, whatever its name says.
        attention_head_dim=tuple(count // 32 for count in channels),
        cross_attention_dim=width,
    )


def bank_latents(
    accelerator: Accelerator, vae: AutoencoderKL, count: int, folder: Path, workers: int = 0
) -> list[Path]:
    """Encode scenes `FIRST`, `FIRST + 1` ... once, in parts, so that a killed run goes on at the next part."""
    folder.mkdir(parents=True, exist_ok=True)
    vae.to(accelerator.device)  # type: ignore[arg-type]
    paths = [folder / f"{number:05d}.safetensors" for number in range(max(1, count // PART))]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    drawn = _Parts(missing, min(PART, count), vae.config["sample_size"])
    for number, pictures in zip(
        missing, DataLoader(drawn, batch_size=None, num_workers=workers), strict=True
    ):
        unfinished = paths[number].with_suffix(".tmp")
        save_file({"latents": _encode(accelerator, vae, pictures)}, unfinished)
        unfinished.replace(paths[number])
    return paths


class _Parts(Dataset):
    """Scenes as painted, by parts: uint8 (pictures, size, size, 3)."""

    def __init__(self, numbers: list[int], pictures: int, size: int) -> None:
        self.numbers, self.pictures, self.size = numbers, pictures, size

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Tensor:
        first = FIRST + self.numbers[index] * PART
        drawn = [picture(first + k, self.size) for k in range(self.pictures)]
        return torch.from_numpy(np.stack(drawn))


@torch.no_grad()
def _encode(accelerator: Accelerator, vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    latents = []
    for few in pictures.split(50):
        images = to_tensor(list(few.numpy())).to(accelerator.device)
        with accelerator.autocast():
            posterior = vae.encode(images).latent_dist
        latents.append((posterior.mean.float() * vae.config["scaling_factor"]).half().cpu())
    return torch.cat(latents).contiguous()


def train_denoiser(
    accelerator: Accelerator,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    bank: list[Path],
    schedule: Schedule,
    folder: Path,
    workers: int,
    seed: int = 0,
) -> None:
    """Another `seed` is another order of scenes, other captions, noise and timesteps."""
    latents = torch.cat([load_file(path)["latents"] for path in bank])
    scheduler = new_scheduler()
    likely = timestep_chances(scheduler)
    text.eval().requires_grad_(False).to(accelerator.device)  # type: ignore[arg-type]
    if accelerator.device.type == "cpu":
        # The fused kernel's backward pass is several times slower there.
        unet.set_attn_processor(AttnProcessor())

    def make_batch(step: int) -> Batch:
        random = rng("denoiser", seed, step)
        chosen = [random.randrange(len(latents)) for _ in range(schedule.batch_size)]
        captions = [
            "" if random.random() < UNCONDITIONAL else caption_of(FIRST + index, f"{seed}:{step}")
            for index in chosen
        ]
        ids = tokenizer(
            captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        generator = torch.Generator().manual_seed(random.getrandbits(63))
        clean = latents[chosen].float()
        return {
            "latents": clean,
            "noise": torch.randn(clean.shape, generator=generator),
            "times": torch.multinomial(likely, len(chosen), replacement=True, generator=generator),
            "ids": ids,
        }

    def losses(module: nn.Module, batch: Batch, step: int) -> Losses:
        with torch.no_grad():
            rows = text(batch["ids"]).last_hidden_state
        return {"velocity": velocity_loss(module, scheduler, batch, rows)}

    train(
        accelerator, unet, make_batch, losses, schedule, folder, workers=workers,
        make_optimizers=optimizers_for(accelerator.mixed_precision),
    )  # fmt: skip


def optimizers_for(precision: str) -> MakeOptimizers:
    """Muon, unless it would be emulated: it multiplies in bfloat16, whatever the precision."""
    return adamw if precision == "no" else muon


def timestep_chances(scheduler: DDIMScheduler) -> Tensor:
    """How often each timestep is trained on: (timesteps,), normal in the log SNR, as in SD3 (arXiv 2403.03206).

    `TYPICAL` and `SPREAD` are our choice. Drawing often what weighs much, instead of weighing what is drawn evenly,
    spends no steps on timesteps that hardly count.
    """
    signal = scheduler.alphas_cumprod
    log_snr = (signal / (1 - signal)).clamp(min=1e-9).log()
    width = torch.gradient(log_snr)[0].abs().clamp(max=0.2)
    density = (-((log_snr - TYPICAL) ** 2) / (2 * SPREAD**2)).exp() * width
    return (1 - ANY) * density / density.sum() + ANY / len(signal)


def velocity_loss(
    module: nn.Module, scheduler: DDIMScheduler, batch: Batch, rows: Tensor
) -> Tensor:
    """Squared error of the velocity, all timesteps weighing the same."""
    clean, noise, times = batch["latents"], batch["noise"], batch["times"]
    noisy = scheduler.add_noise(clean, noise, times)
    target = scheduler.get_velocity(clean, noise, times)
    predicted = module(noisy, times, rows).sample.float()
    return (predicted - target).square().mean()
