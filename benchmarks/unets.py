"""UNets of the true architectures with random weights, plain and quantised: speed and memory need no others."""

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from t2iedit_mixdq.architectures import ARCHITECTURES, example_inputs, hollow
from t2iedit_mixdq.checkpoint import Found, load_unet, write_unet
from t2iedit_mixdq.recipe import Recipe, uniform
from t2iedit_mixdq.wiring import survey
from torch.utils.flop_counter import FlopCounterMode

TINY = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
}
CONFIGS = ARCHITECTURES | {"tiny": TINY}
LOUD = 800
"""What a BOS row holds in one channel, as CLIP's does."""
QUANTISED = {"mixdq-w8a8": (8, 8), "mixdq-w4a8": (4, 8), "mixdq-w4a16": (4, 16)}


def random_unet(architecture: str, dtype: torch.dtype, device: str) -> Any:
    """Weights as large as initialised ones, made in place in their final dtype."""
    torch.manual_seed(0)
    unet: Any = hollow(CONFIGS[architecture])
    # torch's own `to`: that of diffusers warns of what does not apply here.
    unet = torch.nn.Module.to(unet, dtype).to_empty(device=device)
    with torch.no_grad():
        for parameter in unet.parameters():
            scale = parameter.shape[1:].numel() ** -0.5 if parameter.ndim > 1 else 0.02
            parameter.normal_(0, scale)
    return unet.requires_grad_(False)


def prepare(folder: Path, architecture: str, name: str) -> Path:
    """A folder of the plain UNet in 16 bits (`plain`), or of one quantised to `name`'s widths; made once."""
    path = folder / f"{architecture}-{name}"
    if path.exists():
        return path
    unet = random_unet(architecture, torch.bfloat16, "cpu")
    part = folder / f"{architecture}-{name}.part"
    part.mkdir(parents=True)
    if name == "plain":
        unet.save_pretrained(part)
    else:
        weights, activations = QUANTISED[name]
        layers = survey(unet)
        ranges = {
            name: torch.tensor([-4.0, 4.0]).expand(layer.parts, 3, 2)
            for name, layer in layers.items()
        }
        recipe = Recipe(uniform(layers, weights), uniform(layers, activations))
        rows = torch.zeros(1, unet.config.cross_attention_dim)
        rows[0, 0] = LOUD
        write_unet(unet, recipe, Found(ranges), rows, part)
    part.rename(path)
    return path


def products(architecture: str, size: int, batch: int) -> tuple[int, int]:
    """Multiplications and additions of one step: those of linear and convolution layers, and those of attention."""
    unet = hollow(CONFIGS[architecture])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(**example_inputs(unet, size, batch))
    counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    attention = sum(n for op, n in counts.items() if "bmm" in op or "attention" in op)
    return sum(counts.values()) - attention, attention


def load(path: Path, name: str, device: str, dtype: torch.dtype) -> Any:
    """The UNet of a prepared folder, ready to run."""
    if name == "plain":
        # Not mapped, so that what it takes is its own memory.
        unet: Any = UNet2DConditionModel.from_pretrained(path, dtype=dtype, disable_mmap=True)
        return unet.to(device).eval().requires_grad_(False)
    return load_unet(path, torch.device(device), dtype)


def channels_last(unet: Any) -> None:
    """In place, by torch's own `to`: that of diffusers warns of what does not apply here."""
    to: Any = torch.nn.Module.to
    to(unet, memory_format=torch.channels_last)
