"""The pictures of this visit, whichever tab made them; one of them sets all controls again."""

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr
from action import QUIET
from form import Form
from hosting import Host
from PIL.Image import Image
from telling import told
from widgets import gallery

from t2iedit import Result
from t2iedit.errors import InvalidRequest

HOUR = 3600


class Visit:
    """The gallery, and what it holds for each visitor."""

    def __init__(self, host: Host, form: Form) -> None:
        self.host, self.form = host, form
        self.kept = gr.State([], time_to_live=8 * HOUR)
        self.chosen = gr.State(None)
        with gr.Row(elem_classes="visit-head", visible=False) as self.head:
            gr.Markdown("### This visit")
            self.use = gr.Button(
                "Set the controls from the chosen picture", size="sm", scale=0, min_width=300,
                interactive=False, elem_id="use",
            )  # fmt: skip
        self.gallery = gallery("visit", 8, show_label=False, fit_columns=False, visible=False)
        self.outputs: list[Any] = [self.kept, self.head, self.gallery]
        self._connect()

    def with_new(self, kept: Sequence[Any], results: Sequence[Result]) -> dict[Any, Any]:
        """Updates that put these results in front."""
        new = [(result.image, caption(result)) for result in results]
        pictures = [*new, *kept][: self.host.limits.history]
        return {
            self.kept: pictures,
            self.head: gr.Row(visible=True),
            self.gallery: gr.update(value=pictures, visible=True),
        }

    def _connect(self) -> None:
        def choose(event: gr.SelectData) -> Any:
            return event.index, gr.update(interactive=True)

        def use(index: int | None, kept: list[tuple[Image, str]], *files: Any) -> list[Any]:
            with told():
                if index is None or not 0 <= index < len(kept):
                    raise InvalidRequest("choose a picture of this visit first")
                recipe = json.loads(kept[index][0].info["t2iedit"])
                return self.form.filled(self.host.admitted(recipe, own_files(files)))

        self.gallery.select(choose, None, [self.chosen, self.use], **QUIET)
        inputs = [self.chosen, self.kept, *self.form.files]
        self.use.click(use, inputs, self.form.inputs, **QUIET)


def caption(result: Result) -> str:
    """The prompt, the seed and the edits."""
    request = result.request
    edits = ", ".join(edit.name for edit in request.edits) or "no edit"
    return f"{request.prompt} (seed {request.seeds[0]}, {edits})"


def own_files(files: Sequence[Any]) -> list[str]:
    """The paths that file widgets hold."""
    lists = [file if isinstance(file, list) else [file] for file in files if file]
    return [str(path) for one in lists for path in one]
