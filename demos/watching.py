"""Long work watched from outside, and stopped: in a thread of its own, telling how far it is."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

Tell = Callable[[Any], None]


class Stopped(BaseException):
    """The visitor does not want it any more; like asyncio's cancellation, no failure that anything should catch."""


@dataclass(frozen=True, slots=True)
class Moment:
    """`done` of `total`, and the seconds that the rest should take, if that can be told yet."""

    done: int
    total: int
    seconds_left: float | None = None
    preview: Image | None = None
    what: str = "step"

    @property
    def sentence(self) -> str:
        left = "" if self.seconds_left is None else f", about {_spoken(self.seconds_left)} left"
        return f"{self.what} {self.done} of {self.total}{left}"


@dataclass
class Clock:
    """Estimates what is left of `total` from what is done since the first was, which often takes longer than the others."""

    total: int
    what: str = "step"
    done: int = 0
    _first: tuple[int, float] = (0, 0.0)

    def moment(self, count: int = 1, preview: Image | None = None) -> Moment:
        """After `count` more."""
        now = time.monotonic()
        if not self.done:
            self._first = count, now
        self.done += count
        since = self.done - self._first[0]
        left = (now - self._first[1]) / since * (self.total - self.done) if since else None
        return Moment(self.done, self.total, left, preview, self.what)


def stop_if(stop: threading.Event) -> None:
    """Raises `Stopped` if it is set."""
    if stop.is_set():
        raise Stopped


def watched(work: Callable[[Tell], None], stop: threading.Event) -> Iterator[Any]:
    """What `work` tells, as it tells it. Closing the iterator sets `stop`, which `work` is to look at.

    Raises whatever `work` raises.
    """
    news: queue.Queue[Any] = queue.Queue()
    over = object()

    def run() -> None:
        try:
            work(news.put)
            news.put(over)
        # It is raised again where the visitor is told.
        except BaseException as error:
            news.put(error)

    worker = threading.Thread(target=run, name="demo-work", daemon=True)
    worker.start()
    try:
        while (said := news.get()) is not over:
            if isinstance(said, BaseException):
                raise said
            yield said
    finally:
        stop.set()
        worker.join()


def _spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
