"""Two shares that pull against each other: who is on the front, by how much, and as a picture."""

from collections.abc import Callable
from typing import Any

import numpy as np
from cases import Seen
from common import RESAMPLES
from curves import Point, curves
from PIL import Image

PLAIN, DECOR, SCALE, NEGATIVE = "LoRA", "DECOR", "scale", "negative"
"""The LoRA as it is, and how the names of the ways begin that are tried against its leaking."""
MEASURES: dict[str, Callable[[Seen], float]] = {
    "followed x kept": lambda seen: float(seen.followed),
    "not leaked x kept": lambda seen: float(not seen.leaked),
}
TITLES = ("the prompt is followed", "nothing leaks")

Results = dict[str, list[Seen]]
"""What every way's pictures show, in the order of the prompts."""


def area_gain(
    name: str, metric: str, seen: Results, other: str, measure: Callable[[Seen], float]
) -> dict[str, Any]:
    """The area that DECOR's points dominate less that of the other way's, the plain LoRA among both."""
    tables = {way: _table(seen, way, measure) for way in (DECOR, other)}
    count, random = len(seen[PLAIN]), np.random.default_rng(0)

    def gain(chosen: np.ndarray) -> float:
        own, theirs = (area(table[:, chosen].mean(axis=1)) for table in tables.values())
        return own - theirs

    drawn = [gain(random.integers(0, count, count)) for _ in range(RESAMPLES // 4)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    numbers = {"value": gain(np.arange(count)), "low": float(low), "high": float(high)}
    return {"name": name, "metric": f"area, {metric}", "n": count} | numbers


def _table(seen: Results, way: str, measure: Callable[[Seen], float]) -> np.ndarray:
    """(point, picture, axis) of the way at all its strengths and of the plain LoRA."""
    points = [each for name, each in seen.items() if name == PLAIN or name.startswith(way)]
    return np.asarray([[(measure(one), float(one.kept)) for one in each] for each in points])


def area(points: np.ndarray) -> float:
    """Of what at least one of the points (x, y) is as good as, in the unit square."""
    total, best = 0.0, 0.0
    for x, y in sorted(map(tuple, points), reverse=True):
        if y > best:
            total += x * (y - best)
            best = y
    return total


def chart(seen: Results) -> Image.Image:
    """Followed against kept, and not leaked against kept, side by side."""
    parts = [
        curves(_lines(seen, measure), title, "what was learned is kept", "")
        for title, measure in zip(TITLES, MEASURES.values(), strict=True)
    ]
    page = Image.new("RGB", (sum(part.width for part in parts), parts[0].height), "white")
    for number, part in enumerate(parts):
        page.paste(part, (number * parts[0].width, 0))
    return page


def _lines(seen: Results, measure: Callable[[Seen], float]) -> dict[str, list[Point]]:
    def points(way: str) -> list[Point]:
        return [
            (
                float(np.mean([measure(one) for one in each])),
                float(np.mean([one.kept for one in each])),
                name.split()[-1],
            )
            for name, each in seen.items()
            if name.startswith(way)
        ]

    plain = points(PLAIN)
    return {
        "LoRA's scale": [*points(SCALE), *plain],
        "DECOR's strength": [*plain, *points(DECOR)],
        "negative prompt": points(NEGATIVE),
    }
