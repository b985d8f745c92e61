"""The referee of the personalisation benchmark tells concepts from what the bundled model knows."""

import importlib.util
from pathlib import Path
from random import Random

import pytest

from t2iedit.shapes import renderer
from t2iedit.shapes.renderer import render
from t2iedit.shapes.scenes import Scene, SceneObject

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "personalization.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("personalization", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def drawn(script, monkeypatch):
    for known, new in (
        (renderer.DISTANCES, script.NEW_SHAPES),
        (renderer.TEXTURE_SHADES, script.NEW_TEXTURES),
    ):
        for name, value in new.items():
            monkeypatch.setitem(known, name, value)
    return script


def test_tuning_and_reported_concepts_are_apart(script):
    names = [unknown.name for unknown in (*script.REPORTED, *script.TUNING)]
    assert len(script.REPORTED) >= 8 and len(names) == len(set(names))


@pytest.mark.parametrize("name", ["house", "drop", "zigzag"])
def test_concept_is_identified_and_what_is_like_it_is_not(drawn, name):
    unknown = next(u for u in drawn.REPORTED if u.name == name)
    asked = drawn.Asked("", unknown.color, "white")
    for picture in drawn.pictures_of(unknown, 128)[:2]:
        seen = drawn.judge(picture, unknown, asked)
        assert seen.identified and seen.identity > 0.85 and seen.followed == 1
    shape = unknown.category if unknown.kind == "shape" else "square"
    texture = "plain" if unknown.kind == "shape" else unknown.category
    like = SceneObject(shape, unknown.color, texture, radius=0.3)
    seen = drawn.judge(render(Scene((like,), "black"), 128, Random(0)), unknown, asked)
    assert not seen.identified and seen.followed == 0.5


def test_missing_other_object_is_noticed(drawn):
    unknown = drawn.REPORTED[0]
    asked = drawn.Asked("", unknown.color, None, ("blue", "square"))
    assert drawn.judge(drawn.pictures_of(unknown, 128)[0], unknown, asked).followed == 0.5
