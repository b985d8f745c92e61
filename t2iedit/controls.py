"""An edit's options as neutral descriptions of controls, for whatever draws them: a page, a notebook, a form."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

ControlKind = Literal[
    "switch", "slider", "number", "choice", "text", "phrase", "prompt", "file", "json"
]
MARKED = ("phrase", "prompt", "file")
"""Kinds that a field's own schema names, since its type alone does not tell."""
TICKS = 100
"""Positions of a slider between its ends, for a number that is not whole."""


@dataclass(frozen=True, slots=True)
class Control:
    """One option: what kind of control sets it, and within what.

    `many` is a list of such values, `optional` may be left empty to mean None. `low`, `high` and `step` are inclusive and
    belong to sliders and numbers; `json` is for a type that no other kind holds, typed as JSON.
    """

    name: str
    kind: ControlKind
    description: str
    default: Any = None
    needed: bool = False
    many: bool = False
    optional: bool = False
    whole: bool = False
    low: int | float | None = None
    high: int | float | None = None
    step: int | float | None = None
    choices: tuple[Any, ...] = ()


def controls(options: type[BaseModel]) -> list[Control]:
    """One control for each option: the needed ones first, the window of the denoising last."""
    schema = options.model_json_schema()
    needed, shared = schema.get("required", []), schema.get("$defs", {})
    found = [
        _control(name, field, shared, needed=name in needed)
        for name, field in schema["properties"].items()
    ]
    return sorted(found, key=lambda c: (c.name in ("start", "stop"), not c.needed))


def _control(name: str, field: dict[str, Any], shared: dict[str, Any], *, needed: bool) -> Control:
    value, optional = _without_null(_resolved(field, shared), shared)
    many = value.get("type") == "array" and isinstance(value.get("items"), dict)
    if many:
        value, _ = _without_null(_resolved(value["items"], shared), shared)
    kind = _kind(value, field)
    if many and kind not in (*MARKED, "text", "number", "slider", "choice"):
        kind, many = "json", False
    bounds = _bounds(value) if kind in ("slider", "number") else {}
    return Control(
        name=name,
        kind=kind,
        description=field.get("description", ""),
        default=field.get("default"),
        needed=needed,
        many=many,
        optional=optional,
        whole=value.get("type") == "integer",
        choices=tuple(value["enum"]) if kind == "choice" else (),
        **bounds,
    )


def _resolved(field: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in field:
        return field
    return shared.get(field["$ref"].rsplit("/", 1)[-1], {}) | field


def _without_null(field: dict[str, Any], shared: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The one type of an optional value; several types stay together, and become JSON."""
    if "anyOf" not in field:
        return field, False
    parts = [part for part in field["anyOf"] if part.get("type") != "null"]
    optional = len(parts) < len(field["anyOf"])
    return (_resolved(parts[0], shared) if len(parts) == 1 else {}), optional


def _kind(value: dict[str, Any], field: dict[str, Any]) -> ControlKind:
    marked = value.get("kind", field.get("kind"))
    if marked in MARKED:
        return marked
    if "const" in value:
        value["enum"] = [value["const"]]
    if "enum" in value:
        return "choice"
    if value.get("type") in ("integer", "number"):
        two_sided = _end(value, "minimum") is not None and _end(value, "maximum") is not None
        return "slider" if two_sided else "number"
    return {"boolean": "switch", "string": "text"}.get(value.get("type", ""), "json")  # type: ignore[return-value]


def _bounds(value: dict[str, Any]) -> dict[str, int | float | None]:
    """Inclusive ends; an end that is itself not allowed moves in by one step."""
    low, high = _end(value, "minimum"), _end(value, "maximum")
    whole = value.get("type") == "integer"
    step = 1 if whole else None if low is None or high is None else (high - low) / TICKS
    if low is not None and "exclusiveMinimum" in value and step:
        low += step
    if high is not None and "exclusiveMaximum" in value and step:
        high -= step
    return {"low": low, "high": high, "step": step}


def _end(value: dict[str, Any], name: str) -> int | float | None:
    return value.get(name, value.get(f"exclusive{name.capitalize()}"))
