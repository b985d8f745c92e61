"""Who says what is in a picture: the detector of the world of shapes, or GenEval's scorer on any other model's pictures.

Both read pictures where GenEval wants them: `PLACE/00012/samples/0000.png` beside `PLACE/00012/metadata.jsonl`.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Protocol

from PIL import Image

from t2iedit.errors import UserError
from t2iedit.prompts import Asked, prompt_set
from t2iedit.shapes.detector import Detection, detect
from t2iedit.shapes.scoring import Wanted, score
from t2iedit.shapes.tasks import COUNTS, Task, make_tasks

Sizes = dict[str, int]
"""How many prompts of one, two and three objects, by the names of `COUNTS`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one picture: of the `objects` asked for, how many are there in some colour, in their own, in another's.

    `right` means that and nothing else is there, and `likeness` is what is both asked for and found over what is either.
    """

    objects: int
    present: int
    bound: int
    leaked: int
    right: bool
    likeness: float


class Referee(Protocol):
    def tasks(self, sizes: Sizes, seed: int) -> list[Task]:
        """Different prompts, those of each size in turn, so that the first few are of all sizes alike."""
        ...

    def judge(self, tasks: Sequence[Task], place: Path) -> list[Verdict]:
        """A verdict for each task, in their order."""
        ...


class Detector:
    """Sees every colour and shape of the bundled model's world; in `jobs` processes."""

    def __init__(self, jobs: int = 1) -> None:
        # Not forked, since this process may hold a GPU.
        self.pool = ProcessPoolExecutor(jobs, get_context("spawn")) if jobs > 1 else None
        self.known: dict[Path, Detection] = {}

    def tasks(self, sizes: Sizes, seed: int) -> list[Task]:
        found: dict[str, dict[str, Task]] = {row: {} for row in sizes}
        random = Random(seed)
        while any(len(found[row]) < n for row, n in sizes.items()):
            for task in make_tasks(8, random):
                own = found.get(task.row, {})
                # Of single objects there are but a few dozen prompts, so they come again with other noise.
                key = f"{task.prompt} {len(own)}" if task.row == "one object" else task.prompt
                if len(own) < sizes.get(task.row, 0):
                    own[key] = task
        return in_turn([list(tasks.values()) for tasks in found.values()])

    def judge(self, tasks: Sequence[Task], place: Path) -> list[Verdict]:
        paths = [picture(place, index) for index in range(len(tasks))]
        new = [path for path in paths if path not in self.known]
        found = self.pool.map(seen, new, chunksize=4) if self.pool else map(seen, new)
        self.known |= dict(zip(new, found, strict=True))
        return [
            of_detection(self.known[path], task.wanted)
            for path, task in zip(paths, tasks, strict=True)
        ]


class GenEval:
    """Leaves the pictures to GenEval's `evaluate_images.py`, and reads what it found."""

    SETS = dict(zip(COUNTS, ("colours", "colour-pairs", "colour-triples"), strict=True))

    def tasks(self, sizes: Sizes, seed: int) -> list[Task]:
        return in_turn(
            [
                [as_task(row, asked) for asked in prompt_set(self.SETS[row], n, seed)]
                for row, n in sizes.items()
            ]
        )

    def judge(self, tasks: Sequence[Task], place: Path) -> list[Verdict]:
        scores = place.with_suffix(".scores.jsonl")
        if not scores.exists():
            raise UserError(
                f'the pictures in "{place}" wait for GenEval: python evaluation/evaluate_images.py "{place}" --outfile'
                f' "{scores}", with --model-path as its README says; do so for all folders beside it, and run this again'
            )
        found = {}
        for line in scores.read_text().splitlines():
            result = json.loads(line)
            found[int(Path(result["filename"]).parts[-3])] = result
        missing = [index for index in range(len(tasks)) if index not in found]
        if missing:
            raise UserError(
                f'"{scores}" says nothing of picture {missing[0]:05}, and of {len(missing)} in all; score "{place}" again'
            )
        return [of_geneval(found[index], task.wanted) for index, task in enumerate(tasks)]


def in_turn(rows: Sequence[list[Task]]) -> list[Task]:
    """The rows' tasks interleaved, each row's at an even pace."""
    placed = [
        ((index + 0.5) / len(row), number, task)
        for number, row in enumerate(rows)
        for index, task in enumerate(row)
    ]
    return [task for *_, task in sorted(placed, key=lambda item: item[:2])]


def as_task(row: str, asked: Asked) -> Task:
    return Task(
        row, asked.prompt, Wanted(tuple((item["color"], item["class"]) for item in asked.include))
    )


def as_asked(task: Task) -> Asked:
    """What GenEval is told of a task."""
    include = tuple(
        {"class": thing, "count": 1, "color": color} for color, thing in task.wanted.objects
    )
    return Asked(task.prompt, task.row.replace(" ", "_"), include)


def picture(place: Path, index: int) -> Path:
    return place / f"{index:05}" / "samples" / "0000.png"


def seen(path: Path) -> Detection:
    with Image.open(path) as image:
        return detect(image)


def of_detection(detection: Detection, wanted: Wanted) -> Verdict:
    result = score(detection, wanted)
    found = Counter((item.color, item.shape) for item in detection.objects)
    asked = Counter(wanted.objects)
    objects = len(wanted.objects)
    return Verdict(
        objects,
        present=objects - result.dropped,
        bound=result.present,
        leaked=min(objects, result.leaked),
        right=result.right,
        likeness=(found & asked).total() / (found | asked).total(),
    )


def of_geneval(result: dict, wanted: Wanted) -> Verdict:
    """GenEval gives a reason for each thing that is missing, or not in its colour."""
    reasons = (result.get("reason") or "").splitlines()
    dropped = leaked = wrong = 0
    for color, thing in wanted.objects:
        dropped += any(line.startswith(f"expected {thing}>=") for line in reasons)
        for line in reasons:
            if line.startswith(f"expected {color} {thing}>="):
                wrong += 1
                others = {other for other, _ in wanted.objects} - {color}
                leaked += bool(others & set(re.findall(r"\d+ (\w+)", line.partition("; and ")[2])))
    objects = len(wanted.objects)
    bound = objects - dropped - wrong
    right = bool(result["correct"])
    return Verdict(objects, objects - dropped, bound, leaked, right, bound / objects)
