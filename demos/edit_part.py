"""One installed edit on the page: an accordion with its controls, to switch it on and to say when it acts."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
from action import QUIET
from gradio.components import Component
from hosting import Limits
from uploads import embedding
from widgets import UNSET, option, shown, widget
from word_picker import connect, showing

from t2iedit import Edit
from t2iedit.controls import Control, controls

FIRST = 4
"""Options that are seen at once; the others are under "More options"."""


class EditPart:
    """The accordion of one edit. `widgets` are in the order of `controls`."""

    def __init__(self, edit: type[Edit], prompt: str) -> None:
        self.edit = edit
        self.controls = controls(edit.Options)
        name = edit.name
        with gr.Accordion(title(name, []), open=False, elem_id=f"edit-{name}") as self.accordion:
            gr.Markdown((edit.__doc__ or "").split("\n")[0])
            with gr.Row():
                self.switch = gr.Button(
                    "Switch on", size="sm", elem_id=f"switch-{name}", min_width=80
                )
                self.earlier = gr.Button(
                    "Earlier", size="sm", elem_id=f"earlier-{name}", min_width=60
                )
                self.later = gr.Button("Later", size="sm", elem_id=f"later-{name}", min_width=60)
            first = len(self.controls) if len(self.controls) <= FIRST + 2 else FIRST
            self.widgets = [widget(control, prompt) for control in self.controls[:first]]
            if self.controls[first:]:
                with gr.Accordion("More options", open=False):
                    self.widgets += [widget(control, prompt) for control in self.controls[first:]]

    def options(self, held: dict[int, Any], uploads: list[str], limits: Limits) -> dict[str, Any]:
        """What the widgets say, by option; files that they hold are checked and added to `uploads`. Raises `UserError`."""
        options = {}
        for control, component in zip(self.controls, self.widgets, strict=True):
            value = option(control, held[id(component)])
            if value is UNSET:
                continue
            if control.kind == "file":
                given = value if isinstance(value, list) else [value]
                uploads += [embedding(path, limits.upload) for path in given]
            options[control.name] = value
        return options

    def showing(self, options: dict[str, Any], prompt: str) -> list[Any]:
        """Updates of the widgets to these options; those that are not given get their defaults."""
        return [
            _update(control, component, options.get(control.name, control.default), prompt)
            for control, component in zip(self.controls, self.widgets, strict=True)
        ]

    def connect(self, prompt: gr.Textbox, chosen: gr.Dropdown) -> None:
        """Let its buttons act on the list of chosen edits, and its phrases follow the prompt."""
        name = self.edit.name
        for button, act in (
            (self.switch, switched),
            (self.earlier, moved_earlier),
            (self.later, moved_later),
        ):
            button.click(lambda names, act=act: act(name, names), chosen, chosen, **QUIET)
        for control, component in zip(self.controls, self.widgets, strict=True):
            if control.kind == "phrase":
                connect(component, prompt, **QUIET)  # type: ignore[arg-type]

    def heads(self, chosen: Sequence[str]) -> list[Any]:
        """Updates of the accordion and of the switch."""
        on = self.edit.name in chosen
        label = title(self.edit.name, chosen)
        word = "Switch off" if on else "Switch on"
        return [
            gr.update(label=label, open=True) if on else gr.update(label=label),
            gr.update(value=word, variant="primary" if not on else "secondary"),
        ]

    @property
    def file(self) -> Component | None:
        """The widget of its first option that is a file."""
        pairs = zip(self.controls, self.widgets, strict=True)
        return next((component for control, component in pairs if control.kind == "file"), None)


def switched(name: str, chosen: list[str]) -> list[str]:
    return [other for other in chosen if other != name] if name in chosen else [*chosen, name]


def moved_earlier(name: str, chosen: list[str]) -> list[str]:
    """One place towards the front; an edit that is off is switched on."""
    return _moved(name, chosen, -1)


def moved_later(name: str, chosen: list[str]) -> list[str]:
    """One place towards the end; an edit that is off is switched on."""
    return _moved(name, chosen, 1)


def title(name: str, chosen: Sequence[str]) -> str:
    return f"{name}: on, {chosen.index(name) + 1} of {len(chosen)}" if name in chosen else name


def _moved(name: str, chosen: list[str], by: int) -> list[str]:
    if name not in chosen:
        return [*chosen, name]
    place = max(0, chosen.index(name) + by)
    others = [other for other in chosen if other != name]
    return [*others[:place], name, *others[place:]]


def _update(control: Control, component: Component, value: Any, prompt: str) -> Any:
    held = shown(control, value)
    if control.kind == "phrase":
        return showing(component, prompt, held)  # type: ignore[arg-type]
    return gr.update(value=held)
