"""The Inspect tab: the prompt as the model's encoders read it, and where the picture looks at a word."""

import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr
from action import QUIET, Action
from again import Again
from chips import chips
from form import PROMPT, Form
from hosting import Host
from reports import told_report
from reproduce import inspect_command, inspect_python
from stopping import Stops
from visit import Visit
from watching import Clock, Moment, Tell, stop_if, watched
from word_picker import WordPicker, listed

from t2iedit import Model, Progress, Request
from t2iedit.charts import inspection_chart, overlay
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
        self.chart = gr.Image(
            label="How alike the tokens' embeddings are: red alike, blue opposed",
            format="png",
            interactive=False,
            elem_id="chart",
        )
        gr.Markdown("### Where does the picture look?")
        self.word = WordPicker.of(
            PROMPT,
            None,
            caption="Words",
            hint="Their attention, averaged over all cross-attention layers, heads and steps, is laid over the picture.",
            many=False,
            elem_id="word",
        )
        self.word.connect(form.prompt, **QUIET)
        look = Action("look", "Show on the picture", stops)
        self.heat = gr.ImageSlider(
            label="The picture (left), and in red where it looks (right)",
            format="png",
            interactive=False,
            elem_id="heat",
            max_height=420,
        )
        self.again = Again("inspect")
        outputs: list[Any] = [self.report, self.tokens, self.chart, *self.again.outputs]
        action.connect(self.inspect, form.inputs, outputs)
        looked: list[Any] = [self.heat, *self.again.outputs]
        look.connect(self.look, [self.word, *form.inputs], looked)

    def inspect(self, stop: threading.Event, *values: Any) -> Iterator[Any]:
        """The report, chips and matrices."""
        request = self.form.asked(values)
        found = inspect(self.host.models.opened(request.model), request)
        yield {
            self.report: told_report(found.report),
            self.tokens: "".join(chips(facts) for facts in found.encoders),
            self.chart: inspection_chart(found),
        } | self.again.showing(inspect_command(request), inspect_python(request), request)

    def look(self, stop: threading.Event, word: Any, *values: Any) -> Iterator[Any]:
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
            yield {self.heat: said} | self.again.showing(*texts, request)


def _look(model: Model, request: Request, phrase: str, stop: threading.Event, tell: Tell) -> None:
    clock = Clock(request.steps or model.defaults.steps)

    def follow(progress: Progress) -> None:
        stop_if(stop)
        tell(clock.moment())

    image, heat = attention_map(model, request, phrase, on_step=follow)
    tell((image, overlay(image, heat)))
