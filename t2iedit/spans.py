"""Phrases as half-open character ranges of the prompt."""

import re
from dataclasses import dataclass

from t2iedit.errors import SpanNotFound


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` up to, not including, `end`."""

    start: int
    end: int

    def overlaps(self, start: int, end: int) -> bool:
        return start < self.end and self.start < end


def occurrences(text: str, phrase: str) -> list[Span]:
    """Every place where the phrase stands as whole words; case and runs of spaces are ignored."""
    words = [re.escape(word) for word in phrase.split()]
    if not words:
        return []
    pattern = r"(?<!\w)" + r"\s+".join(words) + r"(?!\w)"
    return [Span(*found.span()) for found in re.finditer(pattern, text, re.IGNORECASE)]


def numbered(phrase: str) -> tuple[str, int | None]:
    """`cat#2` as ("cat", 1): which occurrence is meant, counted from nought, or None if not said."""
    match = re.fullmatch(r"(.*\S)\s*#(\d+)", phrase.strip(), re.DOTALL)
    if match is None or match[2] == "0":
        return phrase, None
    return match[1], int(match[2]) - 1


def locate(text: str, phrase: str, occurrence: int = 0) -> Span:
    """Where the phrase stands; `cat#2` means the second cat, whatever `occurrence` says.

    Raises `SpanNotFound`, naming the prompt, if it does not stand there that often.
    """
    bare, number = numbered(phrase)
    wanted = occurrence if number is None else number
    found = occurrences(text, bare)
    if wanted < len(found):
        return found[wanted]
    times = {0: "not", 1: "only once"}.get(len(found), f"only {len(found)} times")
    raise SpanNotFound(
        f'"{phrase}" is {times} in the prompt "{text}"; name whole words of the prompt,'
        " and the second of several as word#2"
    )
