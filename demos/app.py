"""The page on which one sees what an edit does: `python demos/app.py`, or `make demo`."""

import argparse
import os
import sys
import threading
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from form import Form
from hosting import Host, Limits, Models, listed_files
from inspecting import InspectTab
from pictures import MODEL, QUIET, PictureTab, Stops, request_in
from sweeping import SweepTab
from telling import told

from examples import examples
from t2iedit import Request, UserError, generate
from t2iedit.cli.terminal import silence_libraries

INTRODUCTION = """
# t2iedit
A text-to-image model reads a prompt as a table of numbers, one row a word: its *embedding*. An **edit** changes those
numbers, not the prompt. Choose one below and press Generate: both pictures start from the same seed, so whatever differs
between them the edit did.
"""
CSS = "footer {opacity: .6} #status p {margin: 0; min-height: 1.5em}"
OLD = (600, 3600)
"""Seconds: how often temporary files are looked through, and how old they may become."""


def page(host: Host) -> gr.Blocks:
    """The whole page, bound to a host."""
    stops = Stops()
    with gr.Blocks(title="t2iedit", analytics_enabled=False, delete_cache=OLD) as blocks:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                form = Form(host)
                with gr.Accordion("Repeat a picture", open=False):
                    dropped = gr.File(
                        label="Drop a PNG that t2iedit made: its settings go into the controls",
                        file_types=[".png"],
                        elem_id="dropped",
                    )
                gr.Markdown("Examples")
                with gr.Row():
                    for name, request in examples(host):
                        gr.Button(name, size="sm", min_width=120).click(
                            lambda request=request: form.filled(request), None, form.inputs, **QUIET
                        )
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                with gr.Tab("Picture"):
                    PictureTab(host, form, stops)
                with gr.Tab("Inspect"):
                    InspectTab(host, form, stops)
                with gr.Tab("Sweep"):
                    SweepTab(host, form, stops)

        def repeat(path: str | None) -> list[Any]:
            with told():
                return form.filled(request_in(path, host))

        dropped.upload(repeat, dropped, form.inputs, api_visibility="private")
        _script_endpoint(host)
    return blocks


def _script_endpoint(host: Host) -> None:
    """`/generate` for `gradio_client`: a request as JSON in, its first image and its report out."""
    asked, report = gr.JSON(visible=False), gr.JSON(visible=False)
    image = gr.Image(visible=False, format="png")
    button = gr.Button(visible=False)

    def made(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """One image from a request as JSON: prompt, negative, model, seed, steps, guidance_scale, size, edits."""
        with told():
            admitted: Request = host.admitted(request)
            single = admitted.for_seed(admitted.seeds[0])
            result = generate(host.models.opened(single.model), single)
        return result.image, result.report

    button.click(
        made, asked, [image, report],
        api_name="generate", concurrency_id=MODEL, concurrency_limit=1,
    )  # fmt: skip


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(description=__doc__)
    root.add_argument(
        "-m", "--model", action="append", dest="models", metavar="MODEL",
        help='on offer to visitors; repeatable, default "shapes"',
    )  # fmt: skip
    root.add_argument(
        "--files", metavar="DIR", help="its .safetensors files may be named in options"
    )
    root.add_argument("--device", help="cpu, cuda, cuda:1, ...")
    root.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    root.add_argument("--port", type=int, default=7860)
    root.add_argument("--share", action="store_true", help="a public link through Gradio's servers")
    root.add_argument("--auth", metavar="NAME:PASSWORD", help="ask visitors for these")
    limits = Limits()
    root.add_argument("--max-side", type=int, default=limits.side, metavar="PIXELS")
    root.add_argument("--max-steps", type=int, default=limits.steps, metavar="N")
    root.add_argument("--max-waiting", type=int, default=limits.waiting, metavar="N")
    return root


def opened_host(args: argparse.Namespace) -> Host:
    """Raises `UserError`."""
    limits = Limits(side=args.max_side, steps=args.max_steps, waiting=args.max_waiting)
    models = Models(args.models or ["shapes"], device=args.device)
    models.opened(models.names[0])
    return Host(models, listed_files(args.files), limits)


def launch(host: Host, args: argparse.Namespace, *, wait: bool = True) -> gr.Blocks:
    """Serve the page; with `wait`, until interrupted."""
    blocks = page(host)
    blocks.queue(max_size=host.limits.waiting, default_concurrency_limit=4)
    blocks.launch(
        server_name=args.host,
        server_port=args.port,
        share=args.share,
        auth=_pair(args.auth),
        max_file_size=host.limits.upload,
        enable_monitoring=False,
        ssr_mode=False,
        footer_links=["api"],
        prevent_thread_lock=True,
        theme=gr.themes.Soft(),
        css=CSS,
    )
    if wait:
        threading.Event().wait()
    return blocks


def _pair(auth: str | None) -> tuple[str, str] | None:
    if auth is None:
        return None
    name, colon, password = auth.partition(":")
    if not (name and colon and password):
        raise UserError("--auth takes NAME:PASSWORD")
    return name, password


def main() -> int:
    args = parser().parse_args()
    silence_libraries()
    try:
        launch(opened_host(args), args)
    except UserError as error:
        print(f"t2iedit demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
