"""The few-step sibling `shapes-turbo`: the bundled model with its LCM-LoRA merged in, and LCM's sampler."""

from pathlib import Path
from typing import Any

FOLDER = "turbo"
"""Within the model's own folder."""


def make_turbo(pipeline: Any, folder: Path) -> Path:
    """Merge the LoRA of a model folder into its pipeline and give it LCM's sampler; the LoRA's own folder."""
    from diffusers.schedulers.scheduling_lcm import LCMScheduler

    pipeline.load_lora_weights(str(folder / FOLDER), local_files_only=True)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    return folder / FOLDER
