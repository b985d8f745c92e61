"""Encode a prompt with its edits into a file, to be painted later, elsewhere, or by other programs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2iedit.cli.arguments import add_text_arguments, request_values
from t2iedit.cli.outputs import check_writable, nameable
from t2iedit.cli.terminal import print_json, silence_libraries, warn
from t2iedit.errors import InvalidRequest, OutputNotWritable

if TYPE_CHECKING:
    from t2iedit.conditioning import Conditioning


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_text_arguments(parser, prompt_optional=True)
    parser.add_argument("-o", "--output", metavar="OUT.safetensors", required=True)
    parser.add_argument("--json", action="store_true", help="print what was encoded as JSON")


def run(args: argparse.Namespace) -> int:
    silence_libraries()
    path = _checked(args.output)
    from t2iedit.opening import open_model
    from t2iedit.pipeline import encode_run, start
    from t2iedit.request import Request

    request = Request(**request_values(args))
    if not request.prompt and request.conditioning is None:
        raise InvalidRequest("a prompt is needed, or --conditioning FILE to edit on")
    model = open_model(request.model, device=args.device, dtype=request.dtype, offload=args.offload)
    begun = start(model, request)
    conditioning = encode_run(begun)
    conditioning.save(path)
    warn(begun.report["warnings"])
    if args.json:
        print_json({"path": str(path), "report": begun.report} | describe(conditioning))
    else:
        print(path)
    return 0


def describe(conditioning: "Conditioning") -> dict[str, Any]:
    """What a file holds, as JSON values."""
    return {
        "digest": conditioning.digest,
        "prompt": conditioning.text,
        "encoders": {e.tokens.encoder: list(e.hidden.shape) for e in conditioning.prompt},
        "negative": conditioning.negative is not None,
        "changes": [start for start, _ in conditioning.changes],
        "history": list(conditioning.origin.history) if conditioning.origin else [],
    }


def _checked(output: str) -> Path:
    path = Path(output)
    with nameable(output):
        if path.suffix != ".safetensors" or path.is_dir():
            raise OutputNotWritable(f'"{output}" is not a .safetensors name; give one with -o')
    check_writable(path.parent)
    return path
