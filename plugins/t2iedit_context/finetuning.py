"""CoRe's second stage: the denoiser learns the pictures too, the concept's vectors frozen (arXiv 2408.15914)."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from t2iedit import Model, TextEmbedding, UserError
from t2iedit_context.checkpoints import write_folder
from t2iedit_context.embeddings import write_whole
from t2iedit_context.latents import moved
from t2iedit_context.loop import Setup
from t2iedit_context.objective import accumulate, diffusion_loss, noise_schedule
from t2iedit_context.settings import Settings

ADAPTER = "core"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def check_finetuning(model: Model, settings: Settings) -> None:
    """Raises `UserError` where the second stage cannot work."""
    if any(".lora_" in name for name, _ in model.denoiser.named_modules()):
        raise UserError(
            "a LoRA is on this denoiser already; fuse it with pipeline.fuse_lora() and unload it, or take it off,"
            " before the second stage"
        )
    if settings.finetune_unet == "full" and model.dtype != torch.float32:
        raise UserError(
            f"the denoiser is in {str(model.dtype).removeprefix('torch.')} and training all of it needs float32;"
            " open the model with dtype float32, and set the precision to bf16 to compute in less"
        )


def target_of(output: Path, settings: Settings) -> Path:
    """Where the second stage's result goes: a LoRA file, or a model folder."""
    if settings.finetune_unet == "lora":
        return output.with_suffix(".lora.safetensors")
    return output.with_name(f"{output.stem}-model")


class UNetStage:
    """The denoiser, or a LoRA in its attention layers, on the diffusion loss alone.

    Rank, layers and rate of the LoRA are ours; the paper trains all of it.
    """

    name = "denoiser"

    def __init__(self, setup: Setup, embeddings: tuple[TextEmbedding, ...]) -> None:
        self.setup, self.embeddings = setup, embeddings
        self.model, self.settings = setup.model, setup.settings
        settings = self.settings
        self.steps, self.schedule = settings.finetune_steps, noise_schedule(self.model)
        self.unet: Any = self.model.denoiser
        self.original = None
        if settings.finetune_unet == "lora":
            self._add_adapter()
        else:
            self.original = {k: v.cpu().clone() for k, v in self.unet.state_dict().items()}
            self.unet.requires_grad_(True)
        self.named = {n: p for n, p in self.unet.named_parameters() if p.requires_grad}
        self.leaves: list[Tensor] = list(self.named.values())
        self.optimizer = torch.optim.AdamW(
            self.leaves, lr=settings.rate_of_unet, weight_decay=settings.weight_decay
        )

    def _add_adapter(self) -> None:
        rank = self.settings.lora_rank
        config = LoraConfig(
            r=rank,
            lora_alpha=rank,
            init_lora_weights="gaussian",
            target_modules=list(ATTENTION),
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.settings.seed)
            self.unet.add_adapter(config, adapter_name=ADAPTER)

    def losses(self, step: int, process: int) -> dict[str, Tensor]:
        total, count = torch.zeros((), device=self.model.device), self.settings.accumulation
        for part in range(count):
            random = Random(f"{self.settings.seed} denoiser {step} {part} {process}")
            drawn = self.setup.bank.draw(self.settings.finetune_batch_size, self.schedule, random)
            with self.setup.precision():
                loss = diffusion_loss(self.model, self.embeddings, moved(drawn, self.model.device))
            accumulate(loss / count, self.leaves, self.setup.dtype)
            total += loss.detach() / count
        return {"diffusion": total}

    def finish(self, step: int) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {
            "leaves": {name: value.detach() for name, value in self.named.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        leaves: Mapping[str, Tensor] = state["leaves"]
        for name, value in self.named.items():
            value.copy_(leaves[name])
        self.optimizer.load_state_dict(state["optimizer"])

    def save(self, path: Path) -> None:
        """A LoRA as diffusers' `load_lora_weights` reads it, or the whole model as a folder."""
        if self.original is None:
            write_whole(path, self._lora())
        else:
            write_folder(path, self._fill)

    def undo(self) -> None:
        """The denoiser as it was before."""
        for leaf in self.leaves:
            leaf.grad = None
        if self.original is None:
            self.unet.unload_lora()
        else:
            self.unet.load_state_dict(self.original)
        self.unet.requires_grad_(False)

    def _lora(self) -> bytes:
        layers = get_peft_model_state_dict(self.unet, adapter_name=ADAPTER)
        with tempfile.TemporaryDirectory() as folder:
            type(self.model.pipeline).save_lora_weights(
                folder,
                unet_lora_layers=convert_state_dict_to_diffusers(layers),
                weight_name="lora.safetensors",
            )
            return (Path(folder) / "lora.safetensors").read_bytes()

    def _fill(self, folder: Path) -> None:
        self.model.pipeline.save_pretrained(folder, safe_serialization=True)
        defaults = self.model.defaults
        own = {"steps": defaults.steps, "guidance_scale": defaults.guidance_scale}
        (folder / "t2iedit.json").write_text(json.dumps(own) + "\n")
