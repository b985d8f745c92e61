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

    def losses(self, step: int, process: int) -> dict[str, float]:
        """The losses of the step after `step` others, their gradients added to the leaves'."""
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
        losses, asked = _shared(accelerator, own, interruption.asked, stage.leaves[0].device)
        finite = _share_gradients(accelerator, stage.leaves)
        if not (finite and all(map(math.isfinite, losses.values()))):
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


def _shared(
    accelerator: Accelerator,
    losses: dict[str, float],
    asked: bool,
    device: torch.device,
) -> tuple[dict[str, float], bool]:
    """The mean losses of all processes, and whether any was asked to stop."""
    if accelerator.num_processes == 1:
        return losses, asked
    values = torch.tensor([*losses.values(), float(asked)], dtype=torch.float64, device=device)
    *means, stopping = accelerator.reduce(values, "mean").tolist()  # type: ignore[union-attr]
    return dict(zip(losses, means, strict=True)), stopping > 0


def _reached(leaves: list[Tensor]) -> bool:
    return any(leaf.grad is not None and bool(leaf.grad.any()) for leaf in leaves)


def _share_gradients(accelerator: Accelerator, leaves: list[Tensor]) -> bool:
    """Average the gradients over the processes; whether all are finite."""
    for leaf in leaves:
        if leaf.grad is not None and accelerator.num_processes > 1:
            leaf.grad = accelerator.reduce(leaf.grad, "mean")  # type: ignore[assignment]
    found = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return all(bool(gradient.isfinite().all()) for gradient in found)
