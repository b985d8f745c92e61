"""Learning a concept from a few pictures: CoRe's first stage, and the line through both (arXiv 2408.15914)."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from t2iedit import Model, TextEmbedding, UserError, Wording, occurrences
from t2iedit_context.checkpoints import RunFolder, check_target, digest_of
from t2iedit_context.diagnostics import described, mean_similarity
from t2iedit_context.embeddings import (
    Concept,
    check_layout,
    read_concept,
    vocabulary_sample,
    write_concept,
)
from t2iedit_context.finetuning import UNetStage, check_finetuning, target_of
from t2iedit_context.latents import Bank, encode_pictures, moved
from t2iedit_context.loop import (
    Interruption,
    LearningFailed,
    LearningInterrupted,
    Progress,
    Row,
    Stage,
    interruptible,
    run_stage,
)
from t2iedit_context.objective import (
    Noised,
    Pair,
    Part,
    accumulate,
    context_losses,
    diffusion_loss,
    encoded,
    make_pair,
    noise_schedule,
)
from t2iedit_context.pictures import read_pictures
from t2iedit_context.placing import is_one_token, stand_in, worded
from t2iedit_context.previews import Previews
from t2iedit_context.probe import Probe, probed
from t2iedit_context.prompts import filled
from t2iedit_context.regularisation import rescaled
from t2iedit_context.settings import Settings

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


class EmbeddingStage:
    """The vectors of one concept, everything else frozen: L_diff + lambda_emb L_emb + lambda_attn L_attn.

    A template for the two regularisers is drawn for each step; the diffusion loss always has the instance prompt. The
    gradient of each pass is taken before the next begins, so that only one graph is held at a time.
    """

    name = "embedding"

    def __init__(
        self,
        model: Model,
        settings: Settings,
        bank: Bank,
        probe: Probe | None,
        precision: Callable[[], AbstractContextManager],
        dtype: torch.dtype,
    ) -> None:
        self.model, self.settings, self.bank = model, settings, bank
        self.probe, self.precision, self.dtype = probe, precision, dtype
        self.steps, self.schedule = settings.steps, noise_schedule(model)
        self.vectors = initial_vectors(model, settings)
        self.leaves = list(self.vectors.values())
        self.optimizer = torch.optim.AdamW(
            self.leaves, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.norms: list[float] | None = None
        self.pairs: dict[str, Pair] = {}
        self.part = Part(settings.placeholder, settings.category, settings.vectors)

    def losses(self, step: int, process: int) -> dict[str, float]:
        totals: dict[str, float] = {}
        share = 1 / self.settings.accumulation
        for part in range(self.settings.accumulation):
            random = Random(f"{self.settings.seed} embedding {step} {part} {process}")
            for losses in self._passes(random):
                total = torch.stack(list(losses.values())).sum()
                accumulate(total * share, self.leaves, self.dtype)
                for name, loss in losses.items():
                    totals[name] = totals.get(name, 0.0) + float(loss.detach()) * share
        return totals

    def _passes(self, random: Random) -> Iterator[dict[str, Tensor]]:
        """One batch's losses, those that share a graph together; it may go before the next are asked for."""
        settings = self.settings
        drawn = self.bank.draw(settings.batch_size, self.schedule, random)
        noisy = moved(drawn, self.model.device)
        embeddings = self.instance()
        with self.precision():
            loss = diffusion_loss(self.model, embeddings, noisy)
        yield {"diffusion": loss}
        if settings.embedding_weight or settings.attention_weight:
            pair = self._pair(random.choice(settings.templates))
            yield self._context(pair, noisy.first(settings.attended))

    def _context(self, pair: Pair, noisy: Noised) -> dict[str, Tensor]:
        settings, concepts = self.settings, {self.settings.placeholder: self.vectors}
        losses = context_losses(
            self.model, pair, concepts, noisy, self.probe, settings.weights, self.precision()
        )
        if settings.attention_form == "code" and "attention" in losses:
            # The authors' form sums over the batch, of which this may be a part.
            losses["attention"] = losses["attention"] * (settings.batch_size / settings.attended)
        return losses

    def instance(self) -> tuple[TextEmbedding, ...]:
        """The pictures' prompt as the encoders see it with the vectors as they are."""
        pair = self._pair(self.settings.instance_template)
        return encoded(self.model, pair.tokens, {self.settings.placeholder: self.vectors})

    def _pair(self, template: str) -> Pair:
        if template not in self.pairs:
            prompt = filled(template, self.settings.placeholder, self.settings.category)
            bos = self.settings.embedding_form == "code"
            self.pairs[template] = make_pair(self.model, prompt, [self.part], bos=bos)
        return self.pairs[template]

    @torch.no_grad()
    def finish(self, step: int) -> None:
        """Norm rescaling: from the step after `rescale_from` through `rescale_to` the norm stays as it was then."""
        if step == self.settings.rescale_from:
            self.norms = [float(leaf.norm()) for leaf in self.leaves]
        if self.norms and self.settings.rescale_from < step <= self.settings.rescale_to:
            for leaf, norm in zip(self.leaves, self.norms, strict=True):
                leaf.copy_(rescaled(leaf, norm))

    def state(self) -> dict[str, Any]:
        return {
            "leaves": {name: value.detach() for name, value in self.vectors.items()},
            "optimizer": self.optimizer.state_dict(),
            "norms": self.norms,
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        for name, value in self.vectors.items():
            value.copy_(state["leaves"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.norms = state["norms"]


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
    pictures, notes = (
        read_pictures(images, skip_broken=skip_broken)
        if isinstance(images, str | Path)
        else (list(images), [])
    )
    if not pictures:
        raise UserError("there are no pictures to learn from; give a few of the concept")
    accelerator = Accelerator()
    identity = _identity(model, settings, pictures, accelerator)
    folder = RunFolder.of(output)
    check_layout(output)
    if not resume:
        folder.refuse_unfinished()
    checkpoint = folder.load(identity) if resume else None
    finished = _finished(output, identity) if resume and checkpoint is None else None
    second = target_of(output, settings) if settings.finetune_unet else None
    if finished is None:
        check_target(output, [second] if second and not resume else [])
    accelerator.wait_for_everyone()
    if finished is not None:
        return Learned(finished, {"already learned": True}, notes, second)
    with model.lock, torch.enable_grad():
        model.patch([])
        learning = _Learning(model, settings, pictures, output, folder, identity, accelerator)
        learning.previews = Previews(
            model, settings.previewed, folder.path / "previews", previews, settings.seed
        )
        learning.save_every, learning.on_step = save_every, on_step
        concept, report = learning.run(checkpoint, second)
    return Learned(concept, report, notes, second)


def check_settings(model: Model, settings: Settings) -> None:
    """Raises `UserError` for a name, category or prompt that this model's encoders cannot take."""
    check_placeholder(model, settings.placeholder)
    check_category(model, settings.category)
    for template in (*settings.templates, settings.instance_template):
        if occurrences(template, settings.placeholder):
            raise UserError(
                f'the prompt "{template}" holds the placeholder itself; write {{}} where the concept should stand'
            )
        _check_fits(model, settings, template)
    if settings.resolution is not None:
        model.check_size((settings.resolution, settings.resolution))
    if settings.finetune_unet:
        check_finetuning(model, settings)


def check_placeholder(model: Model, name: str) -> None:
    """Raises `UserError` for a name that cannot stand in a prompt, or is a word already."""
    if not name or any(c.isspace() or c == "," for c in name) or not occurrences(f"a {name}", name):
        raise UserError(
            f'"{name}" cannot be a placeholder; give a name without spaces and commas, like "<my-toy>"'
        )
    if any(is_one_token(name, [encoder]) for encoder in model.encoders):
        raise UserError(
            f'the placeholder "{name}" is a word that this model knows; give a name that is none, like "<{name}>"'
        )


def check_category(model: Model, category: str) -> None:
    """Raises `UserError` for a category that is not one token."""
    for encoder in model.encoders:
        read = encoder.tokenize(category)
        if len(read.words) != 1:
            pieces = encoder.tokenizer.convert_ids_to_tokens(read.ids[read.words].tolist())
            listed = ", ".join(str(piece).removesuffix("</w>") for piece in pieces)
            raise UserError(
                f'the category "{category}" is {len(pieces)} tokens for the encoder "{encoder.name}"'
                f" ({listed or 'none'}); give one word that it knows, the plainest for what the pictures show"
            )


def _check_fits(model: Model, settings: Settings, template: str) -> None:
    prompt = Wording.of(filled(template, settings.placeholder, settings.category))
    words = " ".join([stand_in(settings.category, model.encoders)] * settings.vectors)
    for encoder in model.encoders:
        tokens = encoder.tokenize(worded(prompt, settings.placeholder, words))
        if tokens.lost:
            raise UserError(
                f'the prompt "{template}" is too long for the encoder "{encoder.name}", which reads'
                f" {len(tokens.ids)} tokens; shorten it"
            )


def initial_vectors(model: Model, settings: Settings) -> dict[str, Tensor]:
    """The category's own input vector, as often as the concept has vectors, for each encoder."""
    found = {}
    for encoder in model.encoders:
        word = encoder.embed(encoder.tokenize(settings.category))[1].detach().float()
        found[encoder.name] = word.repeat(settings.vectors, 1).requires_grad_()
    return found


class _Learning:
    """One run from its beginning or checkpoint to its end."""

    previews: Previews
    save_every: int
    on_step: Callable[[Progress], None] | None

    def __init__(
        self,
        model: Model,
        settings: Settings,
        pictures: Sequence[Image.Image],
        output: Path,
        folder: RunFolder,
        identity: dict[str, Any],
        accelerator: Accelerator,
    ) -> None:
        self.model, self.settings, self.pictures = model, settings, pictures
        self.output, self.folder, self.identity = output, folder, identity
        self.accelerator = accelerator
        self.history: list[Row] = []
        self.done: dict[str, dict[str, Any]] = {}
        self.steps = 0
        self.seconds = 0.0
        self.began = time.monotonic()

    def run(
        self, checkpoint: dict[str, Any] | None, second: Path | None
    ) -> tuple[Concept, dict[str, Any]]:
        if checkpoint is not None:
            self.history, self.seconds = checkpoint["history"], checkpoint["seconds"]
        dtype = DTYPES.get(self.settings.precision or self.accelerator.mixed_precision)
        with ExitStack() as stack:
            interruption = stack.enter_context(interruptible())
            stack.enter_context(_checkpointing(self.model.denoiser, self._checkpointed()))
            bank = self._bank()
            precision = _autocast(self.model.device, dtype)
            compute = dtype or self.model.dtype
            vectors = self._embed(checkpoint, bank, precision, compute, interruption)
            concept = self._concept(vectors.vectors)
            if second is not None:
                self._finetune(checkpoint, vectors, second, bank, precision, compute, interruption)
            report = self._report(concept, vectors)
            if self.accelerator.is_main_process:
                write_concept(concept, self.output)
                self.folder.log(self.history)
                self.folder.finish(report)
            self.accelerator.wait_for_everyone()
        return concept, report

    def _embed(
        self,
        checkpoint: dict[str, Any] | None,
        bank: Bank,
        precision: Callable[[], AbstractContextManager],
        dtype: torch.dtype,
        interruption: Interruption,
    ) -> EmbeddingStage:
        opened = probed(self.model.denoiser) if self.settings.attention_weight else nullcontext()
        with opened as probe:
            stage = EmbeddingStage(self.model, self.settings, bank, probe, precision, dtype)
            self._through(stage, checkpoint, interruption, lambda: self._concept(stage.vectors))
        return stage

    def _finetune(
        self,
        checkpoint: dict[str, Any] | None,
        vectors: EmbeddingStage,
        target: Path,
        bank: Bank,
        precision: Callable[[], AbstractContextManager],
        dtype: torch.dtype,
        interruption: Interruption,
    ) -> None:
        with torch.no_grad():
            embeddings = vectors.instance()
        stage = UNetStage(self.model, self.settings, bank, embeddings, precision, dtype)
        try:
            self._through(stage, checkpoint, interruption, lambda: self._concept(vectors.vectors))
            if self.accelerator.is_main_process:
                stage.save(target)
        finally:
            stage.undo()

    def _through(
        self,
        stage: Stage,
        checkpoint: dict[str, Any] | None,
        interruption: Interruption,
        concept: Callable[[], Concept],
    ) -> None:
        """A stage from where it stands to its end; stopped early, checkpoint and concept are saved."""
        first = self._restore(stage, checkpoint)
        step = first

        def after_step(stage: Stage, done: int) -> None:
            nonlocal step
            step = done
            if stage.name == EmbeddingStage.name:
                self.steps = done
            if done % self.save_every == 0:
                self._save(stage, done)
            if self.previews.due(done) and self.accelerator.is_main_process:
                self.previews.draw(concept(), f"{stage.name}-{done:06d}")

        arguments = (interruption, after_step, self.on_step)
        try:
            run_stage(stage, self.accelerator, self.history, first, *arguments)
        except (LearningFailed, LearningInterrupted) as stopped:
            self._save(stage, step)
            if self.accelerator.is_main_process:
                write_concept(concept(), self.output)
            told = (
                f'{stopped}; the concept so far is in "{self.output}", and the run can be resumed'
            )
            raise type(stopped)(told) from stopped
        self.done[stage.name] = {"step": stage.steps} | stage.state()

    def _restore(self, stage: Stage, checkpoint: dict[str, Any] | None) -> int:
        """Load what the checkpoint holds of a stage; the number of its steps done."""
        state = (checkpoint or {}).get("stages", {}).get(stage.name)
        if state is None:
            return 0
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

    def _bank(self) -> Bank:
        settings = self.settings
        size = settings.resolution or min(self.model.defaults.size)
        return encode_pictures(
            self.model, self.pictures, size, settings.crops, settings.seed, augment=settings.augment
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
    def _report(self, concept: Concept, stage: EmbeddingStage) -> dict[str, Any]:
        settings = self.settings
        prompts = [filled(t, settings.placeholder, settings.category) for t in settings.templates]
        started = initial_vectors(self.model, settings)
        facts = {
            encoder.name: described(encoder, concept.vectors[encoder.name])
            | {
                f"context similarity {when}": mean_similarity(
                    encoder, prompts, settings.placeholder, vectors[encoder.name], settings.category
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


def _identity(
    model: Model, settings: Settings, pictures: Sequence[Image.Image], accelerator: Accelerator
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
