"""Sweeps: ranges as people type them, and the requests they stand for."""

import pytest

from t2iedit import Request
from t2iedit.cli.arguments import split_sweeps
from t2iedit.errors import InvalidOptions
from t2iedit.plugins import installed
from t2iedit.sweeps import Sweep, cells, swept_values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0..1..0.25", (0, 0.25, 0.5, 0.75, 1)),
        ("1..4", (1, 2, 3, 4)),
        ("0..1..0.3", (0, 0.3, 0.6, 0.9)),
        ("-1..1..1", (-1, 0, 1)),
        ("0.1..0.3..0.1", (0.1, 0.2, 0.3)),
        ("0.5", None),
        ("a..b", None),
        ("", None),
    ],
)
def test_ranges(text, values):
    assert swept_values(text) == values


@pytest.mark.parametrize("text", ["1..0", "0..1..0", "0..1..0.001"])
def test_useless_ranges_are_refused(text):
    with pytest.raises(InvalidOptions):
        swept_values(text)


def test_only_numeric_options_are_swept():
    typed = [["decor", "undesired=0..1", "alpha=0..1..0.5"], ["t2i_zero", "gamma=2..4"]]
    plain, sweeps = split_sweeps(typed)
    assert plain == [["decor", "undesired=0..1", "alpha=0"], ["t2i_zero", "gamma=2"]]
    assert sweeps == [Sweep(0, "alpha", (0, 0.5, 1)), Sweep(1, "gamma", (2, 3, 4))]


def test_optional_numbers_are_swept_too():
    assert split_sweeps([["decor", "undesired=fog", "rank=1..2"]])[1] == [Sweep(0, "rank", (1, 2))]


def test_cells_run_along_columns_then_rows():
    decor, zero = installed().edit("decor"), installed().edit("t2i_zero")
    request = Request("a red cat and a dog", edits=[decor(undesired=["fog"]), zero()])
    grid = cells(request, [Sweep(0, "alpha", (0, 1)), Sweep(1, "gamma", (2, 3, 4))])
    found = [[(r.edits[0].options.alpha, r.edits[1].options.gamma) for r in row] for row in grid]
    assert found == [[(0, 2), (1, 2)], [(0, 3), (1, 3)], [(0, 4), (1, 4)]]
    assert all(r.edits[0].options.undesired == ["fog"] for row in grid for r in row)


def test_values_an_edit_cannot_take_are_refused():
    request = Request("a cat", edits=[installed().edit("decor")(undesired=["fog"])])
    with pytest.raises(InvalidOptions, match="alpha"):
        cells(request, [Sweep(0, "alpha", (0, 1, 2))])
