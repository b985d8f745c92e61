"""Learning a concept, watched: losses, strips, and the concept at the end or where it was stopped."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from t2iedit_context.learning import learn
from t2iedit_context.loop import LearningFailed, LearningInterrupted, Progress
from t2iedit_context.settings import Settings
from watching import Clock, Moment, Tell, watched

from t2iedit import Model

EVERY = 1.0
"""Seconds between news."""
STRIPS = 6
"""Previews of a whole run."""


@dataclass(frozen=True, slots=True)
class News:
    """How far it is, all losses so far by name, and the newest strip of previews."""

    moment: Moment
    losses: dict[str, list[float]]
    strip: Path | None


@dataclass(frozen=True, slots=True)
class Concept:
    """The file; its report, or why it is not the whole run's."""

    path: Path
    report: dict
    cut_short: str | None = None


def learned(
    model: Model, pictures: Sequence[Image.Image], settings: Settings, output: Path, stop: threading.Event
) -> Iterator[News | Concept]:  # fmt: skip
    """News, and at last the concept. Setting `stop` ends it after the step under way, and keeps what is learned.

    Raises what `learn` raises, unless something was learned before.
    """
    return watched(
        lambda tell: _Learning(model, pictures, settings, output, stop, tell).run(), stop
    )


@dataclass
class _Learning:
    model: Model
    pictures: Sequence[Image.Image]
    settings: Settings
    output: Path
    stop: threading.Event
    tell: Tell
    losses: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    told: float = 0.0

    def run(self) -> None:
        self.clock = Clock(self.settings.steps)
        every = max(1, self.settings.steps // STRIPS)
        try:
            found = learn(
                self.model, self.pictures, self.settings, self.output, previews=every, on_step=self.step
            )  # fmt: skip
            self.news(self.clock.moment(0))
            self.tell(Concept(self.output, found.report))
        except (LearningFailed, LearningInterrupted) as stopped:
            # Its first clause is for visitors, the rest for those who have the file's folder.
            reason = str(stopped).split(";")[0]
            self.tell(Concept(self.output, {}, reason))

    def step(self, progress: Progress) -> None:
        for name, value in progress.losses.items():
            self.losses[name].append(value)
        moment = self.clock.moment()
        if self.stop.is_set():
            raise LearningInterrupted(f"stopped after step {progress.step} of {progress.steps}")
        if time.monotonic() - self.told > EVERY:
            self.told = time.monotonic()
            self.news(moment)

    def news(self, moment: Moment) -> None:
        strips = sorted((self.output.with_suffix(".run") / "previews").glob("*.png"))
        losses = {name: list(values) for name, values in self.losses.items()}
        self.tell(News(moment, losses, strips[-1] if strips else None))
