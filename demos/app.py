"""The page on which one sees what an edit does: `python demos/app.py`, or `make demo`."""

import argparse
import os
import signal
import sys
import threading

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from hosting import Host, Limits, Models, listed_files
from page import page
from style import CSS, HEAD, THEME
from temporary import own_files

from t2iedit import UserError
from t2iedit.cli.terminal import silence_libraries


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
    root.add_argument("--max-learning", type=int, default=limits.learning, metavar="STEPS")
    root.add_argument("--max-optimising", type=int, default=limits.optimising, metavar="STEPS")
    root.add_argument("--max-waiting", type=int, default=limits.waiting, metavar="N")
    return root


def opened_host(args: argparse.Namespace) -> Host:
    """Raises `UserError`."""
    limits = Limits(
        side=args.max_side,
        steps=args.max_steps,
        learning=args.max_learning,
        optimising=args.max_optimising,
        waiting=args.max_waiting,
    )
    models = Models(args.models or ["shapes"], device=args.device)
    models.opened(models.names[0])
    return Host(models, listed_files(args.files), limits)


def launch(host: Host, args: argparse.Namespace, *, wait: bool = True) -> gr.Blocks:
    """Serve the page; with `wait`, until interrupted."""
    blocks = page(host)
    blocks.queue(max_size=host.limits.waiting, default_concurrency_limit=4)
    try:
        _serve(blocks, host, args, quiet=not wait)
    except OSError as error:
        raise UserError(
            f"port {args.port} of {args.host} cannot be listened on, or is taken; choose others with --host and --port"
        ) from error
    if wait:
        threading.Event().wait()
    return blocks


def _serve(blocks: gr.Blocks, host: Host, args: argparse.Namespace, *, quiet: bool) -> None:
    blocks.launch(
        server_name=args.host,
        server_port=args.port,
        share=args.share,
        auth=_pair(args.auth),
        max_file_size=host.limits.upload,
        state_session_capacity=host.limits.sessions,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        footer_links=["api", "settings"],
        prevent_thread_lock=True,
        quiet=quiet,
        theme=THEME,
        css=CSS,
        head=HEAD,
    )


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
    # What stops a service is to end it as Ctrl-C does, so that its files go.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with own_files():
            launch(opened_host(args), args)
    except UserError as error:
        print(f"t2iedit demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
