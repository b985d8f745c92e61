"""One prompt, the same seeds: without edits, with each of them and with all, as a labelled grid."""

import argparse
from typing import TYPE_CHECKING, Any

from t2iedit.cli.arguments import add_request_arguments, request_values
from t2iedit.cli.outputs import image_paths
from t2iedit.cli.terminal import print_json, progress_bar, silence_libraries, warn
from t2iedit.errors import InvalidRequest

if TYPE_CHECKING:
    from t2iedit.edit import Edit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_request_arguments(parser, prompt_optional=False)
    parser.add_argument("-o", "--output", metavar="GRID.png", help="where the grid goes")
    parser.add_argument("--json", action="store_true", help="print each column's report as JSON")


def run(args: argparse.Namespace) -> int:
    silence_libraries()
    from t2iedit.opening import open_model
    from t2iedit.plots import labelled_grid
    from t2iedit.provenance import save_image
    from t2iedit.request import Request

    request = Request(**request_values(args))
    if not request.edits:
        raise InvalidRequest("compare needs at least one edit: -e NAME KEY=VALUE ...")
    (path,) = image_paths(args.output, request.prompt, request.seeds[:1])
    model = open_model(request.model, device=args.device, dtype=request.dtype, offload=args.offload)
    columns = comparisons(request.edits)
    results = _generate(model, request, columns, args.batch_size)
    cells = [list(row) for row in zip(*(result.images for result in results), strict=True)]
    seeds = [f"seed {seed}" for seed in request.seeds]
    save_image(labelled_grid(cells, [label for label, _ in columns], seeds, request.prompt), path)
    warn([sentence for result in results for sentence in result.report["warnings"]])
    if args.json:
        labels = [label for label, _ in columns]
        reports = [result.report for result in results]
        print_json({"path": str(path), "columns": dict(zip(labels, reports, strict=True))})
    else:
        print(path)
    return 0


def comparisons(edits: "tuple[Edit, ...]") -> "list[tuple[str, tuple[Edit, ...]]]":
    """The columns: without, with each edit, and with all if there are several."""
    columns: list[tuple[str, tuple[Edit, ...]]] = [("without", ())]
    columns += [(_label(edit), (edit,)) for edit in edits]
    return [*columns, ("all", edits)] if len(edits) > 1 else columns


def _label(edit: "Edit") -> str:
    return repr(edit)


def _generate(model: Any, request: Any, columns: list, batch_size: int) -> list[Any]:
    from t2iedit.pipeline import generate

    steps = request.steps or model.defaults.steps
    calls = len(columns) * -(-len(request.seeds) // batch_size)
    advance, close = progress_bar(calls * steps, f"{len(columns)} columns")
    try:
        return [
            generate(
                model,
                request.model_copy(update={"edits": edits}),
                on_step=advance,
                batch_size=batch_size,
            )
            for _, edits in columns
        ]
    finally:
        close()
