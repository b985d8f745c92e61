"""A LoRA over-fitted on a few pictures under one caption, as people over-fit them: denoiser and text encoder, no others' prompts.

python benchmarks/overfit.py PICTURES "a zor" -o zor.safetensors [-m MODEL] [--steps 400]
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from t2iedit_context.latents import encode_pictures, moved
from t2iedit_context.objective import diffusion_loss, encoded, noise_schedule
from t2iedit_context.pictures import read_pictures
from torch import nn
from tqdm import trange

import t2iedit
from t2iedit.cli.terminal import silence_libraries
from t2iedit.opening import computes_in_bfloat16

ATTENTION, CONVOLUTIONS = ("to_q", "to_k", "to_v", "to_out.0"), ("conv1", "conv2")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
ADAPTER = "overfit"


@dataclass(frozen=True)
class Training:
    """Steps of so many pictures each; enough of them to over-fit four pictures of the bundled model's size."""

    steps: int = 400
    batch: int = 4
    rank: int = 16
    learning_rate: float = 4e-3
    convolutions: bool = True
    """The denoiser's beside its attention, which alone learns a style and hardly an unknown shape."""
    text_encoder: bool = True
    seed: int = 0


def overfit(
    model: t2iedit.Model,
    pictures: Sequence[Image.Image],
    caption: str,
    path: Path,
    training: Training = Training(),  # noqa: B008, frozen
) -> Path:
    """Train and write the LoRA, in diffusers' layout; the model is as it was."""
    size = min(model.defaults.size)
    bank = encode_pictures(model, pictures, size, 0, training.seed, augment=False)
    schedule = noise_schedule(model)
    tokens = [encoder.tokenize(caption) for encoder in model.encoders]
    random = Random(training.seed)
    parts = adapted(model, training)
    sixteen_bits = model.device.type != "cpu" or computes_in_bfloat16()
    unet: Any = model.denoiser
    processors = dict(unet.attn_processors)
    if model.device.type == "cpu":
        # The fused kernel's backward pass is several times slower there.
        unet.set_attn_processor(AttnProcessor())
    try:
        trained = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=training.learning_rate, weight_decay=0.0)
        with torch.enable_grad():
            for _ in trange(training.steps, desc=path.stem, leave=False, disable=None):
                noisy = moved(bank.draw(training.batch, schedule, random), model.device)
                with torch.autocast(model.device.type, torch.bfloat16, enabled=sixteen_bits):
                    loss = diffusion_loss(model, encoded(model, tokens, {}), noisy)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
        save(model, parts, path)
    finally:
        unet.set_attn_processor(processors)
        model.pipeline.unload_lora_weights()
        for part in parts.values():
            part.requires_grad_(False)
    return path


def adapted(model: t2iedit.Model, training: Training) -> dict[str, nn.Module]:
    """The parts of the pipeline that get a LoRA, by their names there, its weights the only ones that are trained."""
    targets = {"unet": (*ATTENTION, *CONVOLUTIONS) if training.convolutions else ATTENTION}
    if training.text_encoder:
        targets |= {name: TEXT for name in ("text_encoder", "text_encoder_2")}
    components = model.pipeline.components
    parts = {name: components[name] for name in targets if components.get(name) is not None}
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        for name, part in parts.items():
            config = LoraConfig(
                r=training.rank,
                lora_alpha=training.rank,
                init_lora_weights="gaussian",
                target_modules=list(targets[name]),
            )
            part.add_adapter(config, adapter_name=ADAPTER)
    # In half precision small updates would be lost.
    cast_training_params(list(parts.values()), dtype=torch.float32)
    return parts


def save(model: t2iedit.Model, parts: dict[str, nn.Module], path: Path) -> None:
    layers = {
        f"{name}_lora_layers": convert_state_dict_to_diffusers(
            get_peft_model_state_dict(part, adapter_name=ADAPTER)
        )
        for name, part in parts.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    type(model.pipeline).save_lora_weights(path.parent, weight_name=path.name, **layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pictures", type=Path, help="a folder")
    parser.add_argument("caption")
    parser.add_argument("-m", "--model", default="shapes")
    parser.add_argument("--steps", type=int, default=Training.steps)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    silence_libraries()
    model = t2iedit.open_model(options.model)
    pictures, _ = read_pictures(options.pictures)
    overfit(model, pictures, options.caption, options.output, Training(steps=options.steps))
    print(options.output)


if __name__ == "__main__":
    main()
