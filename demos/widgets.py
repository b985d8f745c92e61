"""A control description as a Gradio widget, and values on their way between the two."""

import json
from typing import Any

import gradio as gr
from gradio.components import Component
from word_picker import listed, word_picker

from t2iedit.controls import Control
from t2iedit.errors import InvalidOptions

UNSET = object()
"""What a widget holds that was left empty: the option keeps its default."""


def gallery(elem_id: str, columns: int, **more: Any) -> gr.Gallery:
    """Pictures to look at, as they are."""
    settings: dict[str, Any] = {
        "height": "auto", "object_fit": "contain", "format": "png", "interactive": False
    }  # fmt: skip
    return gr.Gallery(elem_id=elem_id, columns=columns, **settings, **more)


def widget(control: Control, prompt: str = "") -> Component:
    """The component that sets the option, with its description as help; phrases are picked from the prompt's words."""
    shared: dict[str, Any] = {"label": _label(control), "info": control.description}
    start = shown(control, control.default)
    if control.kind == "switch":
        return gr.Checkbox(value=bool(start), **shared)
    if control.kind == "phrase":
        caption, hint = shared["label"], shared["info"]
        return word_picker(prompt, start, caption=caption, hint=hint, many=control.many)
    if control.kind == "choice":
        choices = [("(default)", None), *control.choices] if control.optional else control.choices
        return gr.Dropdown(
            choices=list(choices), value=start, multiselect=control.many or None, **shared
        )
    if control.kind == "file":
        count = "multiple" if control.many else "single"
        gr.Markdown(control.description, elem_classes="caption")
        return gr.File(
            file_types=[".safetensors"],
            file_count=count,
            label=shared["label"],
            height=120,
        )
    # An empty `gr.Number` comes back as 0, so what may be left empty is a text.
    if control.kind in ("slider", "number") and control.optional and not control.many:
        return gr.Textbox(value=start, placeholder="empty: none", max_length=20, **shared)
    if control.kind == "slider" and not control.many and _on_grid(control):
        return gr.Slider(control.low, control.high, value=start, step=control.step, **shared)  # type: ignore[arg-type]
    if control.kind in ("slider", "number") and not control.many:
        return gr.Number(value=start, precision=0 if control.whole else None, **shared)
    lines = 2 if control.many and control.kind in ("prompt", "text") else 1
    placeholder = "one a line" if lines > 1 else None
    return gr.Textbox(value=start, lines=lines, placeholder=placeholder, **shared)


def shown(control: Control, value: Any) -> Any:
    """An option's value as its widget holds it."""
    if control.many and control.kind not in ("phrase", "choice", "file"):
        mark = "\n" if control.kind in ("prompt", "text") else ", "
        return mark.join(f"{item}" for item in value or [])
    if control.many:
        return list(value or [])
    if control.kind == "json":
        return "" if value is None else json.dumps(value)
    if control.kind in ("slider", "number") and control.optional:
        return "" if value is None else f"{value:g}"
    if value is None and control.kind in ("text", "prompt"):
        return ""
    return value


def option(control: Control, held: Any) -> Any:
    """What the widget holds as the option's value, or `UNSET`. Raises `InvalidOptions`."""
    if held is None or held == "" or held == []:
        return UNSET
    if control.kind == "phrase":
        return listed(held) if control.many else listed(held)[0]
    if isinstance(held, str) and control.optional and control.kind in ("slider", "number"):
        return held.strip() or UNSET
    if control.many and control.kind in ("prompt", "text"):
        return [line.strip() for line in held.splitlines() if line.strip()] or UNSET
    if control.many and control.kind in ("slider", "number"):
        return [item.strip() for item in held.split(",") if item.strip()] or UNSET
    if control.kind == "json":
        return _parsed(control, held)
    if control.whole and isinstance(held, float) and held.is_integer():
        return int(held)
    return held


def _on_grid(control: Control) -> bool:
    """Whether a slider's positions hold the default, which it would otherwise move."""
    if not control.step or control.default is None:
        return True
    ticks = (control.default - (control.low or 0)) / control.step
    return abs(ticks - round(ticks)) < 1e-6


def _parsed(control: Control, held: str) -> Any:
    try:
        return json.loads(held)
    except ValueError as error:
        raise InvalidOptions(f"{control.name}={held!r} is not JSON ({error})") from error


def _label(control: Control) -> str:
    return control.name.replace("_", " ") + (" (needed)" if control.needed else "")
