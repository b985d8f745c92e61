"""Which visitor's run is under way, so that Cancel stops that one and no other."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import gradio as gr

PATIENCE = 3.0
"""Seconds in which Gradio should have ended a run that it was told to cancel."""
LOOK_EVERY = 0.2


@dataclass
class Stops:
    """One event for each visitor whose run is under way."""

    events: dict[str, threading.Event] = field(default_factory=dict)

    @contextmanager
    def running(self, visitor: gr.Request) -> Iterator[threading.Event]:
        """While this holds, what is set when the visitor cancels."""
        key, event = str(visitor.session_hash), threading.Event()
        self.events[key] = event
        try:
            yield event
        finally:
            # A run that was cancelled may end after its visitor's next one has begun.
            if self.events.get(key) is event:
                del self.events[key]

    def cancel(self, visitor: gr.Request) -> None:
        event = self.events.get(str(visitor.session_hash))
        if event is not None:
            event.set()

    async def ended(self, visitor: gr.Request) -> None:
        """When Gradio, told to cancel the visitor's run, has ended it; if it fails to, the run itself is told to stop."""
        key = str(visitor.session_hash)
        event, until = self.events.get(key), time.monotonic() + PATIENCE
        await asyncio.sleep(LOOK_EVERY)
        while event is not None and self.events.get(key) is event and time.monotonic() < until:
            await asyncio.sleep(LOOK_EVERY)
        if event is not None:
            event.set()
