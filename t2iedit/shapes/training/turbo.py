"""The few-step sibling: a LoRA distilled for latent consistency (LCM-LoRA, Luo et al., 2023, arXiv 2311.05556)."""

# diffusers and transformers annotate less than they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import copy
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from t2iedit.shapes.training.denoiser import FIRST, new_scheduler
from t2iedit.shapes.training.loop import Batch, Losses, Schedule, train
from t2iedit.shapes.training.scenes_by_step import caption_of, rng

GUIDANCE = 4.0
"""The teacher's guidance, which the sibling has learned and needs no more."""
SOLVER_STEPS = 20
"""The teacher's steps. More of them, each bootstrapped from the next, carry errors further."""
RANK = 20
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "conv")
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0
"""As LCMScheduler has them."""
HUBER = 0.001
AVERAGE = 0.95
"""How slowly the average of the student follows it, whose answers are the target: its own would run away with it."""
SETTINGS = {"steps": 4, "guidance_scale": 1.0}


def train_turbo(
    accelerator: Accelerator,
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    bank: list[Path],
    schedule: Schedule,
    folder: Path,
    workers: int,
) -> UNet2DConditionModel:
    """The denoiser with its LoRA; `save_turbo` writes the LoRA alone."""
    latents = torch.cat([load_file(path)["latents"] for path in bank])
    scheduler = new_scheduler()
    text.eval().requires_grad_(False).to(accelerator.device)
    teacher = copy.deepcopy(unet).eval().requires_grad_(False).to(accelerator.device)
    student = unet.requires_grad_(False)
    targets = [*LAYERS, *CONVOLUTIONS]
    student.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    average = copy.deepcopy(student).eval().requires_grad_(False).to(accelerator.device)
    pairs = zip(average.parameters(), student.parameters(), strict=True)
    following, moving = zip(*((a, p) for a, p in pairs if p.requires_grad), strict=True)
    if accelerator.device.type == "cpu":
        # The fused kernel's backward pass is several times slower there.
        teacher.set_attn_processor(AttnProcessor())
        average.set_attn_processor(AttnProcessor())
        student.set_attn_processor(AttnProcessor())
    empty = _ids(tokenizer, [""])
    # Checkpoints do not hold the average, so it begins where the student stands.
    kept = [0.0]

    def make_batch(step: int) -> Batch:
        random = rng("turbo", step)
        chosen = [random.randrange(len(latents)) for _ in range(schedule.batch_size)]
        generator = torch.Generator().manual_seed(step)
        clean = latents[chosen].float()
        return {
            "latents": clean,
            "noise": torch.randn(clean.shape, generator=generator),
            "stages": torch.randint(0, SOLVER_STEPS, (len(chosen),), generator=generator),
            "ids": _ids(tokenizer, [caption_of(FIRST + index, step) for index in chosen]),
        }

    def losses(module: nn.Module, batch: Batch, step: int) -> Losses:
        with torch.no_grad():
            rows = text(batch["ids"]).last_hidden_state
            blank = text(empty.to(rows.device)).last_hidden_state.expand_as(rows)
            torch._foreach_lerp_(list(following), list(moving), 1 - kept[0])
            kept[0] = AVERAGE
        loss = consistency_loss(module, average, teacher, scheduler, batch, rows, blank)
        return {"consistency": loss}

    train(accelerator, student, make_batch, losses, schedule, folder, workers=workers)
    return student


def consistency_loss(
    student: nn.Module,
    average: nn.Module,
    teacher: nn.Module,
    scheduler: DDIMScheduler,
    batch: Batch,
    rows: Tensor,
    blank: Tensor,
) -> Tensor:
    """Pseudo-Huber distance of the student's answer to its average's one step further on the guided teacher's path."""
    stride = scheduler.config["num_train_timesteps"] // SOLVER_STEPS
    late = batch["stages"] * stride + stride - 1
    early = (late - stride).clamp(min=0)
    noisy = scheduler.add_noise(batch["latents"], batch["noise"], late)
    answer = consistent(student, scheduler, noisy, late, rows)
    with torch.no_grad():
        guided = guided_velocity(teacher, noisy, late, rows, blank)
        clean, noise = from_velocity(scheduler, noisy, guided, late)
        alpha, sigma = levels(scheduler, early)
        target = consistent(average, scheduler, alpha * clean + sigma * noise, early, rows)
        # The first step of the path ends in the picture itself.
        target = torch.where((batch["stages"] == 0)[:, None, None, None], clean, target)
    return ((answer - target).square() + HUBER**2).sqrt().mean() - HUBER


def guided_velocity(
    teacher: nn.Module, noisy: Tensor, times: Tensor, rows: Tensor, blank: Tensor
) -> Tensor:
    both = teacher(torch.cat([noisy, noisy]), torch.cat([times, times]), torch.cat([blank, rows]))
    without, with_ = both.sample.float().chunk(2)
    return without + GUIDANCE * (with_ - without)


def consistent(
    student: nn.Module, scheduler: DDIMScheduler, noisy: Tensor, times: Tensor, rows: Tensor
) -> Tensor:
    """The consistency function: what the student takes for the clean latents, the latents themselves at time nought."""
    clean, _ = from_velocity(scheduler, noisy, student(noisy, times, rows).sample.float(), times)
    scaled = (times * TIMESTEP_SCALING)[:, None, None, None]
    skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    return skip * noisy + out * clean


def from_velocity(
    scheduler: DDIMScheduler, noisy: Tensor, velocity: Tensor, times: Tensor
) -> tuple[Tensor, Tensor]:
    """Clean latents and noise, from v = alpha noise - sigma clean and x = alpha clean + sigma noise."""
    alpha, sigma = levels(scheduler, times)
    return alpha * noisy - sigma * velocity, sigma * noisy + alpha * velocity


def levels(scheduler: DDIMScheduler, times: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at these times, ready to multiply latents."""
    squared = scheduler.alphas_cumprod.to(times.device)[times][:, None, None, None]
    return squared.sqrt(), (1 - squared).sqrt()


def save_turbo(student: UNet2DConditionModel, folder: Path) -> None:
    """The LoRA in float16, as plain diffusers loads it, and what it is to be run with."""
    weights = get_peft_model_state_dict(student)
    half = {key: value.half().contiguous() for key, value in weights.items()}
    unfinished = folder.with_name(folder.name + ".tmp")
    StableDiffusionPipeline.save_lora_weights(unfinished, unet_lora_layers=half)
    (unfinished / "t2iedit.json").write_text(json.dumps(SETTINGS) + "\n")
    unfinished.rename(folder)


def _ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    return tokenizer(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
