"""Requests being carried out: how far, how long still, what it looks like, and each result as it is there."""

import threading
import time
from collections.abc import Iterator, Sequence

from names import shareable
from previews import preview
from watching import Clock, Moment, Tell, stop_if, watched

from t2iedit import Model, Progress, Request, Result, generate

EVERY = 0.4
"""Seconds between previews."""


def painted(
    model: Model, requests: Sequence[Request], stop: threading.Event
) -> Iterator[Moment | Result]:
    """Moments, and the results in order. Setting `stop`, or closing the iterator, ends the denoising at its next step.

    Raises `Stopped`, and whatever `generate` raises.
    """
    return watched(lambda tell: _paint(model, requests, stop, tell), stop)


def _paint(model: Model, requests: Sequence[Request], stop: threading.Event, tell: Tell) -> None:
    steps = [(request.steps or model.defaults.steps) * len(request.seeds) for request in requests]
    clock, shown = Clock(sum(steps)), 0.0
    tell(clock.moment(0))

    def follow(progress: Progress) -> None:
        nonlocal shown
        stop_if(stop)
        due = time.monotonic() - shown > EVERY
        moment = clock.moment(1, preview(model, progress.latents) if due else None)
        if due:
            shown = time.monotonic()
            tell(moment)

    for request in requests:
        stop_if(stop)
        tell(shareable(generate(model, request, on_step=follow)))
