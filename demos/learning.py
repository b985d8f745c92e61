"""The Learn tab: a concept from a few pictures, watched while it is learned, and usable at once."""

import tempfile
import threading
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import crescents
import gradio as gr
from action import QUIET, Action, seen
from again import Again
from form import Form
from hosting import Host
from learning_told import file_name, reproduced, told_learning
from learning_work import Concept, News, learned
from loss_curves import curves
from stopping import Stops
from t2iedit_context.prompts import filled
from t2iedit_context.settings import PRESETS, Settings, preset_for
from temporary import folder
from uploads import picture
from visit import Visit
from widgets import UNSET, option, widget

from t2iedit.controls import Control, controls
from t2iedit.errors import InvalidRequest

NAME = "Learn"
FIRST_TAB = "() => document.querySelector('#tabs [role=tab]').click()"
EDIT = "core"
SHOWN = ("kind", "steps")
MORE = ("vectors", "learning_rate", "embedding_weight", "attention_weight", "seed")
LOSSES = {
    "diffusion": "Pictures",
    "embedding": "Context's embeddings",
    "attention": "Context's attention",
}
"""The losses by name, as their plots are headed."""


class Tab:
    """Its components, and what Learn does with them."""

    def __init__(self, host: Host, form: Form, visit: Visit, stops: Stops) -> None:
        self.host, self.form, self.part = host, form, form.part(EDIT)
        gr.Markdown(
            "A few pictures of one thing become a word of its own, which every tab can use then. The method is CoRe's:"
            " the words around it keep their meaning."
        )
        self.given = gr.Gallery(
            label=f"Three to ten pictures, {host.limits.pictures} at most",
            file_types=[".png", ".jpg", ".jpeg", ".webp", ".bmp"],
            columns=5,
            height=190,
            object_fit="contain",
            interactive=True,
            sources=["upload"],
            elem_id="pictures",
            elem_classes="takes-files",
        )
        draw = gr.Button("No pictures? Take five of a crescent", size="sm", elem_id="crescents")
        with gr.Row():
            self.category = gr.Textbox(
                crescents.CATEGORY, label="Category", info="What it is a kind of: one word.", max_length=40,
                min_width=140, elem_id="category",
            )  # fmt: skip
            self.placeholder = gr.Textbox(
                "<new>", label="Name", info="For prompts; no word that the model knows.", max_length=40,
                min_width=140, elem_id="placeholder",
            )  # fmt: skip
        known = {control.name: control for control in controls(Settings)}
        self.controls = [self._control(known[name]) for name in (*SHOWN, *MORE)]
        with gr.Row():
            self.widgets = [widget(control) for control in self.controls[: len(SHOWN)]]
        with gr.Accordion("More settings", open=False):
            self.widgets += [widget(control) for control in self.controls[len(SHOWN) :]]
        action = Action("learn", "Learn", stops, cancel="Stop and keep")
        with gr.Column(visible=False) as self.result:
            self.strip = gr.Image(
                label="The concept so far", format="png", interactive=False, elem_id="strip"
            )
            self.losses = gr.HTML(elem_id="losses")
            self.report = gr.Markdown(elem_id="learn-report")
            with gr.Row():
                self.file = gr.File(
                    label="The concept's file", interactive=False, height=90, elem_id="concept"
                )
                self.use = gr.Button(
                    "Use it in the prompt", interactive=False, elem_id="use-concept"
                )
        self.again = Again("learn")
        self.worded = gr.State("")
        self._connect(action, draw)

    def work(self, stop: threading.Event, *values: Any) -> Generator[Any, None, None]:
        """Losses and strips as they come, then the concept."""
        given, category, name, model, files = values[:5]
        settings = self._settings(name, category, model, values[5:])
        pictures = self._pictures(given)
        opened = self.host.models.opened(model, "float32")
        output = Path(tempfile.mkdtemp(prefix="learn-", dir=folder())) / file_name(settings)
        yield self._begun()
        for said in learned(opened, pictures, settings, output, stop):
            if isinstance(said, News):
                yield said.moment
                yield self._watched(said)
            else:
                yield self._kept(said, settings, model, files)

    def _connect(self, action: Action, draw: gr.Button) -> None:
        option_of_edit = self.part.file
        outputs: list[Any] = [
            self.result, self.strip, self.losses, self.report, self.file, self.use, self.worded, option_of_edit, *self.again.outputs,
        ]  # fmt: skip
        inputs: list[Any] = [
            self.given, self.category, self.placeholder, self.form.model, option_of_edit, *self.widgets
        ]  # fmt: skip
        action.connect(self.work, inputs, outputs, keeps=True)

        def examples() -> Any:
            where = Path(tempfile.mkdtemp(prefix="pictures-", dir=folder()))
            return crescents.saved(where), crescents.CATEGORY, "<crescent>"

        draw.click(examples, None, [self.given, self.category, self.placeholder], **QUIET)
        used: list[Any] = [self.form.prompt, self.form.chosen]
        self.use.click(_in_prompt, [self.worded, self.form.chosen], used, **QUIET).then(
            None, None, None, js=FIRST_TAB, **QUIET
        )

    def _control(self, control: Control) -> Control:
        """As a host limits it, with the first model's preset as its default."""
        preset = PRESETS[preset_for(self.host.models.names[0])]
        control = replace(control, default=preset.get(control.name, control.default))
        if control.name == "steps":
            most = self.host.limits.learning
            return replace(control, high=most, default=min(most, control.default))
        return replace(control, kind="number") if control.name == "seed" else control

    def _settings(self, name: str, category: str, model: str, values: Sequence[Any]) -> Settings:
        pairs = zip(self.controls, values, strict=True)
        typed = {control.name: option(control, value) for control, value in pairs}
        typed = {key: value for key, value in typed.items() if value is not UNSET}
        settings = Settings(
            placeholder=(name or "").strip(), category=(category or "").strip(),
            **(PRESETS[preset_for(model)] | typed),
        )  # fmt: skip
        if settings.steps > self.host.limits.learning:
            raise InvalidRequest(
                f"the steps of learning may be at most {self.host.limits.learning} here, not {settings.steps}"
            )
        return settings

    def _pictures(self, given: Any) -> list[Any]:
        limits, paths = self.host.limits, [path for path, _ in given or []]
        if not paths:
            raise InvalidRequest(
                "there are no pictures to learn from; drop a few of the thing first"
            )
        if len(paths) > limits.pictures:
            raise InvalidRequest(
                f"the pictures to learn from may be at most {limits.pictures} here, not {len(paths)}"
            )
        return [picture(path, limits.upload, limits.pixels) for path in paths]

    def _begun(self) -> dict[Any, Any]:
        return {
            self.result: seen(),
            self.strip: None,
            self.losses: "",
            self.report: "",
            self.file: None,
            self.use: gr.update(interactive=False),
        }

    def _watched(self, news: News) -> dict[Any, Any]:
        updates: dict[Any, Any] = {self.losses: curves(news.losses, LOSSES)}
        if news.strip is not None:
            updates[self.strip] = str(news.strip)
        return updates

    def _kept(self, concept: Concept, settings: Settings, model: str, files: Any) -> dict[Any, Any]:
        """The file, which the edit's option holds from now on, and what is known of it."""
        path = str(concept.path)
        others = [file for file in files or [] if Path(file).name != concept.path.name]
        return {
            self.report: told_learning(concept, settings),
            self.file: path,
            self.part.file: [*others, path],
            self.use: gr.update(interactive=True),
            self.worded: filled(
                settings.instance_template, settings.placeholder, settings.category
            ),
        } | self.again.showing(*reproduced(settings, model))


def _in_prompt(prompt: str, chosen: list[str]) -> Any:
    """The concept's prompt, and the edit that puts the concept there switched on."""
    return prompt, list(dict.fromkeys([*chosen, EDIT]))
