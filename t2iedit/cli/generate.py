"""Make images from a prompt and its edits, or repeat the run recorded in an image."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2iedit.cli.arguments import add_request_arguments, request_values
from t2iedit.cli.outputs import image_paths
from t2iedit.cli.terminal import print_json, progress_bar, silence_libraries, warn
from t2iedit.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from t2iedit.model import Model
    from t2iedit.request import Request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_request_arguments(parser, prompt_optional=True)
    parser.add_argument(
        "--from", dest="source", metavar="IMAGE.png", help="repeat the run recorded in an image"
    )
    parser.add_argument("-o", "--output", metavar="OUT.png|DIR", help="where images go")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")


def run(args: argparse.Namespace) -> int:
    silence_libraries()
    request, made_with = _asked(args)
    name = request.prompt or Path(request.conditioning or "").stem
    paths = image_paths(args.output, name, request.seeds)
    model = _open(request, args, made_with)
    if made_with:
        from t2iedit.repeating import differences

        warn(differences(model, request, made_with))
    report = _generate(model, request, paths, args)
    warn(report["warnings"])
    if args.json:
        made = zip(paths, request.seeds, strict=True)
        images = [{"path": str(path), "seed": seed} for path, seed in made]
        print_json({"images": images, "request": request.to_json(), "report": report})
    return 0


def _asked(args: argparse.Namespace) -> "tuple[Request, dict[str, Any]]":
    """The request, and how the image it is repeated from was made."""
    from t2iedit.request import Request

    values = request_values(args)
    if args.source is None:
        if args.prompt is None and args.conditioning is None:
            raise InvalidRequest(
                "a prompt is needed, or --conditioning FILE, or --from IMAGE.png; see t2iedit generate --help"
            )
        return Request(**values), {}
    if set(values) - {"model"}:
        extra = ", ".join(sorted(set(values) - {"model"}))
        raise InvalidRequest(f"--from repeats a recorded run as it was; leave out {extra}")
    from t2iedit.repeating import recorded

    request, made_with = recorded(args.source)
    return request.model_copy(update=values), made_with


def _open(request: "Request", args: argparse.Namespace, made_with: dict[str, Any]) -> "Model":
    from t2iedit.opening import open_model

    return open_model(
        request.model,
        device=args.device,
        offload=args.offload,
        dtype=request.dtype,
        memory_format=made_with.get("memory_format"),
    )


def _generate(
    model: "Model", request: "Request", paths: list[Path], args: argparse.Namespace
) -> dict[str, Any]:
    from t2iedit.pipeline import generate

    steps = request.steps or model.defaults.steps
    calls = -(-len(request.seeds) // args.batch_size)
    advance, close = progress_bar(calls * steps, f"{len(request.seeds)} image(s)")
    try:
        result = generate(
            model,
            request,
            on_step=advance,
            on_image=_saver(iter(paths), quiet=args.json),
            batch_size=args.batch_size,
        )
    finally:
        close()
    return result.report


def _saver(paths: Any, *, quiet: bool) -> "Callable[[Image, Request], None]":
    from t2iedit.provenance import save_image

    def save(image: "Image", request: "Request") -> None:
        path = next(paths)
        save_image(image, path)
        if not quiet:
            print(path, flush=True)

    return save
