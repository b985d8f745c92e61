"""The built-in edit `swap`: other words for some of the prompt's, from one moment of the denoising to another."""

from collections.abc import Callable
from dataclasses import replace

from pydantic import Field

from t2iedit import compel_reading
from t2iedit.edit import Edit, Options, Phrase, Prompt, Run
from t2iedit.errors import EditNotSupported
from t2iedit.hookspecs import hookimpl
from t2iedit.spans import Span
from t2iedit.text import Kind, TextEmbedding, Tokens
from t2iedit.weighting import Script, read, weighted


class Swap(Edit):
    """Replace a phrase of the prompt while it is painted: `start=0.5` paints the first half as it was typed.

    A1111 writes this [red car:blue car:0.5]. The text encoder reads the new sentence whole, so the words around the
    phrase mean what they mean beside the new one. Edits that follow may name the phrase as it was typed.
    """

    name = "swap"
    example = {"phrase": "red cat", "to": "blue car"}
    neutral = {"phrase": "red cat", "to": "red cat"}

    class Options(Options):
        phrase: Phrase = Field(description="Words of the prompt to replace.")
        to: Prompt = Field(description="What is said in their place.")

    def check(self, run: Run) -> None:
        before = run.edits[: next(i for i, edit in enumerate(run.edits) if edit is self)]
        lost = [
            edit.name
            for edit in before
            if "edit_embedding" in edit.stages and edit.name != self.name
        ]
        early = {"edit_prompt", "edit_token_embeds"}
        lost += [edit.name for edit in run.edits if early & set(edit.stages)]
        if lost:
            raise EditNotSupported(
                f"swap has the sentence encoded again, and {', '.join(lost)} would be lost; put swap first, without"
                " edits of what goes into the encoder"
            )
        if any(self._clashes(edit) for edit in before if edit.name == self.name):
            raise EditNotSupported(
                "two swaps act at once for part of the time; let the later one act within the earlier one's start and stop"
            )
        if run.given is not None:
            raise EditNotSupported("swap has the sentence encoded again; give it when encoding")
        if any(script.markup is not None for script in run.scripts.values()):
            raise EditNotSupported(
                "compel reads the prompt itself, so swap cannot put other words in it; use syntax a1111"
            )
        run.span(self.options.phrase)

    def edit_embedding(self, embedding: TextEmbedding, run: Run) -> TextEmbedding:
        name, earlier = embedding.tokens.encoder, self._earlier(run)
        script, spans = run.script(name), []
        for edit in (*earlier, self):
            span = run.span(edit.options.phrase)
            spans.append((span, edit.options.to))
        for span, to in sorted(spans, key=lambda pair: -pair[0].start):
            script = script.replaced(span, to)
        if script.text == run.script(name).text:
            return embedding
        fresh = _read(run, name, script)
        if len(fresh.tokens.ids) != len(embedding.tokens.ids):
            raise EditNotSupported(
                "swap makes the prompt need another number of windows; say it shorter"
            )
        hidden = fresh.hidden.clone()
        bos = embedding.tokens.of(Kind.BOS)
        hidden[bos] = embedding.hidden[bos]
        typed = _as_typed(fresh.tokens, run.script(name).text, spans)
        return replace(fresh, tokens=typed, hidden=hidden)

    def _earlier(self, run: Run) -> list[Edit]:
        """Swaps before this one that act when it does: all of them are said in one sentence."""
        index = next(i for i, edit in enumerate(run.edits) if edit is self)
        return [e for e in run.edits[:index] if e.name == self.name and self._overlaps(e)]

    def _overlaps(self, other: Edit) -> bool:
        mine, theirs = self.options, other.options
        return mine.start < theirs.stop and theirs.start < mine.stop

    def _clashes(self, other: Edit) -> bool:
        mine, theirs = self.options, other.options
        within = theirs.start <= mine.start and mine.stop <= theirs.stop
        return self._overlaps(other) and not within


def _read(run: Run, name: str, script: Script) -> TextEmbedding:
    """The other sentence through the encoder, weighted as the prompt is."""
    encoder = run.model.encoder(name)
    if script.reading == "compel":
        return compel_reading.encode(encoder, script)
    tokens = read(encoder, script)
    if tokens.lost:
        run.warn(
            f'swap makes the prompt too long for "{name}"; these words are lost: "{tokens.lost}"'
        )
    return weighted(encoder.encode(tokens), script)


def _as_typed(tokens: Tokens, text: str, spans: list[tuple[Span, str]]) -> Tokens:
    """The tokens with their places in the text as it was typed, so that later phrases are found."""

    def typed(place: int, *, end: bool) -> int:
        for span, to in sorted(spans, key=lambda pair: pair[0].start):
            if place < span.start or (end and place == span.start):
                return place
            if place < span.start + len(to) or (end and place == span.start + len(to)):
                return span.end if end else span.start
            place += (span.end - span.start) - len(to)
        return place

    offsets = tuple(
        (typed(a, end=False), typed(b, end=True)) if a != b else (0, 0) for a, b in tokens.offsets
    )
    return replace(tokens, text=text, offsets=offsets)


@hookimpl
def register_edits(register: Callable[[type[Edit]], None]) -> None:
    register(Swap)
