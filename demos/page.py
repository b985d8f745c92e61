"""The whole page: controls at the left, tabs at the right, the pictures of the visit below."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import tabs
from action import MODEL, QUIET, TO_RESULT
from form import Form
from hosting import Host
from names import shareable
from samples import examples
from stopping import Stops
from telling import told
from uploads import embedding
from visit import Visit, own_files

from t2iedit import Request, generate, read_recipe
from t2iedit.errors import InvalidRequest

PICTURES = "pictures"
INTRODUCTION = """
# t2iedit
A text-to-image model reads a prompt as a table of numbers, one row a word: its *embedding*. An **edit** changes those
numbers, not the prompt. Try one of the examples: both pictures start from the same seed, so whatever differs between them
the edit did.
"""


def page(host: Host) -> gr.Blocks:
    """The page, bound to a host."""
    stops = Stops()
    with gr.Blocks(title="t2iedit", analytics_enabled=False) as blocks:
        gr.Markdown(INTRODUCTION, elem_classes="title")
        with gr.Row():
            left, right = gr.Column(scale=2, min_width=320), gr.Column(scale=3, min_width=320)
        below = gr.Column()
        with left:
            form = Form(host)
            dropped = gr.File(
                label="Repeat a picture: drop its PNG anywhere on the page",
                file_types=[".png"],
                elem_id="dropped",
                height=120,
            )
        with below:
            visit = Visit(host, form)
        with right, gr.Tabs(selected=PICTURES, elem_id="tabs") as shown:
            made = {}
            for module in tabs.offered():
                with gr.Tab(module.NAME, id=module.__name__):
                    made[module.__name__] = module.Tab(host, form, visit, stops)
        _connect_examples(host, form, shown, made[PICTURES])
        dropped.upload(
            _repeating(host, form), [dropped, *form.files], form.inputs, api_visibility="private"
        )
        _script_endpoint(host)
        blocks.unload(stops.cancel)
    return blocks


def request_in(path: str | None, host: Host, uploads: Sequence[str] = ()) -> Request:
    """The request recorded in an uploaded PNG, admitted; its files are matched to `uploads`. Raises `UserError`."""
    if path is None:
        raise InvalidRequest("drop a PNG that t2iedit made")
    if Path(path).stat().st_size > host.limits.upload:
        raise InvalidRequest(f"uploads may be at most {host.limits.upload} bytes here")
    return host.admitted(read_recipe(path), uploads)


def _repeating(host: Host, form: Form) -> Any:
    def repeat(path: str | None, *files: Any) -> list[Any]:
        with told():
            return form.filled(request_in(path, host, own_files(files)))

    return repeat


def _connect_examples(host: Host, form: Form, shown: gr.Tabs, generating: Any) -> None:
    """A button for each example, which fills the controls and generates."""
    with form.examples:
        for name, request in examples(host):
            button = gr.Button(name, size="sm", min_width=110)
            filled = button.click(
                lambda request=request: [*form.filled(request), gr.Tabs(selected=PICTURES)],
                None,
                [*form.inputs, shown],
                **QUIET,
            )
            button.click(None, None, None, js=TO_RESULT, **QUIET)
            generating.on(filled.then)


def _script_endpoint(host: Host) -> None:
    """`/generate` for `gradio_client`: a request as JSON in, its first image and its report out."""

    def made(request: dict[str, Any], files: list[str] | None = None) -> tuple[Any, dict[str, Any]]:
        """One image from a request as JSON: prompt, negative, model, seed, steps, guidance_scale, size, edits.

        Options that take files name those of `files`, which are safetensors, or those that the host lists.
        """
        with told():
            own = [embedding(path, host.limits.upload) for path in files or []]
            admitted = host.admitted(request, own)
            single = admitted.for_seed(admitted.seeds[0])
            result = shareable(generate(host.opened(single), single))
        return result.image, result.report

    asked, report = gr.JSON(visible=False), gr.JSON(visible=False)
    own = gr.File(visible=False, file_count="multiple")
    image = gr.Image(visible=False, format="png")
    gr.Button(visible=False).click(
        made, [asked, own], [image, report], api_name="generate", api_description=inspect.getdoc(made),
        concurrency_id=MODEL, concurrency_limit=1,
    )  # fmt: skip
