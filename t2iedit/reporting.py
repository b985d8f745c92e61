"""The report of a run in words."""

from typing import Any

from t2iedit.edit import Edit
from t2iedit.plugins import installed


def sentences(report: dict[str, Any]) -> list[str]:
    """One for each edit: its name and what it did, as the edit itself puts it."""
    return [_sentence(facts) for facts in report["edits"]]


def _sentence(facts: dict[str, Any]) -> str:
    edit = installed().edits.get(facts["name"], Edit)
    return f"{facts['name']} {edit.in_words(facts)}"
