"""The report of a run as Markdown: what visitors are told an edit did."""

import html
from typing import Any

from t2iedit.reporting import sentences


def told_report(report: dict[str, Any]) -> str:
    """Warnings, then a sentence an edit."""
    notes = [f"- Note: {plain(sentence)}" for sentence in report["warnings"]]
    return "\n".join([*notes, *(f"- {plain(sentence)}" for sentence in sentences(report))])


def plain(text: str) -> str:
    """Text of a visitor's as text, whatever marks it holds."""
    marked = html.escape(text)
    for mark in "\\`*_[]|":
        marked = marked.replace(mark, f"&#{ord(mark)};")
    return marked
