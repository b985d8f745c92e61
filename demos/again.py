"""The part under every result that says how to make it again."""

from typing import Any

import gradio as gr
from names import named

from t2iedit import Request


class Again:
    """An accordion with the command line and the Python; `name` begins their ids."""

    def __init__(self, name: str) -> None:
        with gr.Accordion("Make it again", open=False, elem_id=f"{name}-again"):
            self.command = gr.Code(
                label="Command line",
                language="shell",
                interactive=False,
                wrap_lines=True,
                elem_id=f"{name}-command",
            )
            self.python = gr.Code(
                label="Python", language="python", interactive=False, elem_id=f"{name}-python"
            )
        self.outputs: list[Any] = [self.command, self.python]

    def showing(self, command: str, python: str, request: Request | None = None) -> dict[Any, str]:
        """Updates to these texts, in which the request's files go by their names."""
        return {
            part: named(text, request) if request else text
            for part, text in ((self.command, command), (self.python, python))
        }
