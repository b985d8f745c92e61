"""Options as controls: what kind, within what, in which order."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from t2iedit import Options, Phrase, Prompt
from t2iedit.controls import controls
from t2iedit.plugins import installed

File = Annotated[str, Field(json_schema_extra={"kind": "file"})]


class Many(Options):
    on: bool = Field(False, description="A switch.")
    share: float = Field(0.5, ge=0, le=1)
    open_share: float = Field(0.5, gt=0, lt=1)
    count: int = Field(3, ge=1, le=9)
    most: int | None = Field(None, ge=1)
    strength: float = Field(0.0, ge=0)
    way: Literal["up", "down"] = "up"
    label: str = ""
    words: list[Phrase] = []
    undesired: list[Prompt] = Field(description="Needed.")
    concept: File | None = None
    files: list[File] = []
    layers: list[int] = []
    table: dict[str, float] = {}


FOUND = {control.name: control for control in controls(Many)}


@pytest.mark.parametrize(
    ("name", "kind", "many", "optional"),
    [
        ("on", "switch", False, False),
        ("share", "slider", False, False),
        ("count", "slider", False, False),
        ("most", "number", False, True),
        ("strength", "number", False, False),
        ("way", "choice", False, False),
        ("label", "text", False, False),
        ("words", "phrase", True, False),
        ("undesired", "prompt", True, False),
        ("concept", "file", False, True),
        ("files", "file", True, False),
        ("layers", "number", True, False),
        ("table", "json", False, False),
        ("start", "slider", False, False),
    ],
)
def test_kind(name, kind, many, optional):
    found = FOUND[name]
    assert (found.kind, found.many, found.optional) == (kind, many, optional)


def test_bounds_are_inclusive():
    assert (FOUND["share"].low, FOUND["share"].high) == (0, 1)
    assert (FOUND["count"].low, FOUND["count"].high, FOUND["count"].step) == (1, 9, 1)
    assert FOUND["count"].whole and FOUND["most"].whole and not FOUND["share"].whole
    assert (FOUND["most"].low, FOUND["most"].high) == (1, None)
    ends = FOUND["open_share"].low, FOUND["open_share"].high
    assert all(Many(undesired=["x"], open_share=end).open_share == end for end in ends)


def test_choices_defaults_and_descriptions():
    assert FOUND["way"].choices == ("up", "down") and FOUND["way"].default == "up"
    assert FOUND["undesired"].needed and FOUND["undesired"].description == "Needed."


def test_needed_options_come_first_and_the_window_last():
    names = [control.name for control in controls(Many)]
    assert names[0] == "undesired" and names[-2:] == ["start", "stop"]


@pytest.mark.parametrize("name", sorted(installed().edits))
def test_every_installed_edit_has_a_control_for_each_option(name):
    options = installed().edit(name).Options
    found = controls(options)
    assert {control.name for control in found} == set(options.model_fields)
    assert all(control.description for control in found)
    assert not [control.name for control in found if control.kind == "json"]
