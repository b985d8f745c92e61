"""The Picture tab: one request without and with its edits, from one seed."""

import html
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from form import Form
from hosting import Host
from painting import Moment, Stopped, painted
from reproduce import command, python
from telling import told

from t2iedit import Request, Result, read_recipe
from t2iedit.errors import InvalidRequest

MODEL = "model"
"""The queue in which all that computes waits, one at a time."""
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


@dataclass
class Stops:
    """Which visitor's run is under way, so that its Cancel button stops that one."""

    events: dict[str, threading.Event] = field(default_factory=dict)

    def begin(self, visitor: gr.Request) -> threading.Event:
        event = self.events[str(visitor.session_hash)] = threading.Event()
        return event

    def end(self, visitor: gr.Request) -> None:
        self.events.pop(str(visitor.session_hash), None)

    def cancel(self, visitor: gr.Request) -> None:
        event = self.events.get(str(visitor.session_hash))
        if event is not None:
            event.set()


class PictureTab:
    """Its components, and what Generate and Cancel do."""

    def __init__(self, host: Host, form: Form, stops: Stops) -> None:
        self.host, self.form, self.stops = host, form, stops
        self.kept = gr.State([])
        with gr.Row():
            self.start = gr.Button("Generate", variant="primary", elem_id="generate")
            self.cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
        self.status = gr.HTML(_said("Ready."), elem_id="status")
        self.live = gr.Image(
            label="While it is made", visible=False, format="png", elem_id="live", height=300
        )
        self.slider = gr.ImageSlider(
            label="Without (left) and with the edits (right)",
            format="png",
            interactive=False,
            elem_id="slider",
        )
        self.pair = gr.Gallery(
            label="The same two, each carrying its recipe",
            columns=2,
            height="auto",
            format="png",
            interactive=False,
            elem_id="pair",
        )
        self.report = gr.Markdown(elem_id="report")
        with gr.Accordion("Make it again", open=False):
            self.command = gr.Code(
                label="Command line",
                language="shell",
                interactive=False,
                wrap_lines=True,
                elem_id="command",
            )
            self.python = gr.Code(
                label="Python", language="python", interactive=False, elem_id="python"
            )
        self.gallery = gr.Gallery(
            label="This visit",
            columns=4,
            fit_columns=False,
            height="auto",
            format="png",
            interactive=False,
        )
        self._connect()

    def _connect(self) -> None:
        outputs = [
            self.live, self.slider, self.pair, self.status, self.report, self.command,
            self.python, self.gallery, self.kept,
        ]  # fmt: skip
        for event in (self.start.click, self.form.prompt.submit):
            event(
                self.run,
                [self.kept, *self.form.inputs],
                outputs,
                concurrency_id=MODEL,
                concurrency_limit=1,
                show_progress="minimal",
                api_visibility="private",
            )
        self.cancel.click(self.stops.cancel, None, None, **QUIET)

    def run(self, visitor: gr.Request, kept: list[Any], *values: Any) -> Iterator[tuple[Any, ...]]:
        """Both pictures, with news on the way."""
        stop = self.stops.begin(visitor)
        try:
            with told():
                request = self.form.asked(values)
                model = self.host.models.opened(request.model)
                pair = both(request)
                for said in painted(model, pair, stop):
                    yield self._moment(said) if isinstance(said, Moment) else self._made(said, kept)
        except Stopped:
            yield (gr.update(visible=False), *_same(2), _said("Stopped."), *_same(5))
        finally:
            self.stops.end(visitor)

    def _moment(self, moment: Moment) -> tuple[Any, ...]:
        seen = moment.preview
        live = gr.update() if seen is None else gr.update(value=seen, visible=True)
        return (live, *_same(2), _said(moment.sentence), *_same(5))

    def _made(self, results: list[Result], kept: list[Any]) -> tuple[Any, ...]:
        result = results[-1]
        plain, edited = results[0].image, result.image
        captions = ["without", "with the edits"] if len(results) > 1 else ["without edits"]
        pair = [(one.image, caption) for one, caption in zip(results, captions, strict=True)]
        request = result.request
        kept = [(edited, f"{request.prompt} (seed {request.seeds[0]})"), *kept]
        kept = kept[: self.host.limits.history]
        return (
            gr.update(visible=False),
            (plain, edited),
            pair,
            _said("Done."),
            told_report(result.report),
            command(request),
            python(request),
            kept,
            kept,
        )


def both(request: Request) -> list[Request]:
    """Without the edits, and with them if there are any."""
    plain = request.model_copy(update={"edits": ()})
    return [plain, request] if request.edits else [plain]


def request_in(path: str | None, host: Host) -> Request:
    """The request recorded in an uploaded PNG, admitted. Raises `UserError`."""
    if path is None:
        raise InvalidRequest("drop a PNG that t2iedit made")
    if Path(path).stat().st_size > host.limits.upload:
        raise InvalidRequest(f"uploads may be at most {host.limits.upload} bytes here")
    return host.admitted(read_recipe(path))


def told_report(report: dict[str, Any]) -> str:
    """The report as Markdown: warnings, then a line an edit."""
    lines = [f"- Note: {_plain(sentence)}" for sentence in report["warnings"]]
    for edit in report["edits"]:
        facts = [f"{key}: {_fact(value)}" for key, value in edit.items() if key != "name"]
        lines.append(f"- **{edit['name']}**: {_plain('; '.join(facts)) or 'nothing to report'}")
    return "\n".join(lines)


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_fact, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    """Text of a visitor's as text, whatever marks it holds."""
    marked = html.escape(text)
    for mark in "\\`*_[]|":
        marked = marked.replace(mark, f"&#{ord(mark)};")
    return marked


def _said(sentence: str) -> str:
    return f'<p role="status" aria-live="polite">{html.escape(sentence)}</p>'


def _same(count: int) -> list[Any]:
    return [gr.skip() for _ in range(count)]
