"""Many requests from one file: JSON lines, CSV, or plain prompts, each line on its own."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from t2iedit.errors import InvalidRequest, UserError
from t2iedit.request import Request, parse_seeds, parse_size

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
PROMPT_ENDINGS = (".txt", "")
JSON_COLUMNS = ("edits", "prompts", "negatives")
COLUMNS = ("seed", *Request.model_fields)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file by its number from 1: a request, or what is wrong with it."""

    number: int
    request: Request | None = None
    error: str | None = None


def read_lines(path: str | Path, defaults: dict[str, Any] | None = None) -> Iterator[Line]:
    """Each line's request, by the file's ending: `.jsonl` objects, `.csv` columns, `.txt` one prompt a line.

    `defaults` are values for what a line leaves out. Blank lines are passed over, and a bad one stops nothing.
    Raises `InvalidRequest` if there is no such file, or one of another kind.
    """
    path, given = Path(path), defaults or {}
    if not path.is_file():
        raise InvalidRequest(
            f'there is no file "{path}" of requests; give a .jsonl, .csv or .txt file'
        )
    for number, values in _contents(path):
        try:
            if isinstance(values, UserError):
                raise values
            yield Line(number, _request(values, given))
        except UserError as error:
            yield Line(number, error=str(error))


Content = dict[str, Any] | UserError


def _contents(path: Path) -> Iterator[tuple[int, Content]]:
    """Each line by its number, as the values of a request or what is wrong with it."""
    kind = path.suffix.lower()
    if kind == ".csv":
        return _rows(path)
    if kind in JSON_ENDINGS:
        return _lines(path, _object)
    if kind in PROMPT_ENDINGS:
        return _lines(path, lambda text: {"prompt": text})
    raise InvalidRequest(
        f'"{path}" has an ending that says nothing of its form; name it .jsonl (JSON objects), .csv or .txt (prompts)'
    )


def _lines(path: Path, read: Any) -> Iterator[tuple[int, Content]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield number, read(text)
            except UnicodeDecodeError as error:
                yield number, _not_utf8(error.reason)
            except UserError as error:
                yield number, error


def _rows(path: Path) -> Iterator[tuple[int, Content]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        try:
            rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
        except csv.Error as error:
            raise InvalidRequest(f'"{path}" is not CSV ({error})') from error
        _check_columns(rows.fieldnames)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield rows.line_num, InvalidRequest(f"this line is not CSV ({error})")
                continue
            if any(row.values()):
                yield rows.line_num, _row(row)


def _check_columns(names: list[str]) -> None:
    """One mistake in the first line is one mistake, and not as many as there are rows."""
    unknown = next((name for name in names if name not in COLUMNS), None)
    if unknown is not None:
        close = get_close_matches(unknown, COLUMNS, n=1)
        hint = f'did you mean "{close[0]}"? ' if close else ""
        raise InvalidRequest(
            f'the first line of a CSV file names its columns, and a request has no "{unknown[:60]}"; {hint}it has'
            f" {', '.join(COLUMNS)}, with commas between them"
        )


def _row(row: dict[Any, Any]) -> Content:
    if None in row:
        return InvalidRequest(f"this line has more cells than the {len(row) - 1} columns")
    values = {name: cell for name, cell in row.items() if cell}
    try:
        "".join(values.values()).encode()
        for name in JSON_COLUMNS:
            if name in values:
                values[name] = _parsed(values[name])
        if "loras" in values:
            cell = values["loras"]
            values["loras"] = _parsed(cell) if cell.startswith("[") else [cell]
    except UnicodeEncodeError:
        return _not_utf8("invalid bytes")
    except UserError as error:
        return error
    return values


def _object(text: str) -> Any:
    values = _parsed(text)
    if not isinstance(values, dict):
        raise InvalidRequest(
            'a request is a JSON object with at least a "prompt" or a "conditioning"'
        )
    return values


def _request(values: dict[str, Any], defaults: dict[str, Any]) -> Request:
    values = _read_shorthands(values)
    own_seed = {"seed", "seeds"} & set(values)
    kept = {key: value for key, value in defaults.items() if not (key == "seeds" and own_seed)}
    return Request.from_json(kept | values)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"this is not JSON ({error})") from error


def _not_utf8(reason: str) -> InvalidRequest:
    return InvalidRequest(f"this line is not UTF-8 text ({reason})")


def _read_shorthands(values: dict[str, Any]) -> dict[str, Any]:
    """`"seeds": "0..3"` and `"size": "64x64"`, as on the command line."""
    read = dict(values)
    if isinstance(read.get("seeds"), str):
        read["seeds"] = parse_seeds(read["seeds"], '"seeds"')
    if isinstance(read.get("size"), str):
        read["size"] = parse_size(read["size"], '"size"')
    return read
