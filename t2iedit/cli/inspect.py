"""What the edits do to a prompt before any picture is made: tokens, norms, similarities, the change report."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from t2iedit.cli.arguments import add_request_arguments, request_values
from t2iedit.cli.terminal import print_json, print_table, silence_libraries, warn

if TYPE_CHECKING:
    from t2iedit.inspection import EncoderFacts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_request_arguments(parser, prompt_optional=False)
    parser.add_argument("-o", "--output", metavar="PLOT.png", help="the similarities as a picture")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    silence_libraries()
    from t2iedit.charts import inspection_chart
    from t2iedit.cli.outputs import image_paths
    from t2iedit.inspection import inspect
    from t2iedit.opening import open_model
    from t2iedit.provenance import save_image
    from t2iedit.request import Request

    request = Request(**request_values(args))
    path: Path | None = None
    if args.output is not None:
        (path,) = image_paths(args.output, request.prompt, request.seeds[:1])
    model = open_model(request.model, device=args.device, dtype=request.dtype, offload=args.offload)
    found = inspect(model, request)
    warn(found.report["warnings"])
    if path is not None:
        save_image(inspection_chart(found), path)
    if args.json:
        print_json(found.to_json() | ({"path": str(path)} if path else {}))
        return 0
    for facts in found.encoders:
        _print_encoder(facts)
    for edit in found.report["edits"]:
        rest = ", ".join(f"{key}: {value}" for key, value in edit.items() if key != "name")
        print(f"{edit['name']}: {rest}" if rest else edit["name"])
    if path is not None:
        print(path)
    return 0


def _print_encoder(facts: "EncoderFacts") -> None:
    rows = [
        (
            str(token.position),
            token.piece,
            str(token.id),
            f"{token.norm_before:.3f}",
            f"{token.norm_after:.3f}",
            f"{100 * token.change:.1f} %" if token.edited else "-",
            ", ".join(piece for piece, _ in token.nearest),
        )
        for token in facts.tokens
    ]
    heads = (f"{facts.encoder.upper()} #", "TOKEN", "ID", "NORM", "EDITED", "CHANGE", "NEAREST")
    print_table([heads, *rows])
    print()
