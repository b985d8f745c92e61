"""Train the bundled model from nothing: `python -m t2iedit.shapes.train -o DIR [--preset cpu|gpu|smoke]`.

Stages: tokenizer, autoencoder, text encoder, latents, denoiser, decoder, few-step LoRA. Each checkpoints and is skipped once done, so a killed
run is started again with the same command. `accelerate launch -m t2iedit.shapes.train` spreads it over processes (several on
CPUs: `ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m t2iedit.shapes.train`).
"""

# diffusers and transformers annotate less than they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import argparse
import copy
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from t2iedit.errors import UserError
from t2iedit.opening import computes_in_bfloat16
from t2iedit.shapes.training import probes
from t2iedit.shapes.training.denoiser import (
    bank_latents,
    new_sampler,
    new_unet,
    train_denoiser,
)
from t2iedit.shapes.training.loop import Schedule
from t2iedit.shapes.training.text import new_text_encoder, train_text_encoder
from t2iedit.shapes.training.tokenizer import learn_tokenizer
from t2iedit.shapes.training.turbo import save_turbo, train_turbo
from t2iedit.shapes.training.vae import new_vae, train_decoder, train_vae
from t2iedit.shapes.turbo import FOLDER as TURBO

PROBED = "a red circle and a blue square"
SETTINGS = {"steps": 20, "guidance_scale": 4.0}


@dataclass(frozen=True, slots=True)
class Preset:
    """How long each stage trains; `scenes` latents are encoded for the denoiser."""

    vae: Schedule
    text: Schedule
    denoiser: Schedule
    turbo: Schedule
    decoder: Schedule
    scenes: int
    captions: int = 20_000


CPU = Preset(
    vae=Schedule(steps=8000, batch_size=16, learning_rate=2e-3),
    text=Schedule(steps=1000, batch_size=192, learning_rate=1e-3, warmup=100, save_every=50),
    denoiser=Schedule(
        steps=8000, batch_size=64, learning_rate=1e-3, hold=0.4, ema_decay=0.999, save_every=100
    ),
    turbo=Schedule(steps=450, batch_size=24, learning_rate=1e-4, warmup=50, save_every=100),
    decoder=Schedule(steps=1200, batch_size=16, learning_rate=8e-4, warmup=50, save_every=100),
    scenes=100_000,
)
GPU = Preset(
    vae=Schedule(steps=12_000, batch_size=64, learning_rate=2e-3),
    text=Schedule(steps=4000, batch_size=512, learning_rate=1e-3),
    denoiser=Schedule(
        steps=8000, batch_size=512, learning_rate=1.5e-3, hold=0.4, ema_decay=0.999, save_every=500
    ),
    turbo=Schedule(steps=500, batch_size=96, learning_rate=1e-4, warmup=50),
    decoder=Schedule(steps=4000, batch_size=64, learning_rate=8e-4),
    scenes=150_000,
)
SMOKE = Preset(
    vae=Schedule(steps=3, batch_size=2, learning_rate=1e-3, save_every=2, log_every=1),
    text=Schedule(steps=3, batch_size=4, learning_rate=1e-3, save_every=2, log_every=1),
    denoiser=Schedule(
        steps=3, batch_size=2, learning_rate=1e-3, ema_decay=0.9, save_every=2, log_every=1
    ),
    turbo=Schedule(steps=3, batch_size=2, learning_rate=1e-3, save_every=2, log_every=1),
    decoder=Schedule(steps=3, batch_size=2, learning_rate=1e-3, save_every=2, log_every=1),
    scenes=50,
    captions=200,
)
PRESETS = {"cpu": CPU, "gpu": GPU, "smoke": SMOKE}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="where checkpoints and model go"
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument(
        "--autoencoder-steps",
        type=int,
        help="instead of the preset's; with --start, of training it on, else it is kept",
    )
    parser.add_argument("--denoiser-steps", type=int, help="instead of the preset's")
    parser.add_argument("--denoiser-rate", type=float, help="instead of the preset's learning rate")
    parser.add_argument("--turbo-steps", type=int, help="of the few-step LoRA")
    parser.add_argument("--turbo-rate", type=float, help="its learning rate")
    parser.add_argument(
        "--start",
        type=Path,
        help="a finished model: its tokenizer and text encoder are kept, its denoiser trained on",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw scenes")
    args = parser.parse_args(argv)
    preset = PRESETS[args.preset]
    preset = replace(
        preset,
        vae=_changed(preset.vae, args.autoencoder_steps),
        denoiser=_changed(preset.denoiser, args.denoiser_steps, args.denoiser_rate),
        turbo=_changed(preset.turbo, args.turbo_steps, args.turbo_rate),
    )
    keep_vae = args.autoencoder_steps is None
    train_all(
        preset, args.output, start=args.start, keep_vae=keep_vae, seed=args.seed, workers=args.workers
    )  # fmt: skip


def _changed(schedule: Schedule, steps: int | None, rate: float | None = None) -> Schedule:
    return replace(
        schedule,
        steps=schedule.steps if steps is None else steps,
        learning_rate=schedule.learning_rate if rate is None else rate,
    )


def train_all(
    preset: Preset,
    output: Path,
    *,
    start: Path | None = None,
    keep_vae: bool = True,
    seed: int = 0,
    workers: int = 0,
) -> Path:
    """Every stage that is not done yet, in order; the folder of the finished model.

    From a finished model in `start`, only the denoiser and its few-step LoRA, before them the autoencoder unless it is kept.
    """
    if start is not None:
        kept = {"tokenizer": "tokenizer", "text_encoder": "text_encoder"}
        if keep_vae:
            kept |= {"vae": "vae", "sharpened_vae": "vae"}
        for part, source in kept.items():
            shutil.copytree(start / source, output / "model" / part, dirs_exist_ok=True)
    return _Training(preset, output, start, seed, workers).finished()


def new_accelerator() -> Accelerator:
    """In bfloat16, except on a CPU that would emulate it, several times slower than float32."""
    sixteen_bits = torch.cuda.is_available() or computes_in_bfloat16()
    return Accelerator(mixed_precision="bf16" if sixteen_bits else "no")


class _Training:
    """The stages, each from a seed of its own, each loaded if it is done already."""

    def __init__(
        self, preset: Preset, output: Path, start: Path | None, seed: int, workers: int
    ) -> None:
        self.preset, self.start, self.seed, self.workers = preset, start, seed, workers
        self.accelerator = new_accelerator()
        self.model, self.work, self.shapes = (
            output / "model",
            output / "checkpoints",
            output / "shapes",
        )

    def finished(self) -> Path:
        parts = self.tokenizer, self.sharpened_vae, self.text_encoder, self.unet
        if self.accelerator.is_main_process and not self.shapes.exists():
            assemble(*parts, self.shapes)
        self.accelerator.wait_for_everyone()
        if not (self.shapes / TURBO).exists():
            student = self._turbo()
            if self.accelerator.is_main_process:
                save_turbo(student, self.shapes / TURBO)
        return self.shapes

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        return self._stage(
            "tokenizer", CLIPTokenizer, lambda: learn_tokenizer(self.preset.captions)
        )

    @cached_property
    def vae(self) -> AutoencoderKL:
        def make() -> AutoencoderKL:
            start = self.start
            fresh = AutoencoderKL.from_pretrained(start / "vae") if start else new_vae()
            train_vae(
                self.accelerator, fresh, self.preset.vae, self.work / "vae", self.workers,
                trained_on=start is not None,
            )  # fmt: skip
            return fresh

        return self._stage("vae", AutoencoderKL, make)

    @cached_property
    def text_encoder(self) -> CLIPTextModel:
        def make() -> CLIPTextModel:
            fresh = new_text_encoder(self.tokenizer)
            schedule, folder = self.preset.text, self.work / "text"
            train_text_encoder(
                self.accelerator, fresh, self.tokenizer, schedule, folder, self.workers
            )
            return fresh

        text = self._stage("text_encoder", CLIPTextModel, make)
        self._probe(text)
        return text

    def _probe(self, text: CLIPTextModel) -> None:
        """What the rows know, printed before the denoiser spends hours on them."""
        report = self.work / "text" / "probes.json"
        if report.exists() or not self.accelerator.is_main_process:
            return
        found = probes.probe(text, self.tokenizer, self.seed)
        print(probes.table(found))
        report.parent.mkdir(parents=True, exist_ok=True)
        picture = probes.cosine_picture(*probes.cosines(text, self.tokenizer, PROBED))
        picture.save(report.with_name("cosines.png"))
        report.write_text(json.dumps(found, indent=1) + "\n")

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        def make() -> UNet2DConditionModel:
            if self.start is None:
                fresh = new_unet(self.text_encoder.config.hidden_size)
            else:
                fresh = UNet2DConditionModel.from_pretrained(self.start / "unet")
            train_denoiser(
                self.accelerator, fresh, *self._told(), self.preset.denoiser,
                self.work / "denoiser", self.workers, self.seed,
            )  # fmt: skip
            return fresh

        return self._stage("unet", UNet2DConditionModel, make)

    @cached_property
    def sharpened_vae(self) -> AutoencoderKL:
        def make() -> AutoencoderKL:
            fresh = copy.deepcopy(self.vae)
            schedule, folder = self.preset.decoder, self.work / "decoder"
            train_decoder(self.accelerator, fresh, schedule, folder, self.workers)
            return fresh

        return self._stage("sharpened_vae", AutoencoderKL, make)

    def _turbo(self) -> UNet2DConditionModel:
        set_seed(self.seed)
        return train_turbo(
            self.accelerator, copy.deepcopy(self.unet), *self._told(), self.preset.turbo,
            self.work / "turbo", self.workers,
        )  # fmt: skip

    def _told(self) -> tuple[CLIPTextModel, CLIPTokenizer, list[Path]]:
        """What a denoiser learns from."""
        scenes, folder = self.preset.scenes, self.work / "latents"
        bank = bank_latents(self.accelerator, self.vae, scenes, folder, self.workers)
        return self.text_encoder, self.tokenizer, bank

    def _stage(self, name: str, kind: Any, make: Callable[[], Any]) -> Any:
        if not (self.model / name).exists():
            set_seed(self.seed)
            _save(self.accelerator, make(), self.model / name)
        return kind.from_pretrained(self.model / name)


def assemble(
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    text: CLIPTextModel,
    unet: UNet2DConditionModel,
    folder: Path,
) -> None:
    """The parts as one diffusers folder in float16, which plain `from_pretrained(folder)` loads in float32."""
    # Copies, since a pipeline casts its parts in place.
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae),
        text_encoder=copy.deepcopy(text),
        tokenizer=tokenizer,
        unet=copy.deepcopy(unet),
        scheduler=new_sampler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    # transformers loads in the dtype the config names, diffusers in float32: they must agree.
    _rewrite(folder / "text_encoder" / "config.json", dtype="float32")
    for part in ("unet", "vae"):
        # Else it names a folder of the machine that trained it.
        _rewrite(folder / part / "config.json", _name_or_path=None)
    (folder / "t2iedit.json").write_text(json.dumps(SETTINGS) + "\n")


def _rewrite(path: Path, **changes: str | None) -> None:
    """Change fields of a JSON file; None removes one."""
    fields = json.loads(path.read_text()) | changes
    kept = {key: value for key, value in fields.items() if value is not None or key not in changes}
    path.write_text(json.dumps(kept, indent=2) + "\n")


def _save(accelerator: Accelerator, part: Any, folder: Path) -> None:
    if accelerator.is_main_process:
        unfinished = folder.with_name(folder.name + ".tmp")
        part.save_pretrained(unfinished)
        unfinished.rename(folder)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
