"""A model that paints many prompts in several ways, and keeps what it painted."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from referees import Referee, Verdict, as_asked, picture
from together import paint
from tqdm import tqdm

import t2iedit
from t2iedit import digests
from t2iedit.plugins import installed
from t2iedit.shapes.tasks import Task

BATCH = {"cpu": 15, "cuda": 75}
"""By device. The sizes of all sets are multiples of them, or smaller."""


class Way(Protocol):
    """A way to paint a prompt, told from others by its name and its values."""

    @property
    def name(self) -> str: ...

    @property
    def values(self) -> dict[str, Any]: ...

    def request(self, task: Task, seed: int) -> t2iedit.Request: ...


@dataclass(frozen=True)
class Arm:
    """One way to paint: T2I-Zero's options, compel's weight, and how the model is run."""

    name: str
    zero: dict[str, Any] | None = None
    weight: float = 1.0
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        return asdict(self)

    def request(self, task: Task, seed: int) -> t2iedit.Request:
        phrases = [f"{color} {thing}" for color, thing in task.wanted.objects]
        edits, prompt = self._edits(phrases), task.prompt
        if self.weight == 1:
            return t2iedit.Request(prompt, seed=seed, edits=edits, **self.run)
        for phrase in phrases:
            prompt = prompt.replace(phrase, f"({phrase}){self.weight:g}")
        return t2iedit.Request(prompt, seed=seed, edits=edits, syntax="compel", **self.run)

    def _edits(self, phrases: list[str]) -> list[t2iedit.Edit]:
        if self.zero is None:
            return []
        # Suppression keeps concepts apart, so one alone is not suppressed.
        alone = {"suppression": 0.0} if len(phrases) == 1 else {}
        return [installed().edit("t2i_zero")(concepts=phrases, **self.zero | alone)]


class Studio:
    """A model and a folder of what it painted, arm by arm, laid out as GenEval reads it."""

    def __init__(self, model: t2iedit.Model, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.batch = BATCH.get(model.device.type, BATCH["cpu"])

    def place(self, arm: Way, seed: int) -> Path:
        values = arm.values | {"model": self.model.fingerprint, "seed": seed}
        return self.folder / f"{arm.name.replace(' ', '-')}-{digests.of_json(values, 10)}"

    def paint(self, arms: Sequence[Way], tasks: Sequence[Task], seed: int) -> None:
        """What is not painted yet, batch by batch, the arms in turn, so that whatever else the machine does hits all."""
        jobs = [(first, arm) for first in range(0, len(tasks), self.batch) for arm in arms]
        waiting = [(arm, self._missing(first, arm, tasks, seed)) for first, arm in jobs]
        for arm, batch in tqdm(
            [job for job in waiting if job[1]], unit="batch", leave=False, disable=None
        ):
            requests = [arm.request(task, 1000 * seed + index) for index, task in batch]
            images, seconds = paint(self.model, requests)
            for (index, task), image in zip(batch, images, strict=True):
                path = picture(self.place(arm, seed), index)
                path.parent.mkdir(parents=True, exist_ok=True)
                (path.parents[1] / "metadata.jsonl").write_text(json.dumps(as_asked(task).metadata))
                image.save(path.with_suffix(".part"), format="PNG")
                path.with_suffix(".part").rename(path)
            timing = {"first": batch[0][0], "n": len(batch), "seconds": seconds}
            with (self.place(arm, seed) / "seconds.jsonl").open("a") as file:
                file.write(json.dumps(timing) + "\n")

    def _missing(
        self, first: int, arm: Way, tasks: Sequence[Task], seed: int
    ) -> list[tuple[int, Task]]:
        batch, place = list(enumerate(tasks))[first : first + self.batch], self.place(arm, seed)
        return [(index, task) for index, task in batch if not is_there(picture(place, index), task)]

    def seconds(self, arm: Way, seed: int) -> dict[int, float]:
        """A picture's, by the first of its batch, of full batches."""
        lines = (self.place(arm, seed) / "seconds.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        full = max(entry["n"] for entry in found)
        return {e["first"]: e["seconds"] / e["n"] for e in found if e["n"] == full}


def is_there(path: Path, task: Task) -> bool:
    """Whether the picture is, and is of this prompt: prompts may have been changed since."""
    metadata = path.parents[1] / "metadata.jsonl"
    return path.exists() and json.loads(metadata.read_text())["prompt"] == task.prompt


def judged(
    studio: Studio, referee: Referee, arms: Sequence[Arm], tasks: Sequence[Task], seed: int
) -> list[list[Verdict]]:
    """Every arm's pictures of the tasks, painted where they are not yet."""
    studio.paint(arms, tasks, seed)
    return [referee.judge(tasks, studio.place(arm, seed)) for arm in arms]
