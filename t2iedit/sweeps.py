"""One request with some options swept over values: the cells of a strip, or of a grid."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product

from t2iedit.edit import Edit
from t2iedit.errors import InvalidOptions
from t2iedit.request import Request

MOST = 64
"""Values of one sweep."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The option `key` of the edit at place `edit` in the request takes each of these values."""

    edit: int
    key: str
    values: tuple[int | float, ...]

    @property
    def labels(self) -> list[str]:
        return [f"{self.key}={value:.12g}" for value in self.values]


def swept_values(text: str) -> tuple[int | float, ...] | None:
    """`0..1..0.25` as 0, .25, .5, .75, 1 and `1..4` as 1, 2, 3, 4; None for what is no such range.

    Raises `InvalidOptions` for a range that is empty or too long.
    """
    number = r"(-?\d+(?:\.\d+)?)"
    found = re.fullmatch(rf"{number}\.\.{number}(?:\.\.{number})?", text.strip())
    if found is None:
        return None
    first, last, step = (Decimal(part) for part in (found[1], found[2], found[3] or "1"))
    if step <= 0 or last < first:
        raise InvalidOptions(
            f"the sweep {text} is empty; write FIRST..LAST..STEP with a step above 0, like 0..1..0.25"
        )
    count = int((last - first) / step) + 1
    if count > MOST:
        raise InvalidOptions(
            f"the sweep {text} has {count} values; at most {MOST} fit on a picture"
        )
    values = [first + step * index for index in range(count)]
    return tuple(int(v) if v == v.to_integral_value() else float(v) for v in values)


def cells(request: Request, sweeps: Sequence[Sweep]) -> list[list[Request]]:
    """Rows of requests: the first sweep runs along the columns, the second, if any, along the rows.

    Raises `InvalidOptions` where an edit cannot take a value.
    """
    columns, rows = sweeps[0], sweeps[1:]
    combinations = [dict(zip(rows, values, strict=True)) for values in _product(rows)]
    return [
        [_with(request, chosen | {columns: value}) for value in columns.values]
        for chosen in combinations
    ]


def _product(sweeps: Sequence[Sweep]) -> list[tuple[int | float, ...]]:
    return list(product(*(sweep.values for sweep in sweeps)))


def _with(request: Request, chosen: dict[Sweep, int | float]) -> Request:
    edits = list(request.edits)
    for sweep, value in chosen.items():
        edits[sweep.edit] = _changed(edits[sweep.edit], sweep.key, value)
    return request.model_copy(update={"edits": tuple(edits)})


def _changed(edit: Edit, key: str, value: int | float) -> Edit:
    given = edit.options.model_dump(mode="json", exclude_defaults=True)
    return type(edit)(**(given | {key: value}))
