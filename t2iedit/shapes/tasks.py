"""The prompts a model is measured on, what each asks for, and scenes that fulfil them."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from t2iedit.shapes.captions import CLEARLY, RELATIONS, plain_caption
from t2iedit.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT,
    SHAPES,
    TILT,
    Scene,
    SceneObject,
    place,
)
from t2iedit.shapes.scoring import Wanted

COUNTS = {"one object": 1, "two objects": 2, "three objects": 3}
TESTED_RELATIONS = ("left of", "above")
KNOWN = tuple((c, s) for c in COLORS for s in SHAPES if (c, s) not in HELD_OUT)

Pair = tuple[str, str]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt of a row and what it asks for.

    `relation` says how its first object lies to its second.
    """

    row: str
    prompt: str
    wanted: Wanted
    relation: str | None = None


def make_tasks(n: int, random: Random) -> list[Task]:
    """`n` prompts for each row, every known pair of colour and shape about equally often."""
    known, held_out = _endless(KNOWN, random), _endless(tuple(sorted(HELD_OUT)), random)
    tasks = [_task(row, _distinct(known, count)) for row, count in COUNTS.items() for _ in range(n)]
    grounds = _endless(tuple(BACKGROUNDS), random)
    tasks += [_task("background", _distinct(known, 1), next(grounds)) for _ in range(n)]
    tasks += [_task("held-out pair", _distinct(held_out, 1)) for _ in range(n)]
    for relation in TESTED_RELATIONS:
        tasks += [_related(relation, _distinct(known, 2)) for _ in range(n)]
    return tasks


def _endless(items: tuple[Item, ...], random: Random) -> Iterator[Item]:
    """The items shuffled, again and again."""
    while True:
        yield from random.sample(items, len(items))


def _distinct(pairs: Iterator[Pair], count: int) -> tuple[Pair, ...]:
    """The next pairs that share neither colour nor shape, so that every leak shows."""
    chosen: list[Pair] = []
    while len(chosen) < count:
        color, shape = next(pairs)
        if all(color != c and shape != s for c, s in chosen):
            chosen.append((color, shape))
    return tuple(chosen)


def _task(row: str, pairs: tuple[Pair, ...], background: str | None = None) -> Task:
    scene = Scene(tuple(SceneObject(s, c) for c, s in pairs), background or "white")
    prompt = plain_caption(scene, background=background is not None)
    return Task(row, prompt, Wanted(pairs, background))


def _related(relation: str, pairs: tuple[Pair, ...]) -> Task:
    first, second = (_task(relation, (pair,)).prompt for pair in pairs)
    return Task(relation, f"{first} {relation} {second}", Wanted(pairs), relation)


def drawn(task: Task, random: Random) -> Scene:
    """A scene that a task's prompt describes."""
    objects = [SceneObject(s, c, angle=random.uniform(-TILT, TILT)) for c, s in task.wanted.objects]
    background = task.wanted.background or random.choice(list(BACKGROUNDS))
    while True:
        placed = place(objects, random)
        if task.relation is None or RELATIONS[task.relation](*placed) > CLEARLY:
            return Scene(placed, background)
