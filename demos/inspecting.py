"""The Inspect tab: the prompt as the model's encoders read it, and where the picture looks at a word."""

import threading
from collections.abc import Generator
from typing import Any

import gradio as gr
from action import QUIET, Action, seen
from again import Again
from chips import chips
from form import PROMPT, Form
from hosting import Host
from reports import told_report
from reproduce import inspect_command, inspect_python
from stopping import Stops
from visit import Visit
from watching import Clock, Moment, Tell, stop_if, watched
from word_picker import connect, listed, word_picker

from t2iedit import Model, Progress, Request
from t2iedit.charts import matrices, overlay
from t2iedit.errors import InvalidRequest
from t2iedit.inspection import attention_map, inspect

NAME = "Inspect"


class Tab:
    """Its components, and what its buttons do; the request is the one of the controls."""

    def __init__(self, host: Host, form: Form, visit: Visit, stops: Stops) -> None:
        self.host, self.form = host, form
        action = Action("inspect", "Inspect the prompt", stops)
        self.report = gr.Markdown(elem_id="inspect-report")
        self.tokens = gr.HTML(elem_id="tokens")
        with gr.Column(visible=False) as self.result:
            gr.Markdown("### How alike are the tokens' embeddings? Red: alike, blue: opposed.")
            with gr.Row(elem_id="matrices"):
                self.charts = {title: _chart(title) for title in ("before", "after", "difference")}
        gr.Markdown("### Where does the picture look?")
        self.word = word_picker(
            PROMPT,
            None,
            caption="Words",
            hint="Their attention, averaged over all cross-attention layers, heads and steps, is laid over the picture.",
            many=False,
            elem_id="word",
        )
        connect(self.word, form.prompt, **QUIET)
        look = Action("look", "Show on the picture", stops, chief=False)
        with gr.Column(visible=False) as self.looked:
            gr.Markdown(
                "Left of the line the picture, right of it in red where it looks.",
                elem_classes="caption",
            )
            self.heat = gr.ImageSlider(
                label="The picture and its attention",
                show_label=False,
                format="png",
                interactive=False,
                elem_id="heat",
                max_height=420,
            )
        self.again = Again("inspect")
        outputs: list[Any] = [
            self.result, self.report, self.tokens, *self.charts.values(), *self.again.outputs
        ]  # fmt: skip
        action.connect(self.inspect, form.inputs, outputs)
        looked: list[Any] = [self.looked, self.heat, *self.again.outputs]
        look.connect(self.look, [self.word, *form.inputs], looked)

    def inspect(self, stop: threading.Event, *values: Any) -> Generator[Any, None, None]:
        """The report, chips and matrices."""
        request = self.form.asked(values)
        found = inspect(self.host.models.opened(request.model), request)
        yield {
            self.result: seen(),
            self.report: told_report(found.report),
            self.tokens: "".join(chips(facts) for facts in found.encoders),
            **{self.charts[title]: chart for title, chart in matrices(found).items()},
        } | self.again.showing(inspect_command(request), inspect_python(request), request)

    def look(self, stop: threading.Event, word: Any, *values: Any) -> Generator[Any, None, None]:
        """The picture, and it with the heat over it."""
        request = self.form.asked(values)
        if not listed(word):
            raise InvalidRequest("choose a word of the prompt first")
        phrase = listed(word)[0]
        model = self.host.models.opened(request.model)
        for said in watched(lambda tell: _look(model, request, phrase, stop, tell), stop):
            if isinstance(said, Moment):
                yield said
                continue
            texts = inspect_command(request, phrase), inspect_python(request, phrase)
            yield {self.looked: seen(), self.heat: said} | self.again.showing(*texts, request)


def _chart(title: str) -> gr.Image:
    return gr.Image(
        label=title, show_label=False, format="png", interactive=False, min_width=200, elem_id=f"matrix-{title}",
        buttons=["download", "fullscreen"],
    )  # fmt: skip


def _look(model: Model, request: Request, phrase: str, stop: threading.Event, tell: Tell) -> None:
    clock = Clock(request.steps or model.defaults.steps)

    def follow(progress: Progress) -> None:
        stop_if(stop)
        tell(clock.moment())

    image, heat = attention_map(model, request, phrase, on_step=follow)
    tell((image, overlay(image, heat)))
