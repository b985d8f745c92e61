"""Prompts to conditionings: one forward pass an encoder, then the edits, in the user's order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from t2iedit.conditioning import Conditioning, Embeddings, Origin
from t2iedit.edit import Edit, Run
from t2iedit.errors import PluginError, UserError
from t2iedit.request import edit_to_json
from t2iedit.text import EncoderMark, Kind, TextEmbedding, TextEncoder, Tokens


@torch.no_grad()
def condition(runs: Sequence[Run]) -> list[Conditioning]:
    """What the denoiser is told in each run: one forward pass an encoder for all prompts, one for all negatives.

    The runs share one model. A run that starts from a conditioning is not encoded again; its edits come on top.
    """
    if not runs:
        return []
    model = runs[0].model
    with model.lock:
        prompts = _encode([Job(run, at) for run in runs for at in run.boundaries()])
        guided = [run for run in runs if run.guided]
        negatives = _encode(
            [Job(run, at, negative=True) for run in guided for at in run.boundaries()]
        )
        marks = model.marks
    return [_phases(run, prompts, negatives, marks) for run in runs]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One side of a run, as it is from this fraction of the denoising on."""

    run: Run
    at: float
    negative: bool = False

    @property
    def text(self) -> str:
        return (self.run.negative or "") if self.negative else self.run.prompt

    @property
    def edits(self) -> list[Edit]:
        """Those that change what goes into the encoder."""
        return [] if self.negative else self.run.doing("edit_token_embeds", self.at)

    @property
    def key(self) -> tuple:
        """Jobs of one key are encoded once."""
        return (self.text, *((id(self.run), id(edit)) for edit in self.edits))

    def given(self, encoder: TextEncoder) -> TextEmbedding | None:
        """What the run starts from, where it is not this text."""
        source = self.run.given
        if source is None or (self.negative and self.run.negative is not None):
            return None
        held = source.at(self.at)
        side = held.negative if self.negative else held.prompt
        found = next((e for e in side or () if e.tokens.encoder == encoder.name), None)
        return None if found is None else found.to(encoder.device)


def _encode(jobs: Sequence[Job]) -> dict[tuple[int, float], Embeddings]:
    """Each job's embeddings by run and fraction, the edits of that time applied."""
    if not jobs:
        return {}
    encoders = jobs[0].run.model.encoders
    columns = [_encode_one(encoder, jobs) for encoder in encoders]
    rows = zip(*columns, strict=True)
    return {(id(job.run), job.at): tuple(row) for job, row in zip(jobs, rows, strict=True)}


def _encode_one(encoder: TextEncoder, jobs: Sequence[Job]) -> list[TextEmbedding]:
    """The jobs through one encoder; times that differ only in later edits share its work."""
    unique: dict[tuple, tuple[Tokens, Tensor | None]] = {}
    given = [job.given(encoder) for job in jobs]
    for job, found in zip(jobs, given, strict=True):
        if found is None and job.key not in unique:
            read = encoder.tokenize(job.text)
            if read.lost:
                _warn_of_loss(job.run, read)
            unique[job.key] = read, _token_embeds(encoder, read, job.edits, job.run)
    encoded: dict[tuple, TextEmbedding] = {}
    if unique:
        tokens, embeds = zip(*unique.values(), strict=True)
        encoded = dict(zip(unique, encoder.encode_batch(tokens, embeds), strict=True))
    return [
        _edited(encoded[job.key] if found is None else found, job)
        for job, found in zip(jobs, given, strict=True)
    ]


def _token_embeds(
    encoder: TextEncoder, tokens: Tokens, edits: Sequence[Edit], run: Run
) -> Tensor | None:
    if not edits:
        return None
    embeds = original = encoder.embed(tokens)
    for edit in edits:
        with torch.enable_grad(), _blamed(edit):
            embeds = edit.edit_token_embeds(embeds, tokens, run).detach()
    _check_shape(edits[-1], embeds, original)
    return embeds


def _edited(embedding: TextEmbedding, job: Job) -> TextEmbedding:
    """The embedding after the edits of this time, in the user's order, each one's effect on the report."""
    run = job.run
    absent = run.negative is None and (run.given is None or run.given.negative is None)
    if job.negative and absent and run.model.zero_negative:
        pooled = None if embedding.pooled is None else torch.zeros_like(embedding.pooled)
        blank = torch.zeros_like(embedding.hidden)
        return replace(embedding, hidden=blank, pooled=pooled)
    for edit in run.doing("edit_embedding", job.at):
        if job.negative and not edit.negative:
            continue
        with _blamed(edit):
            edited = edit.edit_embedding(embedding, run)
        _check_embedding(edit, edited, embedding)
        if not job.negative:
            _record_change(edit, edited, embedding, run)
        embedding = edited
    return embedding


def _phases(
    run: Run,
    prompts: dict[tuple[int, float], Embeddings],
    negatives: dict[tuple[int, float], Embeddings],
    marks: tuple[EncoderMark, ...],
) -> Conditioning:
    times = run.boundaries()
    held = [
        Conditioning(prompts[id(run), at], negatives[id(run), at] if run.guided else None)
        for at in times
    ]
    changes = tuple(zip(times[1:], held[1:], strict=True))
    return replace(held[0], changes=changes, origin=_origin(run, marks))


def _origin(run: Run, marks: tuple[EncoderMark, ...]) -> Origin:
    edits = [edit_to_json(edit) for edit in run.edits]
    if run.given is not None and run.given.origin is not None:
        return run.given.origin.then(edited=edits) if edits else run.given.origin
    step = {"prompt": run.prompt, "negative": run.negative, "edits": edits}
    made_by = {"model": run.model.name, "fingerprint": run.model.fingerprint}
    return Origin(run.model.family, marks, ({"encoded": step | made_by},))


def _check_embedding(edit: Edit, edited: TextEmbedding, before: TextEmbedding) -> None:
    """BOS rows stay as they are: quantisation and zeroed negatives rely on it."""
    _check_shape(edit, edited.hidden, before.hidden)
    bos = before.tokens.of(Kind.BOS)
    if not torch.equal(edited.hidden[bos], before.hidden[bos]):
        raise PluginError(f'the edit "{edit.name}" changed the BOS row, which must stay as it is')


def _check_shape(edit: Edit, after: Tensor, before: Tensor) -> None:
    def nature(value: Tensor) -> tuple:
        return tuple(value.shape), value.dtype, value.device

    if nature(after) != nature(before):
        raise PluginError(
            f'the edit "{edit.name}" returned {nature(after)} for an embedding of {nature(before)}'
        )


def _record_change(edit: Edit, edited: TextEmbedding, before: TextEmbedding, run: Run) -> None:
    """The relative change of all rows but BOS, the largest over the run, so nobody wonders if it did anything."""
    free = before.tokens.of(Kind.WORD, Kind.EOT, Kind.PAD)
    rows = before.hidden[free].float()
    change = ((edited.hidden[free].float() - rows).norm() / rows.norm()).item()
    index = next(i for i, candidate in enumerate(run.edits) if candidate is edit)
    changes = run.report["edits"][index].get("change", {})
    name = before.tokens.encoder
    run.record(edit, change=changes | {name: round(max(change, changes.get(name, 0.0)), 6)})


def _warn_of_loss(run: Run, tokens: Tokens) -> None:
    run.warn(
        f'the prompt is longer than the {len(tokens.ids)} tokens of the encoder "{tokens.encoder}";'
        f' these words are lost: "{tokens.lost}"'
    )


@contextmanager
def _blamed(edit: Edit) -> Iterator[None]:
    """Whatever breaks inside an edit is reported with its name."""
    try:
        yield
    except (UserError, PluginError):
        raise
    except Exception as error:
        raise PluginError(
            f'the edit "{edit.name}" failed with {type(error).__name__}: {error}'
        ) from error
