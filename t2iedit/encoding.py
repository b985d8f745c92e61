"""Prompts to conditionings: one forward pass an encoder, then the edits, in the user's order."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from t2iedit import compel_reading
from t2iedit.conditioning import Conditioning, Embeddings, Origin, check_same_encoders
from t2iedit.edit import Edit, Known, Run
from t2iedit.errors import PluginError, UserError
from t2iedit.request import edit_to_json
from t2iedit.text import EncoderMark, Kind, TextEmbedding, TextEncoder, Tokens
from t2iedit.weighting import Script, read, weighted
from t2iedit.wording import Wording


@torch.no_grad()
def condition(runs: Sequence[Run], known: Known | None = None) -> list[Conditioning]:
    """What the denoiser is told in each run: one forward pass an encoder for all prompts, one for all negatives.

    The runs share one model, which is left patched as the last of them wants it. A run that starts from a conditioning is not encoded again; its edits come on top. `known`
    keeps encoded texts from one call to the next, for as long as nothing is done to the model in between.
    """
    if not runs:
        return []
    known = {} if known is None else known
    model, kinds = runs[0].model, dict.fromkeys(map(_kind, runs))
    if len(kinds) > 1:
        return _apart(runs, kinds, known)
    with ExitStack() as stack:
        stack.enter_context(model.lock)
        model.patch(runs[0].patches)
        stack.enter_context(model.skipping(runs[0].clip_skip))
        for encoder in model.encoders:
            stack.enter_context(encoder.remembering())
        # After patches, since a LoRA changes the encoders too.
        marks = model.marks
        for run in runs:
            run.known = known
            _check_encoders(run, marks)
        prompts = _encode([Job(run, at) for run in runs for at in run.boundaries()], known)
        guided = [run for run in runs if run.guided]
        negatives = _encode(
            [Job(run, at, negative=True) for run in guided for at in run.boundaries()], known
        )
    return [_phases(run, prompts, negatives, marks) for run in runs]


def check_encoders(run: Run) -> None:
    """Raises `ConditioningNotUsable` if the run starts from a conditioning of other encoders than its model has now."""
    with run.model.skipping(run.clip_skip):
        _check_encoders(run, run.model.marks)


def _check_encoders(run: Run, marks: tuple[EncoderMark, ...]) -> None:
    if run.given is not None and run.given.origin is not None:
        check_same_encoders(run.given.origin.encoders, marks, "the conditioning", "the model")


@torch.no_grad()
def encode_texts(run: Run, encoder: TextEncoder, texts: Sequence[str]) -> list[TextEmbedding]:
    """Texts of their own, no parts of the prompt, as the encoder reads them in this run; in one forward pass.

    For edits that set the prompt against other texts: learned concepts stand where a text names their placeholders,
    LoRAs act, and what was encoded before is in `run.known`.
    """
    unique: dict[tuple, tuple[Tokens, Tensor | None]] = {}
    keys = []
    for text in texts:
        job = Job(run, aside=text)
        wording = _worded(job, encoder)
        tokens = read(encoder, job.script(encoder), wording)
        if tokens.lost:
            _warn_of_loss(run, tokens, f'"{text}"')
        keys.append(job.key(encoder, wording))
        unique[keys[-1]] = tokens, _token_embeds(encoder, tokens, job.edits, run)
    found = _through(encoder, unique, run.known, _place(encoder, run))
    return [found[key] for key in keys]


def _kind(run: Run) -> tuple[Any, ...]:
    """What a model is to be like for it: the layer that is read, and what is patched."""
    return run.clip_skip, *(key for key, _ in run.patches)


def _apart(runs: Sequence[Run], kinds: Iterable[tuple], known: Known) -> list[Conditioning]:
    """Runs that want the model otherwise, those of one kind together."""
    done: dict[int, Conditioning] = {}
    for kind in kinds:
        alike = [run for run in runs if _kind(run) == kind]
        done |= zip(map(id, alike), condition(alike, known), strict=True)
    return [done[id(run)] for run in runs]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One side of a run, as it is from this fraction of the denoising on; or a text `aside`, whatever the time."""

    run: Run
    at: float = 0.0
    negative: bool = False
    aside: str | None = None

    @property
    def edits(self) -> list[Edit]:
        """Those that change what goes into the encoder."""
        at = self.at if self.aside is None else None
        return self.run.doing("edit_token_embeds", at, negative=self.negative)

    def script(self, encoder: TextEncoder) -> Script:
        if self.aside is not None:
            return Script(self.aside)
        return self.run.script(encoder.name, negative=self.negative)

    def key(self, encoder: TextEncoder, wording: Wording | None) -> tuple:
        """Jobs of one key are encoded once."""
        edits = ((id(self.run), id(edit)) for edit in self.edits)
        return (self.script(encoder), wording, *edits)

    @contextmanager
    def reading(self, encoder: TextEncoder) -> Iterator[None]:
        """While this holds, the run's prompt is what this encoder reads, and phrases are found in it."""
        own = self.run.prompt
        if not self.negative and self.aside is None:
            given = self.given(encoder)
            self.run.prompt = self.script(encoder).text if given is None else given.tokens.text
        try:
            yield
        finally:
            self.run.prompt = own

    def given(self, encoder: TextEncoder) -> TextEmbedding | None:
        """What the run starts from, where it is not this text."""
        source = self.run.given
        if source is None or (self.negative and self.run.negative is not None):
            return None
        held = source.at(self.at)
        side = held.negative if self.negative else held.prompt
        found = next((e for e in side or () if e.tokens.encoder == encoder.name), None)
        return None if found is None else found.to(encoder.device)


def _encode(jobs: Sequence[Job], known: Known) -> dict[tuple[int, float], Embeddings]:
    """Each job's embeddings by run and fraction, the edits of that time applied."""
    if not jobs:
        return {}
    encoders = jobs[0].run.model.encoders
    columns = [_encode_one(encoder, jobs, known) for encoder in encoders]
    rows = zip(*columns, strict=True)
    return {(id(job.run), job.at): tuple(row) for job, row in zip(jobs, rows, strict=True)}


def _encode_one(encoder: TextEncoder, jobs: Sequence[Job], known: Known) -> list[TextEmbedding]:
    """The jobs through one encoder; times that differ only in later edits share its work."""
    unique: dict[tuple, tuple[Tokens, Tensor | None]] = {}
    given = [job.given(encoder) for job in jobs]
    worded = [
        None if found is not None else _worded(job, encoder)
        for job, found in zip(jobs, given, strict=True)
    ]
    keys = [job.key(encoder, wording) for job, wording in zip(jobs, worded, strict=True)]
    for job, wording, key in zip(jobs, worded, keys, strict=True):
        if wording is not None and key not in unique:
            tokens = read(encoder, job.script(encoder), wording)
            if tokens.lost:
                _warn_of_loss(job.run, tokens, "the prompt")
            with job.reading(encoder):
                unique[key] = tokens, _token_embeds(encoder, tokens, job.edits, job.run)
    encoded = _through(encoder, unique, known, _place(encoder, jobs[0].run))
    return [
        _edited(encoded[key] if found is None else found, job, encoder)
        for key, job, found in zip(keys, jobs, given, strict=True)
    ]


def _worded(job: Job, encoder: TextEncoder) -> Wording:
    """The text that this encoder reads, after the edits that put other words in its place."""
    script, run = job.script(encoder), job.run
    wording = Wording.of(script.text)
    for edit in run.doing("edit_prompt", negative=job.negative):
        with blamed(edit), job.reading(encoder):
            wording = edit.edit_prompt(wording, run)
        if not isinstance(wording, Wording) or wording.typed != script.text:
            raise PluginError(
                f'the edit "{edit.name}" returned no wording of the prompt "{script.text}"'
            )
    return wording


def _place(encoder: TextEncoder, run: Run) -> tuple:
    """What a text comes to depends on the layer that is read and on what is patched."""
    return encoder.name, encoder.layer, run.model.patched


def _through(
    encoder: TextEncoder,
    texts: dict[tuple, tuple[Tokens, Tensor | None]],
    known: Known,
    place: tuple,
) -> dict[tuple, TextEmbedding]:
    """The texts through the encoder, in one pass, but for those known already; weighted as their scripts say."""
    found = {key: known[place, key] for key in texts if (place, key) in known}
    by_compel = [key for key in texts if key not in found and key[0].reading == "compel"]
    found |= {key: compel_reading.encode(encoder, key[0]) for key in by_compel}
    missing = {key: value for key, value in texts.items() if key not in found}
    if missing:
        tokens, embeds = zip(*missing.values(), strict=True)
        for key, embedding in zip(missing, encoder.encode_batch(tokens, embeds), strict=True):
            found[key] = weighted(embedding, key[0])
    for key, (_, embeds) in texts.items():
        if embeds is None and (place, key) not in known:
            known[place, key] = found[key]
    return found


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


def _edited(embedding: TextEmbedding, job: Job, encoder: TextEncoder) -> TextEmbedding:
    """The embedding after the edits of this time, in the user's order, each one's effect on the report."""
    run = job.run
    own = run.script(encoder.name, negative=True).text
    absent = not own and run.negative is None and (run.given is None or run.given.negative is None)
    if job.negative and absent and run.model.zero_negative:
        pooled = None if embedding.pooled is None else torch.zeros_like(embedding.pooled)
        blank = torch.zeros_like(embedding.hidden)
        return replace(embedding, hidden=blank, pooled=pooled)
    for edit in run.doing("edit_embedding", job.at, negative=job.negative):
        with blamed(edit), job.reading(encoder):
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
    if run.given is not None:
        by_hand = Origin(run.model.family, marks, ({"made": "by hand"},))
        origin = run.given.origin or by_hand
        return origin.then(edited=edits) if edits else origin
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
    tiny = torch.finfo(torch.float32).tiny
    change = ((edited.hidden[free].float() - rows).norm() / rows.norm().clamp_min(tiny)).item()
    index = next(i for i, candidate in enumerate(run.edits) if candidate is edit)
    changes = run.report["edits"][index].get("change", {})
    name = before.tokens.encoder
    run.record(edit, change=changes | {name: round(max(change, changes.get(name, 0.0)), 6)})


def _warn_of_loss(run: Run, tokens: Tokens, what: str) -> None:
    run.warn(
        f'{what} is longer than the {len(tokens.ids)} tokens of the encoder "{tokens.encoder}";'
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
