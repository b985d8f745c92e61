"""The loop both stages run in: several processes, losses watched, interruption between two steps."""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import get_total_norm

from t2iedit import Model, T2IEditError
from t2iedit_context.latents import Bank
from t2iedit_context.settings import Settings

Row = dict[str, Any]
"""A step's number, stage and losses, as JSON."""


class LearningFailed(T2IEditError):
    """The losses are no numbers any more; what was good is saved."""


class LearningInterrupted(KeyboardInterrupt):
    """Somebody stopped the learning; what was learned is saved."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What every stage works with; `precision` is a context for the denoiser's passes, which compute in `dtype`."""

    model: Model
    settings: Settings
    bank: Bank
    precision: Callable[[], AbstractContextManager]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Progress:
    """`step` of `steps` of a stage done, with this step's losses."""

    stage: str
    step: int
    steps: int
    losses: dict[str, float]


@runtime_checkable
class Stage(Protocol):
    """One thing that is trained."""

    name: str
    steps: int
    leaves: list[Tensor]

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def losses(self, step: int, process: int) -> dict[str, Tensor]:
        """The losses of the step after `step` others, their gradients added to the leaves'.

        They stay on the device: whoever reads them waits for it.
        """
        ...

    def finish(self, step: int) -> None:
        """What is done to the leaves after step number `step`."""
        ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


class Interruption:
    """Whether somebody has asked to stop; the second time it stops at once."""

    asked = False

    def __call__(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """While this holds, Ctrl-C and a request to terminate are noted rather than obeyed in the middle of a step."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.signal(number, interruption) for number in _SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_stage(
    stage: Stage,
    accelerator: Accelerator,
    history: list[Row],
    first: int,
    interruption: Interruption,
    after_step: Callable[[Stage, int], None],
    on_step: Callable[[Progress], None] | None = None,
) -> None:
    """Steps `first` + 1 to the stage's last. Every process sees the same losses, so all stop at the same step.

    Raises `LearningFailed` before a step that would spoil the leaves, and `LearningInterrupted` after one.
    """
    for step in range(first, stage.steps):
        stage.optimizer.zero_grad(set_to_none=True)
        own = stage.losses(step, accelerator.process_index)
        _share_gradients(accelerator, stage.leaves)
        losses, finite, asked = _watched(accelerator, own, stage.leaves, interruption.asked)
        if not finite:
            told = ", ".join(f"{name} {value:g}" for name, value in losses.items())
            raise LearningFailed(
                f"step {step + 1} of {stage.steps} gives a loss or gradient that is not finite ({told}) and was not"
                " taken; learn anew at a lower learning rate"
            )
        if step == first and not _reached(stage.leaves):
            raise LearningFailed(
                "no gradient comes through this model's denoiser; learn on one that is not quantised"
            )
        stage.optimizer.step()
        stage.finish(step + 1)
        history.append({"stage": stage.name, "step": step + 1} | losses)
        after_step(stage, step + 1)
        if on_step is not None and accelerator.is_main_process:
            on_step(Progress(stage.name, step + 1, stage.steps, losses))
        if asked:
            raise LearningInterrupted(f"stopped after step {step + 1} of {stage.steps}")


def _watched(
    accelerator: Accelerator, losses: dict[str, Tensor], leaves: list[Tensor], asked: bool
) -> tuple[dict[str, float], bool, bool]:
    """The mean losses of all processes, whether they and the gradients are finite, and whether any was asked to stop.

    All come from the device together, since on a GPU each wait for it can cost as much as a small model's pass.
    """
    told = torch.stack([loss.float() for loss in (*losses.values(), _largest(leaves, losses))])
    if accelerator.num_processes > 1:
        told = torch.cat([told, told.new_tensor([float(asked)])])
        *values, stopping = accelerator.reduce(told, "mean").tolist()  # type: ignore[union-attr]
        asked = stopping > 0
    else:
        values = told.tolist()
    finite = all(map(math.isfinite, values))
    return dict(zip(losses, values, strict=False)), finite, asked


def _largest(leaves: list[Tensor], losses: dict[str, Tensor]) -> Tensor:
    """The largest entry of all gradients; no number if any is none."""
    found = [leaf.grad for leaf in leaves if leaf.grad is not None]
    if not found:
        return torch.zeros_like(next(iter(losses.values())))
    return get_total_norm(found, math.inf)


def _reached(leaves: list[Tensor]) -> bool:
    return any(leaf.grad is not None and bool(leaf.grad.any()) for leaf in leaves)


def _share_gradients(accelerator: Accelerator, leaves: list[Tensor]) -> None:
    """Average the gradients over the processes."""
    for leaf in leaves:
        if leaf.grad is not None and accelerator.num_processes > 1:
            leaf.grad = accelerator.reduce(leaf.grad, "mean")  # type: ignore[assignment]
