"""Which visitor's run is under way, so that Cancel stops that one and no other."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import gradio as gr


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
