"""List the installed edits, or one edit's options."""

import argparse
import inspect
from typing import TYPE_CHECKING, Any

from t2iedit.cli.terminal import print_json, print_table, silence_libraries

if TYPE_CHECKING:
    from t2iedit.edit import Edit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="show this edit's options")
    parser.add_argument("--json", action="store_true", help="as JSON, with the options' schema")


def run(args: argparse.Namespace) -> int:
    silence_libraries()
    from t2iedit.plugins import installed

    plugins = installed()
    names = [args.name] if args.name else sorted(plugins.edits)
    edits = [plugins.edit(name) for name in names]
    if args.json:
        described = [_described(edit) for edit in edits]
        print_json(described[0] if args.name else described)
    elif args.name:
        print(inspect.getdoc(edits[0]))
        print()
        print_table([("OPTION", "TYPE", "DEFAULT", "MEANING"), *_option_rows(edits[0])])
    else:
        print_table([("EDIT", "WHAT IT DOES"), *((e.name, _summary(e)) for e in edits)])
    return 0


def _described(edit: "type[Edit]") -> dict[str, Any]:
    return {
        "name": edit.name,
        "summary": _summary(edit),
        "stages": list(edit.stages),
        "options": edit.Options.model_json_schema(),
    }


def _summary(edit: "type[Edit]") -> str:
    return (inspect.getdoc(edit) or "").split("\n")[0]


def _option_rows(edit: "type[Edit]") -> list[tuple[str, str, str, str]]:
    schema = edit.Options.model_json_schema()
    needed = schema.get("required", [])
    order = sorted(
        schema["properties"], key=lambda key: (key in ("start", "stop"), key not in needed)
    )
    return [
        (key, _type(field), _default(field, key in needed), field.get("description", ""))
        for key in order
        for field in [schema["properties"][key]]
    ]


def _default(field: dict[str, Any], needed: bool) -> str:
    return "(needed)" if needed else str(field.get("default"))


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return "|".join(map(str, field["enum"]))
    if field.get("type") == "array":
        return f"{_type(field['items'])}, ..."
    if "kind" in field:
        return field["kind"]
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum", field.get("exclusiveMaximum"))
    bounds = "" if low is None and high is None else f" {_bound(low)}..{_bound(high)}"
    return f"{field.get('type', 'any')}{bounds}"


def _bound(value: float | int | None) -> str:
    return "" if value is None else f"{value:g}"
