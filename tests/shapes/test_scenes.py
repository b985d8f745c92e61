"""Scenes keep the world's rules."""

import math
from itertools import combinations
from random import Random

import pytest

from t2iedit.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    GAP,
    HELD_OUT,
    MARGIN,
    RADII,
    SHAPES,
    Scene,
    random_scene,
)

COUNTS = (1, 2, 3)


def scenes(count: int, number: int = 300, *, held_out: bool = False) -> list[Scene]:
    random = Random(f"scenes {count}")
    return [random_scene(random, count, held_out=held_out, textured=0.3) for _ in range(number)]


def pairs(scene: Scene) -> list[tuple[str, str]]:
    return [(item.color, item.shape) for item in scene.objects]


@pytest.mark.parametrize("count", COUNTS)
def test_scene_has_the_objects_asked_for_no_two_alike(count: int) -> None:
    assert all(len(set(pairs(scene))) == count == len(scene.objects) for scene in scenes(count))


@pytest.mark.parametrize("count", COUNTS)
def test_scene_never_holds_a_held_out_pair_unless_asked(count: int) -> None:
    assert HELD_OUT.isdisjoint(p for scene in scenes(count) for p in pairs(scene))


@pytest.mark.parametrize("count", COUNTS)
def test_scene_holds_only_held_out_pairs_when_asked(count: int) -> None:
    assert {p for s in scenes(count, 100, held_out=True) for p in pairs(s)} == HELD_OUT


@pytest.mark.parametrize("count", COUNTS)
def test_objects_keep_clear_of_each_other_and_the_border(count: int) -> None:
    for scene in scenes(count):
        for item in scene.objects:
            low, high = RADII[count]
            assert low <= item.radius <= high
            edge = item.radius + MARGIN - 1e-9
            assert edge <= item.x <= 1 - edge and edge <= item.y <= 1 - edge
        for a, b in combinations(scene.objects, 2):
            assert math.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + GAP


def test_scenes_show_every_known_pair_and_background() -> None:
    drawn = scenes(3, 700)
    everything = {(color, shape) for color in COLORS for shape in SHAPES}
    assert {p for scene in drawn for p in pairs(scene)} == everything - HELD_OUT
    assert {scene.background for scene in drawn} == set(BACKGROUNDS)


def test_scene_is_the_same_for_the_same_seed() -> None:
    assert random_scene(Random(4), 3) == random_scene(Random(4), 3)
