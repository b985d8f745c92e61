"""Prompts that say more than words: weights, windows, and texts of their own for single encoders."""

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from t2iedit.errors import EditNotSupported, InvalidRequest
from t2iedit.spans import Span
from t2iedit.text import Kind, TextEmbedding, TextEncoder, Tokens
from t2iedit.wording import Wording

SYNTAXES = ("plain", "windows", "a1111", "compel")
READINGS = ("a1111", "a1111_no_norm", "compel")
STEP = 1.1
"""What one pair of A1111's brackets multiplies or divides by."""

Weight = tuple[int, int, float]
"""Characters from, up to, and how much they count."""


@dataclass(frozen=True, slots=True)
class Script:
    """A prompt as it is to be read: plain text, weights of parts of it, and where new windows begin.

    Without `windows` it is cut off at the encoder's window, as diffusers does. `reading` says what a weight means, and
    `markup` is the text as it was typed where compel itself reads it.
    """

    text: str
    weights: tuple[Weight, ...] = ()
    breaks: tuple[int, ...] = ()
    windows: bool = False
    reading: str | None = None
    markup: str | None = None

    def replaced(self, span: Span, to: str) -> "Script":
        """The script with another phrase at the span, which keeps the weight of what stood there."""
        shift = len(to) - (span.end - span.start)

        def moved(place: int) -> int:
            return place if place <= span.start else max(span.start, place + shift)

        return replace(
            self,
            text=self.text[: span.start] + to + self.text[span.end :],
            weights=tuple((moved(a), moved(b), weight) for a, b, weight in self.weights),
            breaks=tuple(moved(place) for place in self.breaks),
        )


def parse(text: str, syntax: str = "plain", reading: str | None = None) -> Script:
    """The prompt by one of the `SYNTAXES`, its weights by one of the `READINGS`. Raises `InvalidRequest`."""
    if syntax == "plain":
        return Script(text)
    if syntax == "compel":
        from t2iedit.compel_reading import plain_text

        return Script(plain_text(text), windows=True, reading="compel", markup=text)
    pieces = _brackets(text) if syntax == "a1111" else [(text, 1.0)]
    return _joined(pieces, reading or "a1111")


def read(encoder: TextEncoder, script: Script, wording: Wording | None = None) -> Tokens:
    """The script's tokens, in as many windows as it needs if it may have several; of other words where given.

    Raises `EditNotSupported` for other words where compel reads the prompt itself.
    """
    words = Wording.of(script.text) if wording is None else wording
    if script.reading == "compel" and words.text != script.text:
        raise EditNotSupported(
            "compel reads the prompt itself, so no edit can put other words in it; use syntax a1111"
        )
    if script.windows and encoder.windowed:
        return encoder.tokenize_windows(words, script.breaks)
    return encoder.tokenize(words)


def weighted(embedding: TextEmbedding, script: Script) -> TextEmbedding:
    """The embedding with its rows weighted as A1111 does.

    Each row is multiplied by its token's weight; "a1111" then scales every window back to its mean, BOS included, and
    "a1111_no_norm" leaves it. Weights of 1 change nothing, bit for bit.
    """
    factors = torch.tensor([_weight(script, *place) for place in embedding.tokens.offsets])
    if bool((factors == 1).all()):
        return embedding
    hidden = embedding.hidden
    scaled = hidden * factors.to(hidden)[:, None]
    if script.reading == "a1111":
        scaled = _renormalised(scaled, hidden, len(embedding.tokens.of(Kind.BOS)) or 1)
    return embedding.with_hidden(scaled)


def _renormalised(scaled: Tensor, before: Tensor, windows: int) -> Tensor:
    pairs = zip(scaled.chunk(windows), before.chunk(windows), strict=True)
    return torch.cat([after * (original.mean() / after.mean()) for after, original in pairs])


def _weight(script: Script, start: int, end: int) -> float:
    if start == end:
        return 1.0
    return next((weight for a, b, weight in script.weights if a < end and start < b), 1.0)


PIECES = re.compile(
    r"\\.|[(\[]|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[)\]]|[^\\()\[\]:]+|.", re.DOTALL
)


def _brackets(text: str) -> list[tuple[str, float]]:
    """A1111's grammar: `(up)`, `(much:1.4)`, `[down]`, brackets in brackets, `\\(` for the character itself."""
    pieces: list[tuple[str, float]] = []
    open_round: list[int] = []
    open_square: list[int] = []

    def scale(since: int, factor: float) -> None:
        pieces[since:] = [(words, weight * factor) for words, weight in pieces[since:]]

    for found in PIECES.finditer(text):
        piece, number = found[0], found[1]
        if piece in "([":
            (open_round if piece == "(" else open_square).append(len(pieces))
        elif piece == "]" and open_square:
            scale(open_square.pop(), 1 / STEP)
        elif (piece == ")" or number is not None) and open_round:
            scale(open_round.pop(), STEP if number is None else float(number))
        else:
            escaped = len(piece) == 2 and piece[0] == "\\"
            pieces.append((piece[1] if escaped else piece, 1.0))
    for places, factor in ((open_round, STEP), (open_square, 1 / STEP)):
        for since in places:
            scale(since, factor)
    return pieces


def _joined(pieces: list[tuple[str, float]], reading: str) -> Script:
    text, weights, breaks = "", [], []
    for words, weight in pieces:
        for number, part in enumerate(re.split(r"\s*\bBREAK\b\s*", words)):
            if number:
                text += "" if text.endswith(" ") else " "
                breaks.append(len(text))
            if part and weight != 1:
                weights.append((len(text), len(text) + len(part), weight))
            text += part
    return Script(text, tuple(weights), tuple(breaks), True, reading)


def check(syntax: str, reading: str | None) -> None:
    """Raises `InvalidRequest` for a syntax or a reading that there is not."""
    if syntax not in SYNTAXES:
        raise InvalidRequest(f'syntax "{syntax}" is unknown; give {", ".join(SYNTAXES)}')
    if reading is not None and reading not in READINGS:
        raise InvalidRequest(f'weights "{reading}" is unknown; give {", ".join(READINGS)}')
    if reading is not None and syntax not in ("a1111", "compel"):
        raise InvalidRequest(
            f'weights "{reading}" needs syntax a1111 or compel, whose prompts have weights'
        )
    if syntax == "compel" and reading not in (None, "compel"):
        raise InvalidRequest(
            f'syntax compel has weights of its own kind; leave out weights "{reading}"'
        )
