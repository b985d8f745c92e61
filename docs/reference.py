"""Write docs/reference.md from the docstrings of the public names: python docs/reference.py."""

import inspect
from pathlib import Path
from typing import Any

import t2iedit

HERE = Path(__file__).parent
HEAD = """# Reference

Every public name of `t2iedit`, from its docstring. Written by `python docs/reference.py`; do not edit.
"""


def page() -> str:
    """The whole document."""
    return "\n".join([HEAD, *(section(name) for name in t2iedit.__all__)])


def section(name: str) -> str:
    """A name with its signature, its docstring and, of a class, those of its methods."""
    value = getattr(t2iedit, name)
    lines = [f"## {name}\n", *_signature(name, value), f"{_doc(value)}\n"]
    if inspect.isclass(value):
        for key, member in sorted(vars(value).items()):
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if key[0] != "_" and inspect.isfunction(function) and function.__doc__:
                call = "" if isinstance(member, property) else f"({_parameters(function)})"
                lines.append(f"- **{key}**{call}: {' '.join(_doc(function).split())}")
        lines.append("")
    return "\n".join(lines)


def _signature(name: str, value: Any) -> list[str]:
    if inspect.isclass(value) or not callable(value):
        return []
    return [f"`{name}({_parameters(value)})`\n"]


def _parameters(function: Any) -> str:
    try:
        found = inspect.signature(inspect.unwrap(function)).parameters.values()
    except (TypeError, ValueError):
        return "..."
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    names = [stars.get(p.kind, "") + p.name for p in found if p.name != "self"]
    return ", ".join(names)


def _doc(value: Any) -> str:
    return inspect.cleandoc(value.__doc__ or "")


if __name__ == "__main__":
    (HERE / "reference.md").write_text(page(), encoding="utf-8")
