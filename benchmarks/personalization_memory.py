"""Peak memory and time of a step of CoRe's first stage, on a Stable Diffusion architecture with random weights.

    python benchmarks/personalization_memory.py [--quick] [--precision bf16] [-o FILE.json]

On a GPU: SD 2.1's size, batch 6, 512 px, with and without gradient checkpointing, beside plain inversion; "peak" is of the
tensors, "held" of what is taken from the GPU for them, to which its driver adds about half a GiB. On a CPU, or with
--quick: a small size, and by how much the process grows from a loaded model on.
"""

# diffusers and transformers annotate less than they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from t2iedit_context.inversion import EmbeddingStage
from t2iedit_context.latents import encode_pictures
from t2iedit_context.loop import Setup
from t2iedit_context.settings import Settings
from t2iedit_mixdq.memory import Watched
from transformers import CLIPTextConfig, CLIPTextModel

import t2iedit
from t2iedit.shapes.evaluate import Row
from t2iedit.tiny import tiny_tokenizer

RESULTS = Path(__file__).parent / "results"
STEPS = 4
PLAIN = {"embedding_weight": 0.0, "attention_weight": 0.0}
CASES = {
    "plain inversion": (PLAIN, True),
    "full": ({}, True),
    "full, whole batch": ({"attention_batch": 6}, True),
    "full, without checkpointing": ({}, False),
}


def random_model(small: bool, device: str) -> Any:
    """SD 2.1's architecture, or the same with narrow layers."""
    scale, layers, width = (10, 2, 64) if small else (1, 23, 1024)
    tokenizer = tiny_tokenizer("!")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=77,
        hidden_act="gelu",
    )
    # Random weights are drawn where they are used: on a CPU this takes longer than all the steps.
    with torch.device(device):
        unet, vae, encoder = _parts(small, scale, width, text)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return t2iedit.open_model(pipeline, device=device)


def _parts(small: bool, scale: int, width: int, text: CLIPTextConfig) -> tuple[Any, Any, Any]:
    unet = UNet2DConditionModel(
        sample_size=16 if small else 64,
        block_out_channels=tuple(c // scale for c in (320, 640, 1280, 1280)),
        attention_head_dim=(1, 2, 4, 4) if small else (5, 10, 20, 20),
        cross_attention_dim=width,
        use_linear_projection=True,
        norm_num_groups=32 if not small else 16,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=tuple(c // (8 if small else 1) for c in (128, 256, 512, 512)),
        layers_per_block=2,
        norm_num_groups=16 if small else 32,
        latent_channels=4,
        sample_size=128 if small else 512,
    )
    return unet, vae, CLIPTextModel(text)


def measured(case: str, model: Any, small: bool, device: str, precision: str) -> dict[str, float]:
    """GiB at the highest point of a few steps with their optimiser, and the median seconds of all but the first."""
    own, checkpointing = CASES[case]
    size = 128 if small else 512
    settings = Settings(placeholder="<toy>", category="cat", **own)
    bank = encode_pictures(
        model, [Image.new("RGB", (size, size))], size, 1, settings.seed, augment=False
    )
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def context() -> Any:
        return torch.autocast(device, dtype) if dtype else nullcontext()

    if checkpointing:
        model.denoiser.enable_gradient_checkpointing()
    else:
        model.denoiser.disable_gradient_checkpointing()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    watched = Watched(model.device)
    with torch.enable_grad(), watched if device == "cpu" else nullcontext():
        stage = EmbeddingStage(Setup(model, settings, bank, context, dtype or torch.float32))
        for step in range(STEPS):
            begin = time.perf_counter()
            stage.optimizer.zero_grad()
            stage.losses(step, 0)
            stage.optimizer.step()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
    return _peaks(device, watched) | {"seconds of a step": statistics.median(seconds[1:])}


def _peaks(device: str, watched: Watched) -> dict[str, float]:
    if device == "cuda":
        peak, held = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak GiB": peak / 2**30, "held GiB": held / 2**30}
    return {"GiB more than the model": watched.peak / 2**30}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small size")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="bf16")
    parser.add_argument("--case", choices=tuple(CASES), help=argparse.SUPPRESS)
    parser.add_argument(
        "-o", "--output", type=Path, default=RESULTS / "personalization-memory.json"
    )
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = options.quick or device == "cpu"
    if options.case:
        model = random_model(small, device)
        print(json.dumps(measured(options.case, model, small, device, options.precision)))
        return
    # A GPU's peak can be set back; of a CPU's, each case must have a process to itself.
    model = random_model(small, device) if device == "cuda" else None
    rows = []
    where = f"{'small' if small else 'SD 2.1, 512 px, batch 6'}, {options.precision}, {device}"
    for case in CASES:
        if model is None:
            found = _in_own_process(case, options.precision)
        else:
            found = measured(case, model, small, device, options.precision)
        for metric, value in found.items():
            rows.append(Row(case, f"{metric} ({where})", 1, value, value, value))
            print(f"{case:30} {value:6.3f} {metric} ({where})", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _in_own_process(case: str, precision: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", case, "--precision", precision, "--quick"]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(made.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
