"""Prompts to conditionings: one forward pass an encoder, then the edits, in the user's order."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from t2iedit.conditioning import Conditioning, Embeddings
from t2iedit.edit import Edit, Run
from t2iedit.errors import PluginError, UserError
from t2iedit.text import Kind, TextEmbedding, TextEncoder, Tokens
from t2iedit.wording import Wording


@torch.no_grad()
def condition(runs: Sequence[Run]) -> list[Conditioning]:
    """What the denoiser is told in each run: one forward pass an encoder for all prompts, one for all negatives.

    The runs share one model.
    """
    if not runs:
        return []
    with runs[0].model.lock:
        prompts = _encode(_jobs([(run, run.prompt) for run in runs]))
        guided = [(run, run.negative or "") for run in runs if run.guided]
        negatives = _encode(_jobs(guided, negative=True), negative=True)
    return [_phases(run, prompts, negatives) for run in runs]


Job = tuple[Run, Wording, float]
"""A text to encode for a run, as it is from this fraction of the denoising on."""


def _jobs(texts: Sequence[tuple[Run, str]], *, negative: bool = False) -> list[Job]:
    worded = [(run, _worded(run, text, negative=negative)) for run, text in texts]
    return [(run, wording, at) for run, wording in worded for at in run.boundaries()]


def _worded(run: Run, text: str, *, negative: bool) -> Wording:
    """The text after the edits that put other words in its place."""
    wording = Wording.of(text)
    for edit in run.doing("edit_prompt", negative=negative):
        with blamed(edit):
            wording = edit.edit_prompt(wording, run)
        if not isinstance(wording, Wording) or wording.typed != text:
            raise PluginError(f'the edit "{edit.name}" returned no wording of the prompt "{text}"')
    return wording


def _encode(jobs: Sequence[Job], *, negative: bool = False) -> dict[tuple[int, float], Embeddings]:
    """Each job's embeddings by run and fraction, the edits of that time applied."""
    if not jobs:
        return {}
    encoders = jobs[0][0].model.encoders
    columns = [_encode_one(encoder, jobs, negative=negative) for encoder in encoders]
    rows = zip(*columns, strict=True)
    return {(id(run), at): tuple(row) for (run, _, at), row in zip(jobs, rows, strict=True)}


def _encode_one(
    encoder: TextEncoder, jobs: Sequence[Job], *, negative: bool
) -> list[TextEmbedding]:
    """The jobs through one encoder; times that differ only in later edits share its work."""
    unique: dict[tuple, tuple[Tokens, Tensor | None]] = {}
    keys = []
    for run, wording, at in jobs:
        edits = run.doing("edit_token_embeds", at, negative=negative)
        keys.append((wording, *((id(run), id(edit)) for edit in edits)))
        if keys[-1] not in unique:
            read = encoder.tokenize(wording)
            if read.lost:
                _warn_of_loss(run, read)
            unique[keys[-1]] = read, _token_embeds(encoder, read, edits, run)
    tokens, embeds = zip(*unique.values(), strict=True)
    encoded = dict(zip(unique, encoder.encode_batch(tokens, embeds), strict=True))
    return [
        _edited(encoded[key], run, at, negative=negative)
        for key, (run, _, at) in zip(keys, jobs, strict=True)
    ]


def _token_embeds(
    encoder: TextEncoder, tokens: Tokens, edits: Sequence[Edit], run: Run
) -> Tensor | None:
    if not edits:
        return None
    embeds = original = encoder.embed(tokens)
    for edit in edits:
        with torch.enable_grad(), blamed(edit):
            embeds = edit.edit_token_embeds(embeds, tokens, run).detach()
    _check_shape(edits[-1], embeds, original)
    return embeds


def _edited(embedding: TextEmbedding, run: Run, at: float, *, negative: bool) -> TextEmbedding:
    """The embedding after the edits of this time, in the user's order, each one's effect on the report."""
    if negative and run.negative is None and run.model.zero_negative:
        pooled = None if embedding.pooled is None else torch.zeros_like(embedding.pooled)
        blank = torch.zeros_like(embedding.hidden)
        return replace(embedding, hidden=blank, pooled=pooled)
    for edit in run.doing("edit_embedding", at, negative=negative):
        with blamed(edit):
            edited = edit.edit_embedding(embedding, run)
        _check_embedding(edit, edited, embedding)
        if not negative:
            _record_change(edit, edited, embedding, run)
        embedding = edited
    return embedding


def _phases(
    run: Run,
    prompts: dict[tuple[int, float], Embeddings],
    negatives: dict[tuple[int, float], Embeddings],
) -> Conditioning:
    times = run.boundaries()
    held = [
        Conditioning(prompts[id(run), at], negatives[id(run), at] if run.guided else None)
        for at in times
    ]
    return replace(held[0], changes=tuple(zip(times[1:], held[1:], strict=True)))


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
    """The relative change of the rows behind BOS, the largest over the run, so nobody wonders if it did anything."""
    rows = before.hidden[1:].float()
    change = ((edited.hidden[1:].float() - rows).norm() / rows.norm()).item()
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
def blamed(edit: Edit) -> Iterator[None]:
    """Whatever breaks inside an edit is reported with its name."""
    try:
        yield
    except (UserError, PluginError):
        raise
    except Exception as error:
        raise PluginError(
            f'the edit "{edit.name}" failed with {type(error).__name__}: {error}'
        ) from error
