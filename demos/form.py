"""The controls that describe a request: built from what is installed, read as JSON, and set from a request."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import gradio as gr
from action import QUIET
from edit_part import EditPart
from gradio.components import Component
from hosting import Host

from t2iedit import Request
from t2iedit.errors import InvalidRequest
from t2iedit.plugins import installed

PROMPT = "a red circle and a blue square on a white background"
SEEDS = 2**31
OTHERS = ("scheduler", "clip_skip", "syntax", "weights", "prompts", "negatives")
"""Settings of a request without a control of their own, typed as JSON."""


class Form:
    """All controls of a request. `inputs` in one order, which `asked` reads and `filled` sets."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.prompt = gr.Textbox(PROMPT, label="Prompt", lines=2, autofocus=True, elem_id="prompt")
        self.examples = gr.Row(elem_classes="examples")
        self.chosen = gr.Dropdown(
            sorted(installed().edits),
            value=[],
            multiselect=True,
            label="Edits at work",
            info="They act in this order.",
            elem_id="chosen",
        )
        edits = [installed().edits[name] for name in sorted(installed().edits)]
        self.parts = [EditPart(edit, PROMPT) for edit in edits]
        with gr.Row():
            self.seed = gr.Number(0, label="Seed", precision=0, elem_id="seed", min_width=100)
            self.reroll = gr.Button("Another seed", size="sm", min_width=100, elem_id="reroll")
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self._settings()
        self.inputs: list[Component] = [
            self.model, self.prompt, self.negative, self.seed, self.steps, self.guidance, self.width, self.height,
            self.others, self.chosen, *(w for part in self.parts for w in part.widgets),
        ]  # fmt: skip
        self.files = [component for component in self.inputs if isinstance(component, gr.File)]
        self._connect()

    def asked(self, values: Sequence[Any]) -> Request:
        """The request that the widgets' values describe. Raises `UserError`."""
        model, prompt, negative, seed, steps, guidance, width, height, others, chosen = values[:10]
        held = dict(zip((id(w) for w in self.inputs), values, strict=True))
        uploads: list[str] = []
        edits = {
            part.edit.name: part.options(held, uploads, self.host.limits)
            for part in self.parts
            if part.edit.name in chosen
        }
        data = _parsed(others) | {
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
        """Updates that make the widgets describe this request; what they cannot hold the visitor is told."""
        defaults = self.host.models.opened(request.model).defaults
        width, height = request.size or defaults.size
        guidance = request.guidance_scale
        data = request.to_json()
        others = {key: data[key] for key in OTHERS if key in data}
        names = Counter(edit.name for edit in request.edits)
        for name, times in names.items():
            if times > 1:
                gr.Warning(f'"{name}" acts {times} times in it; the page holds the last of them')
        given = {edit.name: edit.options.model_dump(mode="json") for edit in request.edits}
        return [
            request.model,
            request.prompt,
            request.negative or "",
            request.seeds[0],
            request.steps or defaults.steps,
            defaults.guidance_scale if guidance is None else guidance,
            width,
            height,
            json.dumps(others) if others else "",
            list(names),
            *(
                update
                for part in self.parts
                for update in part.showing(given.get(part.edit.name, {}), request.prompt)
            ),
        ]

    def part(self, name: str) -> EditPart:
        """The accordion of an installed edit."""
        return next(part for part in self.parts if part.edit.name == name)

    def _settings(self) -> None:
        limits, names = self.host.limits, self.host.models.names
        defaults = self.host.models.opened(names[0]).defaults
        self.model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
        self.negative = gr.Textbox(
            label="Negative prompt", info="What guidance leads away from.", elem_id="negative"
        )
        steps = min(defaults.steps, limits.steps)
        self.steps = gr.Slider(1, limits.steps, steps, step=1, label="Steps", elem_id="steps")
        self.guidance = gr.Slider(0, 20, defaults.guidance_scale, step=0.1, label="Guidance")
        width, height = defaults.size
        with gr.Row():
            self.width = gr.Number(width, label="Width", precision=0, min_width=90)
            self.height = gr.Number(height, label="Height", precision=0, min_width=90)
        self.others = gr.Textbox(
            label="Other settings",
            info=f"As JSON: {', '.join(OTHERS)}.",
            placeholder='{"scheduler": "euler_a"}',
            elem_id="others",
        )

    def _connect(self) -> None:
        roll = f"() => Math.floor(Math.random() * {SEEDS})"
        self.reroll.click(None, None, self.seed, js=roll, **QUIET)
        for part in self.parts:
            part.connect(self.prompt, self.chosen)

        def heads(chosen: list[str]) -> list[Any]:
            return [update for part in self.parts for update in part.heads(chosen)]

        shown = [block for part in self.parts for block in (part.accordion, part.switch)]
        self.chosen.change(heads, self.chosen, shown, **QUIET)

        def settle(model: str) -> list[Any]:
            defaults = self.host.models.opened(model).defaults
            return [defaults.steps, defaults.guidance_scale, *defaults.size]

        self.model.input(
            settle, self.model, [self.steps, self.guidance, self.width, self.height],
            api_visibility="private",
        )  # fmt: skip


def _parsed(others: str | None) -> dict[str, Any]:
    """Raises `InvalidRequest`."""
    if not (others or "").strip():
        return {}
    try:
        data = json.loads(others or "")
    except ValueError as error:
        raise InvalidRequest(f"the other settings are not JSON ({error}); empty them") from error
    unknown = sorted(set(data) - set(OTHERS)) if isinstance(data, dict) else [str(data)]
    if unknown:
        raise InvalidRequest(
            f'the other settings know no "{unknown[0]}"; they are a JSON object of {", ".join(OTHERS)}'
        )
    return data
