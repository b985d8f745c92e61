"""One resumable training loop: every batch is a function of its step, so a killed run goes on as if unbroken."""

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from t2iedit.errors import InvalidRequest
from t2iedit.shapes.training.optimizers import MakeOptimizers, adamw

Batch = dict[str, Tensor]
Losses = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast one stage trains.

    The rate warms up, holds its peak for the share `hold` of all steps, and falls as a cosine to the end.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 200
    hold: float = 0.0
    weight_decay: float = 0.01
    ema_decay: float | None = None
    save_every: int = 500
    log_every: int = 50


class Steps(Dataset):
    """Item k is the whole batch of step k, made by `make(k)`."""

    def __init__(self, make: Callable[[int], Batch], first: int, last: int) -> None:
        self.make, self.first, self.last = make, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> Batch:
        return self.make(self.first + index)


def train(
    accelerator: Accelerator,
    module: nn.Module,
    make_batch: Callable[[int], Batch],
    losses: Callable[[nn.Module, Batch, int], Losses],
    schedule: Schedule,
    folder: Path,
    *,
    workers: int = 0,
    make_optimizers: MakeOptimizers = adamw,
) -> None:
    """Train `module` in place to the end of `schedule`, from the newest checkpoint in `folder` if there is one.

    `losses` gives named terms; their sum is minimised. Where the schedule has an EMA, the module ends with it.
    Raises `InvalidRequest` if the checkpoint is of other optimizers.
    """
    # After the module has moved to its device, since an optimizer may hold views of the weights.
    wrapped = accelerator.prepare(module)
    optimizers = make_optimizers(module, schedule.learning_rate, schedule.weight_decay)
    rates = [LambdaLR(each, lambda step: _rate(step, schedule)) for each in optimizers]
    optimizers = [accelerator.prepare(each) for each in optimizers]
    ema = _average(module, schedule)
    step = _resume(folder, module, [*optimizers, *rates], ema)
    batches = Steps(_own_share(accelerator, make_batch), step, schedule.steps)
    loader = DataLoader(batches, batch_size=None, num_workers=workers)
    log = _Log(folder / "log.jsonl", schedule)
    for batch in loader:
        batch = {key: value.to(accelerator.device) for key, value in batch.items()}
        with accelerator.autocast():
            terms = losses(wrapped, batch, step)
        accelerator.backward(sum(terms.values(), start=torch.zeros((), device=accelerator.device)))
        accelerator.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
        step += 1
        if ema is not None:
            ema.step(module.parameters())
        if accelerator.is_main_process:
            log.add(step, terms)
            if step % schedule.save_every == 0 or step == schedule.steps:
                _save(folder, step, module, [*optimizers, *rates], ema)
    accelerator.wait_for_everyone()
    if ema is not None:
        ema.copy_to(module.parameters())
    accelerator.free_memory()


def _own_share(
    accelerator: Accelerator, make_batch: Callable[[int], Batch]
) -> Callable[[int], Batch]:
    """Batches of several processes are all different."""
    processes, own = accelerator.num_processes, accelerator.process_index
    return lambda step: make_batch(step * processes + own)


def _rate(step: int, schedule: Schedule) -> float:
    warm = min(1.0, (step + 1) / max(1, schedule.warmup))
    fallen = max(0.0, (step / schedule.steps - schedule.hold) / (1 - schedule.hold))
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fallen)))


def _average(module: nn.Module, schedule: Schedule) -> EMAModel | None:
    if schedule.ema_decay is None:
        return None
    return EMAModel(
        list(module.parameters()),
        decay=schedule.ema_decay,
        use_ema_warmup=True,
        power=0.75,
        foreach=True,
    )


def _save(folder: Path, step: int, module, steppers: list, ema: EMAModel | None) -> None:
    state = {
        "step": step,
        "module": module.state_dict(),
        "steppers": [each.state_dict() for each in steppers],
        "ema": None if ema is None else ema.state_dict(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / "checkpoint.tmp"
    torch.save(state, unfinished)
    unfinished.replace(folder / "checkpoint.pt")


def _resume(folder: Path, module, steppers: list, ema: EMAModel | None) -> int:
    path = folder / "checkpoint.pt"
    if not path.exists():
        shutil.rmtree(folder, ignore_errors=True)
        # Other processes of the run come here too.
        folder.mkdir(parents=True, exist_ok=True)
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if len(state["steppers"]) != len(steppers):
        raise InvalidRequest(
            f'"{path}" was begun with other optimizers, on a machine that does or does not compute in bfloat16 unlike'
            " this one; go on there, or train its weights on in a new folder"
        )
    module.load_state_dict(state["module"])
    for each, saved in zip(steppers, state["steppers"], strict=True):
        each.load_state_dict(saved)
    if ema is not None:
        ema.load_state_dict(state["ema"])
        ema.to(next(module.parameters()).device)
    return state["step"]


class _Log:
    """Mean losses and rate, a JSON line every `log_every` steps."""

    def __init__(self, path: Path, schedule: Schedule) -> None:
        self.path, self.schedule = path, schedule
        self.sums: dict[str, Tensor] = {}
        self.count, self.since = 0, time.monotonic()

    def add(self, step: int, terms: Losses) -> None:
        for name, value in terms.items():
            # Left on its device, since to read it there would make every step wait.
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()
        self.count += 1
        if step % self.schedule.log_every and step != self.schedule.steps:
            return
        now = time.monotonic()
        row: dict[str, float] = {"step": step, "images": step * self.schedule.batch_size}
        row |= {name: round(float(total) / self.count, 5) for name, total in self.sums.items()}
        row["images_per_second"] = round(
            self.count * self.schedule.batch_size / (now - self.since), 1
        )
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.sums, self.count, self.since = {}, 0, now
