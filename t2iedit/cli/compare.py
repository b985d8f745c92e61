"""One prompt, the same seeds: without edits, with each of them and with all, as a labelled grid.

An option typed as a range (alpha=0..1..0.25) is swept: one along the columns, a second along the rows.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t2iedit.cli.arguments import add_request_arguments, request_values, split_sweeps
from t2iedit.cli.outputs import image_paths
from t2iedit.cli.terminal import print_json, progress_bar, silence_libraries, warn
from t2iedit.errors import InvalidRequest

if TYPE_CHECKING:
    from t2iedit.edit import Edit
    from t2iedit.request import Request, Result
    from t2iedit.sweeps import Sweep


@dataclass(frozen=True)
class Grid:
    """The requests of a picture: rows of them, all of one length, with the names of columns and rows.

    A row of several seeds is drawn as several rows.
    """

    columns: list[str]
    rows: list[str]
    requests: "list[list[Request]]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_request_arguments(parser, prompt_optional=False)
    parser.add_argument("-o", "--output", metavar="GRID.png", help="where the grid goes")
    parser.add_argument("--json", action="store_true", help="print each column's report as JSON")


def run(args: argparse.Namespace) -> int:
    silence_libraries()
    from t2iedit.opening import open_model
    from t2iedit.plots import labelled_grid
    from t2iedit.provenance import record, save_image
    from t2iedit.request import Request

    args.edits, sweeps = split_sweeps(args.edits)
    request = Request(**request_values(args))
    if not request.edits:
        raise InvalidRequest("compare needs at least one edit: -e NAME KEY=VALUE ...")
    grid = swept(request, sweeps) if sweeps else compared(request)
    (path,) = image_paths(args.output, request.prompt, request.seeds[:1])
    model = open_model(request.model, device=args.device, dtype=request.dtype, offload=args.offload)
    results = _generate(model, grid, args.batch_size)
    cells = [images for row in results for images in _by_seed(row)]
    rows = grid.rows or [f"seed {seed}" for seed in request.seeds]
    reports = [result.report for row in results for result in row]
    picture = labelled_grid(cells, grid.columns, rows, request.prompt)
    record(picture, request, reports[-1], compared={"columns": grid.columns, "rows": rows})
    save_image(picture, path)
    warn([sentence for report in reports for sentence in report["warnings"]])
    if args.json:
        print_json({"path": str(path)} | _named_reports(grid, results))
    else:
        print(path)
    return 0


def compared(request: "Request") -> Grid:
    """One column without edits, one for each of them, and one with all."""
    columns = comparisons(request.edits)
    requests = [request.model_copy(update={"edits": edits}) for _, edits in columns]
    return Grid([label for label, _ in columns], [], [requests])


def swept(request: "Request", sweeps: "Sequence[Sweep]") -> Grid:
    """One column for each value of the first sweep, one row for each of the second."""
    from t2iedit.sweeps import cells

    if len(sweeps) > 2:
        raise InvalidRequest(
            f"{len(sweeps)} options are swept, and a picture has two axes; sweep one or two"
        )
    if len(sweeps) == 2 and len(request.seeds) > 1:
        raise InvalidRequest("two swept options fill both axes of the picture; give one --seed")
    rows = sweeps[1].labels if len(sweeps) == 2 else []
    return Grid(sweeps[0].labels, rows, cells(request, sweeps))


def comparisons(edits: "tuple[Edit, ...]") -> "list[tuple[str, tuple[Edit, ...]]]":
    """The columns: without, with each edit, and with all if there are several."""
    labels = [repr(edit) for edit in edits]
    # An edit given twice must not take its twin's place among the reports.
    told = [
        f"{number}. {label}" if labels.count(label) > 1 else label
        for number, label in enumerate(labels, start=1)
    ]
    columns: list[tuple[str, tuple[Edit, ...]]] = [("without", ())]
    columns += [(label, (edit,)) for label, edit in zip(told, edits, strict=True)]
    return [*columns, ("all", edits)] if len(edits) > 1 else columns


def _generate(model: Any, grid: Grid, batch_size: int) -> "list[list[Result]]":
    from t2iedit.pipeline import generate

    first = grid.requests[0][0]
    steps = first.steps or model.defaults.steps
    count = sum(len(row) for row in grid.requests)
    calls = count * -(-len(first.seeds) // batch_size)
    advance, close = progress_bar(calls * steps, f"{count} columns")
    known: dict[Any, Any] = {}
    try:
        return [
            [
                generate(model, request, on_step=advance, batch_size=batch_size, known=known)
                for request in requests
            ]
            for requests in grid.requests
        ]
    finally:
        close()


def _by_seed(results: "list[Result]") -> list[list[Any]]:
    return [list(row) for row in zip(*(result.images for result in results), strict=True)]


def _named_reports(grid: Grid, results: "list[list[Result]]") -> dict[str, Any]:
    rows = [
        dict(zip(grid.columns, (result.report for result in row), strict=True)) for row in results
    ]
    return {"rows": dict(zip(grid.rows, rows, strict=True))} if grid.rows else {"columns": rows[0]}
