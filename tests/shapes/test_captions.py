"""Captions say only what is true of their scene."""

import re
from collections import Counter
from random import Random

import pytest

from t2iedit.shapes.captions import (
    CLEARLY,
    GENERIC_NOUNS,
    OPENINGS,
    RELATIONS,
    article,
    caption,
    plain_caption,
)
from t2iedit.shapes.scenes import Scene, SceneObject, random_scene

NOUN = re.compile(
    r"\ban? ((?:[a-z]+ )*?[a-z]+)(?=,| and | on a | left of | right of | above | below |$)"
)
GROUND = re.compile(r" on a ([a-z]+) background$")


def captioned(count: int, number: int = 400) -> list[tuple[Scene, str]]:
    random = Random(f"captions {count}")
    scenes = [random_scene(random, count, textured=0.3) for _ in range(number)]
    return [(scene, caption(scene, random)) for scene in scenes]


def body(text: str) -> str:
    """The caption without its opening and its background."""
    opening = max((o for o in OPENINGS if text.startswith(o)), key=len)
    return GROUND.sub("", text.removeprefix(opening))


def is_said_of(noun: str, item: SceneObject) -> bool:
    *adjectives, name = noun.split()
    known = {item.color, item.texture} - {"plain"}
    return name in (item.shape, *GENERIC_NOUNS) and set(adjectives) <= known


@pytest.mark.parametrize("count", [1, 2, 3])
def test_caption_names_each_object_truly(count: int) -> None:
    for scene, text in captioned(count):
        nouns = NOUN.findall(body(text))
        assert len(nouns) == count, text
        for noun in nouns:
            assert any(is_said_of(noun, item) for item in scene.objects), (text, scene)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_caption_names_no_other_background(count: int) -> None:
    named = [(scene, GROUND.search(text)) for scene, text in captioned(count)]
    assert all(found[1] == scene.background for scene, found in named if found)
    assert 0.3 < sum(found is not None for _, found in named) / len(named) < 0.7


def test_caption_claims_only_clear_relations() -> None:
    said: Counter[str] = Counter()
    for scene, text in captioned(2, 1500):
        for relation, apart in RELATIONS.items():
            if f" {relation} " not in text:
                continue
            said[relation] += 1
            nouns = [
                noun for part in body(text).split(f" {relation} ") for noun in NOUN.findall(part)
            ]
            a, b = scene.objects
            readings = [(a, b), (b, a)]
            assert any(
                is_said_of(nouns[0], first)
                and is_said_of(nouns[1], second)
                and apart(first, second) > CLEARLY
                for first, second in readings
            ), (text, scene)
    assert set(said) == set(RELATIONS)


def test_caption_varies_with_its_generator() -> None:
    scene = random_scene(Random(1), 3)
    assert len({caption(scene, Random(k)) for k in range(30)}) > 10


def test_plain_caption_lists_objects_in_order() -> None:
    scene = Scene(
        (
            SceneObject("star", "orange"),
            SceneObject("ring", "red", "dotted"),
            SceneObject("heart", "pink"),
        ),
        "gray",
    )
    assert plain_caption(scene) == "an orange star, a dotted red ring and a pink heart"
    assert plain_caption(Scene(scene.objects[:1], "gray"), background=True) == (
        "an orange star on a gray background"
    )


@pytest.mark.parametrize(("words", "expected"), [("orange star", "an"), ("red ring", "a")])
def test_article_fits_the_sound(words: str, expected: str) -> None:
    assert article(words) == expected
