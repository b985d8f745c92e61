"""Many requests from one file: JSON lines, CSV, or plain prompts, each line on its own."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2iedit.errors import InvalidRequest, UserError
from t2iedit.request import Request, parse_seeds, parse_size

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file by its number from 1: a request, or what is wrong with it."""

    number: int
    request: Request | None = None
    error: str | None = None


def read_lines(path: str | Path, defaults: dict[str, Any] | None = None) -> Iterator[Line]:
    """Each line's request, by the file's ending: `.jsonl` objects, `.csv` columns, else one prompt a line.

    `defaults` are values for what a line leaves out. Blank lines are passed over, and a bad one stops nothing.
    Raises `InvalidRequest` if there is no such file.
    """
    path, given = Path(path), defaults or {}
    if not path.is_file():
        raise InvalidRequest(
            f'there is no file "{path}" of requests; give a .jsonl, .csv or .txt file'
        )
    kind = path.suffix.lower()
    raw = _rows(path) if kind == ".csv" else _texts(path)
    for number, content in raw:
        try:
            yield Line(number, _request(content, given, as_json=kind in JSON_ENDINGS))
        except UserError as error:
            yield Line(number, error=str(error))


Content = str | dict[str, Any] | UserError


def _texts(path: Path) -> Iterator[tuple[int, Content]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                yield number, InvalidRequest(f"this line is not UTF-8 text ({error.reason})")
            else:
                if text:
                    yield number, text


def _rows(path: Path) -> Iterator[tuple[int, Content]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield rows.line_num, InvalidRequest(f"this line is not CSV ({error})")
                continue
            if None in row:
                extra = InvalidRequest(
                    f"this line has more cells than the {len(rows.fieldnames or ())} columns"
                )
                yield rows.line_num, extra
            elif any(row.values()):
                yield rows.line_num, {key: cell for key, cell in row.items() if cell}


def _request(content: Content, defaults: dict[str, Any], *, as_json: bool) -> Request:
    if isinstance(content, UserError):
        raise content
    values: Any = content
    if isinstance(content, str):
        values = _parsed(content) if as_json else {"prompt": content}
    elif "edits" in content:
        values = content | {"edits": _parsed(content["edits"])}
    if not isinstance(values, dict):
        raise InvalidRequest(
            'a request is a JSON object with at least a "prompt" or a "conditioning"'
        )
    values = _read_shorthands(values)
    own_seed = {"seed", "seeds"} & set(values)
    kept = {key: value for key, value in defaults.items() if not (key == "seeds" and own_seed)}
    return Request.from_json(kept | values)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"this is not JSON ({error})") from error


def _read_shorthands(values: dict[str, Any]) -> dict[str, Any]:
    """`"seeds": "0..3"` and `"size": "64x64"`, as on the command line."""
    read = dict(values)
    if isinstance(read.get("seeds"), str):
        read["seeds"] = parse_seeds(read["seeds"], '"seeds"')
    if isinstance(read.get("size"), str):
        read["size"] = parse_size(read["size"], '"size"')
    return read
