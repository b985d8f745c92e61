"""What every tab has at its head: a button that computes, one that cancels it, and a line that says how it stands."""

import html
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

import gradio as gr
from gradio.components import Component
from stopping import Stops
from telling import told
from watching import Moment, Stopped

MODEL = "model"
"""The queue in which all that computes waits, one at a time."""
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""For what answers at once."""
TO_RESULT = "() => { if (matchMedia('(max-width: 700px)').matches) document.querySelector('#tabs').scrollIntoView(); }"
Work = Callable[..., Generator[Any, None, None]]
"""Called with the event that stops it and the inputs' values; yields moments and updates by component."""


class Action:
    """The two buttons and the line; `name` begins their ids. A tab's `chief` one stays in reach on a phone."""

    def __init__(
        self, name: str, label: str, stops: Stops, *, cancel: str = "Cancel", chief: bool = True
    ) -> None:
        self.stops = stops
        with gr.Row(elem_classes="action" if chief else "minor"):
            self.start = gr.Button(label, variant="primary", elem_id=name, min_width=120)
            self.cancel = gr.Button(cancel, elem_id=f"{name}-cancel", min_width=90, scale=0)
        # On a phone the result is below the controls.
        self.start.click(None, None, None, js=TO_RESULT, **QUIET)
        self.status = gr.HTML(line("Ready."), elem_id=f"{name}-status", elem_classes="status")

    def connect(
        self,
        work: Work,
        inputs: list[Component],
        outputs: list[Component],
        *others: Callable[..., Any],
        live: gr.Image | None = None,
        keeps: bool = False,
    ) -> Callable[..., Any]:
        """Let the button, and the triggers `others`, do the work; what is returned binds still others to it.

        Where what is cancelled `keeps` something, its last news are waited for.
        """
        run = self._run(work, live)
        shown = [self.status, *([live] if live else []), *outputs]
        settings: dict[str, Any] = {
            "inputs": inputs, "outputs": shown, "concurrency_id": MODEL, "concurrency_limit": 1,
            "show_progress": "minimal", "show_progress_on": self.status, "api_visibility": "private",
        }  # fmt: skip
        begun: list[Any] = [trigger(run, **settings) for trigger in (self.start.click, *others)]

        async def stop(visitor: gr.Request) -> Any:
            await self.stops.ended(visitor)
            return {self.status: line("Stopped.")} | _hidden(live)

        if keeps:
            self.cancel.click(self.stops.cancel, None, None, **QUIET)
        else:
            # `cancels` first, since the page drops a click on the first button until Gradio has cancelled: "Stopped." comes after.
            self.cancel.click(None, None, None, cancels=begun, **QUIET)
            heard = [self.status, *([live] if live else [])]
            self.cancel.click(stop, None, heard, **QUIET)
        return lambda trigger: trigger(run, **settings)

    def _run(self, work: Work, live: gr.Image | None) -> Callable[..., Iterator[Any]]:
        def run(visitor: gr.Request, *values: Any) -> Iterator[Any]:
            # Results come together with how it ended: the page may drop an update that has another at its heels.
            last: dict[Any, Any] = {}
            try:
                with (
                    self.stops.running(visitor) as stop,
                    told(),
                    closing(work(stop, *values)) as said,
                ):
                    yield {self.status: line("At work...")}
                    for news in said:
                        if last:
                            yield last
                        shown = self._shown(news, live)
                        last = {} if isinstance(news, Moment) else shown
                        if not last:
                            yield shown
            except Stopped:
                yield last | {self.status: line("Stopped.")} | _hidden(live)
            except gr.Error as error:
                yield last | {self.status: line(str(error.message))} | _hidden(live)
                raise
            else:
                yield last | {self.status: line("Done.")} | _hidden(live)

        return run

    def _shown(self, news: Any, live: gr.Image | None) -> Any:
        if not isinstance(news, Moment):
            return news
        updates: dict[Any, Any] = {self.status: line(news.sentence, news.done / max(1, news.total))}
        if live is not None and news.preview is not None:
            updates[live] = gr.update(value=news.preview, visible=True)
        return updates


def seen() -> Any:
    """An update that shows what was hidden as long as it was empty."""
    return gr.update(visible=True)


def line(sentence: str, share: float | None = None) -> str:
    """A sentence that screen readers are told of, over a bar if a share of the work is done."""
    bar = "" if share is None else f'<progress max="1" value="{share:.3f}"></progress>'
    return f'<p role="status" aria-live="polite">{html.escape(sentence)}</p>{bar}'


def _hidden(live: gr.Image | None) -> dict[Any, Any]:
    return {} if live is None else {live: gr.update(visible=False)}
