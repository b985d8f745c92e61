"""The prompt's words as things to click."""

import re
from collections import Counter

from t2iedit import locate
from t2iedit.errors import SpanNotFound

LINKING = frozenset(
    ("a", "an", "the", "and", "or", "of", "on", "in", "at", "to", "with", "without", "for", "by",
     "from", "is", "are", "very", "its", "his", "her")
)  # fmt: skip
LONGEST = 3
"""Words of a phrase that is offered; any phrase is kept that a recipe brings."""


def phrases(prompt: str) -> list[str]:
    """Its words, `cat#2` for the second cat, then the runs of words that belong together."""
    words = re.findall(r"\w+(?:['-]\w+)*", prompt)
    times = Counter(word.lower() for word in words)
    seen: Counter[str] = Counter()
    offered = []
    for word in words:
        if word.lower() in LINKING:
            continue
        seen[word.lower()] += 1
        number = seen[word.lower()]
        offered.append(f"{word}#{number}" if times[word.lower()] > 1 and number > 1 else word)
    return list(dict.fromkeys([*offered, *_runs(prompt)]))


def standing(prompt: str, chosen: list[str]) -> list[str]:
    """Those of the phrases that are in the prompt."""
    return [phrase for phrase in chosen if _stands(prompt, phrase)]


def _runs(prompt: str) -> list[str]:
    """Neighbours without a linking word or a mark between them: "red circle", "white background"."""
    found = []
    for part in re.split(r"[^\w\s'-]", prompt):
        run: list[str] = []
        for word in [*part.split(), "and"]:
            if word.lower() in LINKING:
                if 1 < len(run) <= LONGEST:
                    found.append(" ".join(run))
                run = []
            else:
                run.append(word)
    return found


def _stands(prompt: str, phrase: str) -> bool:
    try:
        locate(prompt, phrase)
    except SpanNotFound:
        return False
    return True
