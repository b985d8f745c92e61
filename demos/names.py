"""What visitors see of the host's files: names, never paths."""

import json
import re
from pathlib import Path

from t2iedit import Request, Result
from t2iedit.controls import controls

PATH = re.compile(r"(?<![\w<.:/])(?:/[^/\s\"'():;,]+)*/([^/\s\"'():;,]+)")


def pathless(sentence: str) -> str:
    """Of every absolute path only the last name is left."""
    return PATH.sub(r"\1", sentence)


def named(text: str, request: Request) -> str:
    """A text in which the request's files have their names in place of their paths."""
    for path in paths_of(request):
        for written in (json.dumps(path, ensure_ascii=False)[1:-1], path):
            text = text.replace(written, Path(path).name)
    return text


def shareable(result: Result) -> Result:
    """The same, its images' recipes without paths."""
    for image in result.images:
        for key, value in image.info.items():
            if isinstance(value, str):
                image.info[key] = named(value, result.request)
    return result


def paths_of(request: Request) -> list[str]:
    """All files that its edits' options name."""
    found: list[str] = []
    for edit in request.edits:
        for control in controls(edit.Options):
            value = getattr(edit.options, control.name)
            if control.kind == "file" and value:
                found += value if isinstance(value, list) else [value]
    return found
