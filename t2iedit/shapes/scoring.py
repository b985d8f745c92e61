"""What a prompt asks for against what a picture shows, as numbers."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from t2iedit.shapes.detector import UNKNOWN, Detection

Z = 1.959964
"""Standard deviations on each side of a 95 % interval."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Objects as (colour, shape), and the background if the prompt names one."""

    objects: tuple[tuple[str, str], ...]
    background: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """How well a picture does what its prompt asks.

    `right` asks for the wanted objects and nothing else, on whatever background; `present` counts
    the wanted objects found, each found object used once; `dropped` counts the wanted shapes found
    in no colour; `leaked` counts found shapes that were wanted, in a colour wanted only of others.
    """

    right: bool
    present: int
    dropped: int
    leaked: int
    shapes_right: bool
    colors_right: bool
    background_right: bool | None


def score(detection: Detection, wanted: Wanted) -> Score:
    found = Counter((item.color, item.shape) for item in detection.objects)
    asked = Counter(wanted.objects)
    shapes, asked_shapes = _second(found), _second(asked)
    return Score(
        right=found == asked,
        present=(found & asked).total(),
        dropped=(asked_shapes - shapes).total(),
        leaked=sum(_leaked(pair, asked) * count for pair, count in (found - asked).items()),
        shapes_right=shapes == asked_shapes,
        colors_right=_first(found) == _first(asked),
        background_right=_background_right(detection, wanted),
    )


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share of `n` trials; (0, 1) where there is none."""
    if n == 0:
        return 0.0, 1.0
    share, spread = successes / n, Z * Z / n
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _leaked(pair: tuple[str, str], asked: Counter[tuple[str, str]]) -> bool:
    color, shape = pair
    own = {c for c, s in asked if s == shape}
    others = {c for c, s in asked if s != shape}
    return bool(own) and color != UNKNOWN and color in others - own


def _background_right(detection: Detection, wanted: Wanted) -> bool | None:
    return None if wanted.background is None else detection.background == wanted.background


def _first(pairs: Counter[tuple[str, str]]) -> Counter[str]:
    return _count((pair[0], n) for pair, n in pairs.items())


def _second(pairs: Counter[tuple[str, str]]) -> Counter[str]:
    return _count((pair[1], n) for pair, n in pairs.items())


def _count(parts: Iterable[tuple[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for name, count in parts:
        total[name] += count
    return total
