"""What the edits do to a prompt before any picture is made: tokens, norms, similarities, the change report."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from t2iedit.cli.arguments import add_request_arguments, request_values
from t2iedit.cli.terminal import print_json, print_table, silence_libraries, warn

if TYPE_CHECKING:
    from PIL.Image import Image

    from t2iedit.inspection import EncoderFacts, Inspection
    from t2iedit.model import Model
    from t2iedit.request import Request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_request_arguments(parser, prompt_optional=False)
    parser.add_argument("-o", "--output", metavar="PLOT.png", help="the similarities as a picture")
    parser.add_argument(
        "--attention",
        metavar="PHRASE",
        help="also paint it, and plot where it looks at these words",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    silence_libraries()
    from t2iedit.cli.outputs import image_paths
    from t2iedit.errors import InvalidRequest
    from t2iedit.inspection import inspect
    from t2iedit.opening import open_model
    from t2iedit.provenance import save_image
    from t2iedit.reporting import sentences
    from t2iedit.request import Request

    if args.attention and args.output is None:
        raise InvalidRequest("--attention is a picture; say with -o PLOT.png where it goes")

    request = Request(**request_values(args))
    path: Path | None = None
    if args.output is not None:
        (path,) = image_paths(args.output, request.prompt, request.seeds[:1])
    model = open_model(request.model, device=args.device, dtype=request.dtype, offload=args.offload)
    found = inspect(model, request)
    warn(found.report["warnings"])
    if path is not None:
        save_image(_chart(model, request, found, args.attention), path)
    if args.json:
        print_json(found.to_json() | ({"path": str(path)} if path else {}))
        return 0
    for facts in found.encoders:
        _print_encoder(facts)
    for sentence in sentences(found.report):
        print(sentence)
    if path is not None:
        print(path)
    return 0


def _chart(model: "Model", request: "Request", found: "Inspection", phrase: str | None) -> "Image":
    from t2iedit.charts import attention_chart, inspection_chart, stacked
    from t2iedit.inspection import attention_map

    chart = inspection_chart(found)
    if not phrase:
        return chart
    return stacked([chart, attention_chart(*attention_map(model, request, phrase), phrase)])


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
