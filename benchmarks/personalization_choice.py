"""Which of several settings is taken, by a rule that nobody's taste has a part in.

A point's score is the mean of "identified" and "followed" over the tuning concepts after both stages: how often the
concept is clearly there, and how much of the rest of the prompt is. Not of "identity", which the category's own word
already has most of where the concept looks like it. The best score is taken; of equal ones the point that comes first,
and the paper's values come first. A point that lacks a concept is passed over.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from personalization_pieces import STAGES, Piece
from personalization_referee import Seen

DIGITS = 3
"""Of a score; what is equal in these is equal."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The settings that differ from the preset, and every point's score by what was tuned."""

    settings: dict[str, Any]
    scores: dict[str, dict[str, float]]

    def with_best(
        self, what: str, points: Mapping[str, Mapping[str, Any]], scores: Mapping[str, float]
    ) -> "Choice":
        """With the best point's settings. Raises `ValueError` where no point has a score."""
        chosen = best_of([name for name in points if name in scores], scores)
        return Choice(self.settings | dict(points[chosen]), self.scores | {what: dict(scores)})

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"settings": self.settings, "scores": self.scores}, indent=1)
        path.write_text(text + "\n")


def read_choice(path: Path | None) -> Choice:
    """What was chosen, nothing without a file."""
    if path is None:
        return Choice({}, {})
    stored = json.loads(path.read_text())
    return Choice(stored["settings"], stored["scores"])


def best_of(names: Sequence[str], scores: Mapping[str, float]) -> str:
    """The first of those with the best score."""
    return max(names, key=lambda name: scores[name])


def scores_of(pieces: Sequence[Piece], names: Sequence[str], concepts: int) -> dict[str, float]:
    """The score of each point that has all concepts."""
    seen = {name: [p.seen[name, STAGES[1]] for p in pieces if p.job.name == name] for name in names}
    return {name: score(own) for name, own in seen.items() if len(own) == concepts}


def score(concepts: Sequence[Sequence[Seen]]) -> float:
    """Every concept counts alike."""
    means = [np.mean([(s.identified + s.followed) / 2 for s in seen]) for seen in concepts]
    return round(float(np.mean(means)), DIGITS)
