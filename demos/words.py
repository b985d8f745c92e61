"""The prompt's words as things to click: what a click does to the phrases that are picked."""

import re

from t2iedit import Span, locate, occurrences
from t2iedit.errors import SpanNotFound


def words(prompt: str) -> list[Span]:
    """Where its words are, placeholders like <toy> among them; marks and spaces are no words."""
    return [Span(*found.span()) for found in re.finditer(r"<[\w-]+>|\w+(?:['’-]\w+)*", prompt)]


def held(prompt: str, phrase: str) -> list[int]:
    """The numbers of the words that a phrase covers, none if it does not stand in the prompt."""
    try:
        span = locate(prompt, phrase)
    except SpanNotFound:
        return []
    return [
        number
        for number, word in enumerate(words(prompt))
        if word.start < span.end and span.start < word.end
    ]


def picked(prompt: str, phrases: list[str], number: int, *, many: bool = True) -> list[str]:
    """The phrases after a click on word `number`.

    A word that is in a phrase leaves it. Another one joins the phrase next to it, or both if it stands between two, and
    else begins a phrase of its own, which is the only one unless there may be `many`.
    """
    runs = [held(prompt, phrase) for phrase in phrases]
    holding = [place for place, run in enumerate(runs) if number in run]
    if holding:
        parts = _without(runs[holding[0]], number)[: None if many else 1]
        named = [phrase_of(prompt, part) for part in parts]
        return [*phrases[: holding[0]], *named, *phrases[holding[0] + 1 :]]
    beside = [place for place, run in enumerate(runs) if _joins(prompt, run, number)]
    joined = phrase_of(
        prompt, sorted({number, *(word for place in beside for word in runs[place])})
    )
    if not many or not beside:
        return [*phrases, joined] if many else [joined]
    kept = [phrase for place, phrase in enumerate(phrases) if place not in beside[1:]]
    return [joined if phrase == phrases[beside[0]] else phrase for phrase in kept]


def phrase_of(prompt: str, run: list[int]) -> str:
    """Neighbouring words as a phrase, `cat#2` where it stands in the prompt for the second time."""
    spans = words(prompt)
    start, end = spans[run[0]].start, spans[run[-1]].end
    text = prompt[start:end]
    places = [span.start for span in occurrences(prompt, text)]
    number = places.index(start) + 1 if start in places else 1
    return f"{text}#{number}" if number > 1 else text


def _without(run: list[int], number: int) -> list[list[int]]:
    """What is left of it before and after the word."""
    parts = [w for w in run if w < number], [w for w in run if w > number]
    return [part for part in parts if part]


def _joins(prompt: str, run: list[int], number: int) -> bool:
    """Whether nothing but space is between the word and the phrase."""
    if not run or not (number == run[0] - 1 or number == run[-1] + 1):
        return False
    spans = words(prompt)
    first, second = (number, run[0]) if number < run[0] else (run[-1], number)
    return prompt[spans[first].end : spans[second].start].isspace()
