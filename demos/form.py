"""The controls that describe a request: built from what is installed, read as JSON, and set from a request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from hosting import Host, check_upload
from widgets import UNSET, option, shown, widget
from words import phrases, standing

from t2iedit import Edit, Request
from t2iedit.controls import Control, controls
from t2iedit.plugins import installed

PROMPT = "a red circle and a blue square on a white background"
SEEDS = 2**31


@dataclass
class EditPart:
    """One installed edit's accordion."""

    edit: type[Edit]
    controls: list[Control]
    accordion: gr.Accordion
    widgets: list[Component]
    earlier: gr.Button


class Form:
    """All controls of a request. `inputs` in one order, which `asked` reads and `filled` sets."""

    def __init__(self, host: Host) -> None:
        self.host = host
        defaults = host.models.opened(host.models.names[0]).defaults
        limits = host.limits
        names = host.models.names
        self.model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
        self.prompt = gr.Textbox(PROMPT, label="Prompt", lines=2, autofocus=True, elem_id="prompt")
        self.negative = gr.Textbox(
            label="Negative prompt", info="What guidance leads away from.", elem_id="negative"
        )
        with gr.Row():
            self.seed = gr.Number(0, label="Seed", precision=0, elem_id="seed", min_width=100)
            self.reroll = gr.Button("Another seed", size="sm", min_width=100, elem_id="reroll")
        with gr.Row():
            self.steps = gr.Slider(
                1,
                limits.steps,
                min(defaults.steps, limits.steps),
                step=1,
                label="Steps",
                min_width=120,
            )
            self.guidance = gr.Slider(
                0, 20, defaults.guidance_scale, step=0.1, label="Guidance", min_width=120
            )
        with gr.Row():
            width, height = defaults.size
            self.width = gr.Number(width, label="Width", precision=0, min_width=90)
            self.height = gr.Number(height, label="Height", precision=0, min_width=90)
        self.chosen = gr.Dropdown(
            sorted(installed().edits),
            value=[],
            multiselect=True,
            label="Edits at work",
            info="They act in this order; choosing one switches it on.",
            elem_id="chosen",
        )
        self.parts = [_part(installed().edits[name]) for name in sorted(installed().edits)]
        self.inputs: list[Component] = [
            self.model, self.prompt, self.negative, self.seed, self.steps, self.guidance,
            self.width, self.height, self.chosen, *(w for part in self.parts for w in part.widgets),
        ]  # fmt: skip
        self._connect()

    def asked(self, values: Sequence[Any]) -> Request:
        """The request that the widgets' values describe. Raises `UserError`."""
        model, prompt, negative, seed, steps, guidance, width, height, chosen = values[:9]
        held = dict(zip((id(w) for w in self.inputs), values, strict=True))
        uploads: list[str] = []
        edits = {
            part.edit.name: self._options(part, held, uploads)
            for part in self.parts
            if part.edit.name in chosen
        }
        data = {
            "model": model,
            "prompt": prompt or "",
            "negative": negative or None,
            "seeds": [0 if seed is None else int(seed)],
            "steps": steps,
            "guidance_scale": guidance,
            "size": [width, height] if width and height else None,
            "edits": [{"name": name, "options": edits[name]} for name in chosen],
        }
        return self.host.admitted(data, uploads)

    def filled(self, request: Request) -> list[Any]:
        """Updates that make the widgets describe this request."""
        defaults = self.host.models.opened(request.model).defaults
        width, height = request.size or defaults.size
        guidance = request.guidance_scale
        updates: list[Any] = [
            request.model,
            request.prompt,
            request.negative or "",
            request.seeds[0],
            request.steps or defaults.steps,
            defaults.guidance_scale if guidance is None else guidance,
            width,
            height,
            list(dict.fromkeys(edit.name for edit in request.edits)),
        ]
        given = {edit.name: edit.options.model_dump(mode="json") for edit in request.edits}
        for part in self.parts:
            values = given.get(part.edit.name, {})
            for control in part.controls:
                value = shown(control, values.get(control.name, control.default))
                updates.append(_set(control, value, request.prompt))
        return updates

    def _options(self, part: EditPart, held: dict[int, Any], uploads: list[str]) -> dict[str, Any]:
        options = {}
        for control, component in zip(part.controls, part.widgets, strict=True):
            value = option(control, held[id(component)])
            if value is UNSET:
                continue
            if control.kind == "file":
                given = value if isinstance(value, list) else [value]
                for path in given:
                    check_upload(path, self.host.limits)
                uploads += given
            options[control.name] = value
        return options

    def _connect(self) -> None:
        quiet: dict[str, Any] = {
            "queue": False, "show_progress": "hidden", "api_visibility": "private"
        }  # fmt: skip
        self.reroll.click(
            None, None, self.seed, js=f"() => Math.floor(Math.random() * {SEEDS})", **quiet
        )
        pickers = [
            (control, component)
            for part in self.parts
            for control, component in zip(part.controls, part.widgets, strict=True)
            if control.kind == "phrase"
        ]

        def offer(prompt: str, *held: Any) -> list[Any]:
            return [
                _set(control, value, prompt)
                for (control, _), value in zip(pickers, held, strict=True)
            ]

        components = [component for _, component in pickers]
        if components:
            self.prompt.change(offer, [self.prompt, *components], components, **quiet)

        def label(chosen: list[str]) -> list[Any]:
            return [gr.update(label=_title(part.edit.name, chosen), open=part.edit.name in chosen)
                    for part in self.parts]  # fmt: skip

        accordions = [part.accordion for part in self.parts]
        self.chosen.change(label, self.chosen, accordions, **quiet)
        for part in self.parts:
            name = part.edit.name
            part.earlier.click(
                lambda chosen, name=name: moved_up(name, chosen), self.chosen, self.chosen, **quiet
            )

        def settle(model: str) -> list[Any]:
            defaults = self.host.models.opened(model).defaults
            return [defaults.steps, defaults.guidance_scale, *defaults.size]

        self.model.input(
            settle, self.model, [self.steps, self.guidance, self.width, self.height],
            api_visibility="private",
        )  # fmt: skip


def moved_up(name: str, chosen: list[str]) -> list[str]:
    """The edit switched on, if it was not, else one place further to the front."""
    if name not in chosen:
        return [*chosen, name]
    place = max(0, chosen.index(name) - 1)
    others = [other for other in chosen if other != name]
    return [*others[:place], name, *others[place:]]


def _part(edit: type[Edit]) -> EditPart:
    found = controls(edit.Options)
    with gr.Accordion(_title(edit.name, []), open=False, elem_id=f"edit-{edit.name}") as accordion:
        gr.Markdown((edit.__doc__ or "").split("\n")[0])
        earlier = gr.Button("Switch on, or act earlier", size="sm", elem_id=f"earlier-{edit.name}")
        widgets = [widget(control, phrases(PROMPT)) for control in found]
    return EditPart(edit, found, accordion, widgets, earlier)


def _set(control: Control, value: Any, prompt: str) -> Any:
    """An update; phrases bring the words to choose from, and lose those that no longer stand in the prompt."""
    if control.kind != "phrase":
        return gr.update(value=value)
    chosen = standing(prompt, value if isinstance(value, list) else [value] if value else [])
    choices = list(dict.fromkeys([*phrases(prompt), *chosen]))
    kept: Any = chosen if control.many else (chosen[0] if chosen else None)
    return gr.update(choices=choices, value=kept)


def _title(name: str, chosen: Sequence[str]) -> str:
    return f"{name}: on, {chosen.index(name) + 1} of {len(chosen)}" if name in chosen else name
