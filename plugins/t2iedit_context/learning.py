"""Learning a concept from a few pictures: the line through both stages, and what is kept of it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from t2iedit import Model, OutputNotWritable, UserError
from t2iedit_context.checkpoints import RunFolder, check_target, digest_of
from t2iedit_context.checks import check_settings
from t2iedit_context.diagnostics import described, mean_similarity
from t2iedit_context.embeddings import (
    Concept,
    check_layout,
    read_concept,
    vocabulary_sample,
    write_concept,
)
from t2iedit_context.finetuning import UNetStage, target_of
from t2iedit_context.inversion import EmbeddingStage, initial_vectors
from t2iedit_context.latents import encode_pictures
from t2iedit_context.loop import (
    Interruption,
    LearningFailed,
    LearningInterrupted,
    Progress,
    Row,
    Setup,
    Stage,
    interruptible,
    run_stage,
)
from t2iedit_context.pictures import read_pictures
from t2iedit_context.previews import Previews
from t2iedit_context.prompts import filled
from t2iedit_context.settings import Settings

UNFINISHED = "unfinished.safetensors"
"""In the run's folder, the concept of a run that stopped early where an earlier concept has its name."""
LARGE = 200_000_000
"""Bytes of denoiser weights above which gradient checkpointing is on unless asked otherwise."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Learned:
    """A concept and how the learning went, as JSON; `unet` is the second stage's file or folder."""

    concept: Concept
    report: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    unet: Path | None = None


def learn(
    model: Model,
    images: str | Path | Sequence[Image.Image],
    settings: Settings,
    output: str | Path,
    *,
    resume: bool = False,
    skip_broken: bool = False,
    previews: int = 0,
    save_every: int = 50,
    on_step: Callable[[Progress], None] | None = None,
) -> Learned:
    """Learn a concept from a folder of pictures, or from pictures, and write it to `output`.

    Beside it a folder `NAME.run` holds the checkpoint of an unfinished run, previews every so many steps, the losses and
    the report. `resume` goes on from the checkpoint exactly as if nothing had happened, or begins where there is none.
    Ctrl-C ends after the step under way and saves. The model is afterwards as it was. Under `accelerate launch` every
    process learns from batches of its own.

    Raises `UserError` for what cannot be learned, `LearningFailed` when a loss is no number any more, and
    `LearningInterrupted`, a `KeyboardInterrupt`; what was good is saved then.
    """
    output = Path(output)
    check_settings(model, settings)
    check_layout(output)
    pictures, notes = _pictures(images, skip_broken)
    accelerator, folder = Accelerator(), RunFolder.of(output)
    identity = _identity(model, settings, pictures, accelerator)
    second = target_of(output, settings) if settings.finetune_unet else None
    unfinished = folder.path / UNFINISHED
    if resume:
        partial = unfinished if unfinished.exists() else output
        checkpoint = folder.load(identity)
        done = _finished(output, identity) if checkpoint is None else None
        if done is not None and (second is None or second.exists()):
            return Learned(done, folder.report() or {}, [*notes, "it was learned already"], second)
        check_target(output)
    else:
        partial = unfinished if output.exists() else output
        checkpoint = None
        folder.refuse_unfinished()
        check_target(output, [second] if second else [])
    # Nobody writes before everybody has looked.
    accelerator.wait_for_everyone()
    strips = Previews(model, settings.previewed, folder.path / "previews", previews, settings.seed)
    with model.lock, torch.enable_grad():
        model.patch([])
        learning = _Learning(
            model,
            settings,
            output,
            partial,
            folder,
            identity,
            accelerator,
            strips,
            save_every,
            on_step,
        )
        concept, report = learning.run(pictures, checkpoint or {}, second)
    return Learned(concept, report, notes, second)


@dataclass
class _Learning:
    """One run from its beginning or checkpoint to its end."""

    model: Model
    settings: Settings
    output: Path
    partial: Path
    """Where the concept goes if the run stops early: not over an earlier one."""
    folder: RunFolder
    identity: dict[str, Any]
    accelerator: Accelerator
    previews: Previews
    save_every: int
    on_step: Callable[[Progress], None] | None
    interruption: Interruption = field(default_factory=Interruption)
    history: list[Row] = field(default_factory=list)
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def run(
        self,
        pictures: Sequence[Image.Image],
        checkpoint: dict[str, Any],
        second: Path | None,
    ) -> tuple[Concept, dict[str, Any]]:
        self.history = checkpoint.get("history", [])
        self.seconds = checkpoint.get("seconds", 0.0)
        stages = checkpoint.get("stages", {})
        with (
            interruptible() as self.interruption,
            _checkpointing(self.model.denoiser, self._checkpointed()),
            _resumable(self.folder),
        ):
            setup = self._setup(pictures)
            vectors = self._embed(setup, stages)
            concept = self._concept(vectors.vectors)
            if second is not None:
                self._finetune(setup, stages, vectors, second)
            report = self._report(concept)
            if self.accelerator.is_main_process:
                write_concept(concept, self.output)
                self.folder.log(self.history)
                self.folder.finish(report)
                (self.folder.path / UNFINISHED).unlink(missing_ok=True)
            self.accelerator.wait_for_everyone()
        return concept, report

    def _setup(self, pictures: Sequence[Image.Image]) -> Setup:
        settings = self.settings
        size = settings.resolution or min(self.model.defaults.size)
        bank = encode_pictures(
            self.model,
            pictures,
            size,
            settings.crops,
            settings.seed,
            augment=settings.augment,
        )
        dtype = DTYPES.get(settings.precision or self.accelerator.mixed_precision)
        precision = _autocast(self.model.device, dtype)
        return Setup(self.model, settings, bank, precision, dtype or self.model.dtype)

    def _embed(self, setup: Setup, stages: dict[str, Any]) -> EmbeddingStage:
        stage = EmbeddingStage(setup)
        self._through(stage, stages, lambda: self._concept(stage.vectors))
        return stage

    def _finetune(
        self,
        setup: Setup,
        stages: dict[str, Any],
        vectors: EmbeddingStage,
        target: Path,
    ) -> None:
        with torch.no_grad():
            embeddings = vectors.instance()
        stage = UNetStage(setup, embeddings)
        try:
            self._through(stage, stages, lambda: self._concept(vectors.vectors))
            if self.accelerator.is_main_process:
                stage.save(target)
        finally:
            stage.undo()

    def _through(
        self, stage: Stage, stages: dict[str, Any], concept: Callable[[], Concept]
    ) -> None:
        """A stage from where it stands to its end; stopped early, checkpoint and concept are saved."""
        first = step = self._restore(stage, stages)

        def after_step(stage: Stage, done: int) -> None:
            nonlocal step
            step = done
            if stage.name == EmbeddingStage.name:
                self.steps = done
            if done % self.save_every == 0:
                self._save(stage, done)
            if self.previews.due(done) and self.accelerator.is_main_process:
                self.previews.draw(concept(), f"{stage.name}-{done:06d}")

        watched = self.interruption, after_step, self.on_step
        try:
            run_stage(stage, self.accelerator, self.history, first, *watched)
        except (LearningFailed, LearningInterrupted) as stopped:
            self._save(stage, step)
            if self.accelerator.is_main_process:
                write_concept(concept(), self.partial)
            raise type(stopped)(
                f'{stopped}; the concept so far is in "{self.partial}"'
            ) from stopped
        self.done[stage.name] = {"step": stage.steps} | stage.state()

    def _restore(self, stage: Stage, stages: dict[str, Any]) -> int:
        """Load what the checkpoint holds of a stage; the number of its steps done."""
        if stage.name not in stages:
            return 0
        state = stages[stage.name]
        stage.load(state)
        if stage.name == EmbeddingStage.name:
            self.steps = state["step"]
        return state["step"]

    def _save(self, stage: Stage, step: int) -> None:
        if self.accelerator.is_main_process:
            self.folder.save(
                {
                    "identity": self.identity,
                    "stages": self.done | {stage.name: {"step": step} | stage.state()},
                    "history": self.history,
                    "seconds": self.seconds + time.monotonic() - self.began,
                }
            )

    def _checkpointed(self) -> bool:
        if self.settings.gradient_checkpointing is not None:
            return self.settings.gradient_checkpointing
        return sum(parameter.nbytes for parameter in self.model.denoiser.parameters()) > LARGE

    def _concept(self, vectors: dict[str, Tensor]) -> Concept:
        made = self.identity | {
            "steps done": self.steps,
            "encoders": {e.name: vocabulary_sample(e) for e in self.model.encoders},
        }
        return Concept(
            self.settings.placeholder,
            {name: value.detach().cpu().clone() for name, value in vectors.items()},
            self.settings.category,
            made,
        )

    @torch.no_grad()
    def _report(self, concept: Concept) -> dict[str, Any]:
        settings = self.settings
        prompts = [filled(t, settings.placeholder, settings.category) for t in settings.templates]
        started = initial_vectors(self.model, settings)
        facts = {
            encoder.name: described(encoder, concept.vectors[encoder.name])
            | {
                f"context similarity {when}": mean_similarity(
                    encoder,
                    prompts,
                    settings.placeholder,
                    vectors[encoder.name],
                    settings.category,
                )
                for when, vectors in (("before", started), ("after", concept.vectors))
            }
            for encoder in self.model.encoders
        }
        return {
            "placeholder": settings.placeholder,
            "category": settings.category,
            "steps": self.steps,
            "seconds": round(self.seconds + time.monotonic() - self.began, 1),
            "losses": _last_mean(self.history),
            "encoders": facts,
        }


def _pictures(
    images: str | Path | Sequence[Image.Image], skip_broken: bool
) -> tuple[list[Image.Image], list[str]]:
    """The pictures, and sentences on those passed over."""
    if isinstance(images, str | Path):
        return read_pictures(images, skip_broken=skip_broken)
    if not images:
        raise UserError("there are no pictures to learn from; give a few of the concept")
    return list(images), []


def _identity(
    model: Model,
    settings: Settings,
    pictures: Sequence[Image.Image],
    accelerator: Accelerator,
) -> dict[str, Any]:
    """What a run depends on, as JSON."""
    return settings.model_dump(mode="json") | {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "pictures": digest_of(pictures),
        "processes": accelerator.num_processes,
    }


def _finished(output: Path, identity: dict[str, Any]) -> Concept | None:
    """The concept in the output if this very run made it to its end."""
    if not output.exists():
        return None
    found = read_concept(output)
    same = all(found.made.get(key) == value for key, value in identity.items())
    return found if same and found.made.get("steps done") == identity["steps"] else None


def _last_mean(history: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Each stage's mean losses over its last tenth."""
    means: dict[str, dict[str, float]] = {}
    for stage in dict.fromkeys(row["stage"] for row in history):
        rows = [row for row in history if row["stage"] == stage]
        rows = rows[-max(1, len(rows) // 10) :]
        names = [name for name in rows[0] if name not in ("stage", "step")]
        means[stage] = {name: sum(row[name] for row in rows) / len(rows) for name in names}
    return means


def _autocast(
    device: torch.device, dtype: torch.dtype | None
) -> Callable[[], AbstractContextManager]:
    if dtype is None:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype)


@contextmanager
def _resumable(folder: RunFolder) -> Iterator[None]:
    """What cannot be written, on a full disc say, comes with the news that an older checkpoint is there."""
    try:
        yield
    except OutputNotWritable as error:
        if not folder.checkpoint.exists():
            raise
        told = f"{error}; the last checkpoint is kept, and the run can be resumed"
        raise OutputNotWritable(told) from error


@contextmanager
def _checkpointing(denoiser: nn.Module, wanted: bool) -> Iterator[None]:
    """While this holds, the denoiser's layers are computed again in the backward pass rather than kept."""
    unet: Any = denoiser
    if not wanted or unet.is_gradient_checkpointing:
        yield
        return
    unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()
