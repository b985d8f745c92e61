"""The Generate tab: the picture without and with the edits, from one seed."""

import threading
from collections.abc import Generator
from typing import Any

import gradio as gr
from action import Action, seen
from again import Again
from form import Form
from hosting import Host
from painting import painted
from reports import told_report
from reproduce import generate_command, generate_python
from stopping import Stops
from visit import Visit
from watching import Moment
from widgets import gallery

from t2iedit import Request, Result

NAME = "Generate"
WITHOUT, WITH = "without", "with the edits"


class Tab:
    """Its components, and what Generate does."""

    def __init__(self, host: Host, form: Form, visit: Visit, stops: Stops) -> None:
        self.host, self.form, self.visit = host, form, visit
        action = Action("generate", "Generate", stops)
        self.live = gr.Image(
            label="While it is made", visible=False, format="png", elem_id="live", height=300
        )
        with gr.Column(visible=False) as self.result:
            self.caption = gr.Markdown(elem_classes="caption")
            self.slider = gr.ImageSlider(
                label="Before and after",
                show_label=False,
                format="png",
                interactive=False,
                elem_id="slider",
                max_height=400,
            )
            place = gr.Slider(
                0,
                100,
                50,
                step=1,
                label="Before / after",
                elem_id="place",
                buttons=[],
                visible=False,
                container=False,
                show_label=False,
            )
            place.input(
                None, place, self.slider, js="(at) => ({__type__: 'update', slider_position: at})",
                queue=False, show_progress="hidden", api_visibility="private",
            )  # fmt: skip
            self.place = place
            self.report = gr.Markdown(elem_id="report")
            label = "Both pictures, each carrying its recipe"
            self.pair = gallery("pair", 2, label=label, show_label=False)
        self.again = Again("generate")
        outputs: list[Any] = [
            self.result, self.caption, self.slider, place, self.pair, self.report, *self.again.outputs, *visit.outputs
        ]  # fmt: skip
        self.on = action.connect(
            self.work, [visit.kept, *form.inputs], outputs, form.prompt.submit, live=self.live
        )

    def work(
        self, stop: threading.Event, kept: list[Any], *values: Any
    ) -> Generator[Any, None, None]:
        """Both pictures, with news on the way."""
        request = self.form.asked(values)
        results: list[Result] = []
        for said in painted(self.host.opened(request), both(request), stop):
            if isinstance(said, Moment):
                yield said
            else:
                results.append(said)
        yield self._made(results) | self.visit.with_new(kept, results[-1:])

    def _made(self, results: list[Result]) -> dict[Any, Any]:
        request = results[-1].request
        captions = [WITHOUT, WITH][: len(results)]
        pair = [(one.image, caption) for one, caption in zip(results, captions, strict=True)]
        several = len(results) > 1
        text = (
            "Left of the line without the edits, right of it with them."
            if several
            else "No edit is on."
        )
        shown = (results[0].image, results[-1].image)
        texts = generate_command(request), generate_python(request)
        return {
            self.result: seen(),
            self.caption: text,
            self.slider: gr.update(value=shown, slider_position=50 if several else 0),
            self.place: gr.update(value=50, visible=several),
            self.pair: pair,
            self.report: told_report(results[-1].report),
        } | self.again.showing(*texts, request)


def both(request: Request) -> list[Request]:
    """Without the edits, and with them if there are any."""
    plain = request.model_copy(update={"edits": ()})
    return [plain, request] if request.edits else [plain]
