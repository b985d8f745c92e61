"""Requests being carried out, watched from outside: how far, how long still, what it looks like; and stopped."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL.Image import Image
from previews import preview

from t2iedit import Model, Progress, Request, Result, generate

EVERY = 0.4
"""Seconds between previews."""


class Stopped(BaseException):
    """The visitor does not want it any more; like asyncio's cancellation, no failure that anything should catch."""


@dataclass(frozen=True, slots=True)
class Moment:
    """`done` of `total` steps over all requests, and the seconds that the rest should take."""

    done: int
    total: int
    seconds_left: float
    preview: Image | None

    @property
    def sentence(self) -> str:
        left = f", about {self.seconds_left:.0f} s left" if self.done else ""
        return f"step {self.done} of {self.total}{left}"


def painted(
    model: Model, requests: Sequence[Request], stop: threading.Event
) -> Iterator[Moment | list[Result]]:
    """Moments, and at last the results. Setting `stop`, or closing the iterator, ends the denoising at its next step.

    Raises `Stopped`, and whatever `generate` raises.
    """
    news: queue.Queue[Moment | list[Result] | BaseException] = queue.Queue()
    watch = _Watch(model, requests, stop, news)
    worker = threading.Thread(target=watch.work, daemon=True)
    worker.start()
    try:
        while True:
            said = news.get()
            if isinstance(said, BaseException):
                raise said
            yield said
            if isinstance(said, list):
                return
    finally:
        stop.set()
        worker.join()


class _Watch:
    def __init__(
        self,
        model: Model,
        requests: Sequence[Request],
        stop: threading.Event,
        news: "queue.Queue[Moment | list[Result] | BaseException]",
    ) -> None:
        self.model, self.requests, self.stop, self.news = model, requests, stop, news
        self.total = sum(
            (request.steps or model.defaults.steps) * len(request.seeds) for request in requests
        )
        self.done, self.begun, self.shown = 0, time.monotonic(), 0.0

    def work(self) -> None:
        try:
            self.news.put(Moment(0, self.total, 0.0, None))
            results = []
            for request in self.requests:
                self._stop_if_asked()
                results.append(generate(self.model, request, on_step=self._step))
            self.news.put(results)
        # It is raised again where the visitor is told.
        except BaseException as error:
            self.news.put(error)

    def _step(self, progress: Progress) -> None:
        self._stop_if_asked()
        self.done += 1
        now = time.monotonic()
        if now - self.shown < EVERY:
            return
        self.shown = now
        left = (now - self.begun) / self.done * (self.total - self.done)
        self.news.put(Moment(self.done, self.total, left, preview(self.model, progress.latents)))

    def _stop_if_asked(self) -> None:
        if self.stop.is_set():
            raise Stopped
