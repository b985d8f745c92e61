"""Drawn shapes have their true areas, soft edges and colours."""

import math
from random import Random

import numpy as np
import pytest

from t2iedit.shapes.renderer import coverage, render, render_array
from t2iedit.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, SceneObject, random_scene

FIFTH = math.radians(36)
HEART_SQUARE = 1.5**2
AREAS = {
    "circle": math.pi * 0.92**2,
    "square": 1.44**2,
    "triangle": 0.9 * 1.6,
    "star": 5 * 0.42 * math.sin(FIFTH),
    "heart": HEART_SQUARE * (0.5 + math.pi / 8),
    "diamond": 2 * 0.62,
    "ring": math.pi * (0.92**2 - 0.52**2),
    "cross": 2 * 1.84 * 0.6 - 0.6**2,
}


@pytest.mark.parametrize("angle", [0.0, 0.2])
@pytest.mark.parametrize("shape", SHAPES)
def test_shape_covers_its_area(shape: str, angle: float) -> None:
    item = SceneObject(shape, "red", radius=0.3, angle=angle)
    cover, _ = coverage(item, 256)
    assert cover.sum() / (0.3 * 256) ** 2 == pytest.approx(AREAS[shape], rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_edge_is_anti_aliased(shape: str) -> None:
    cover, _ = coverage(SceneObject(shape, "red", x=0.503, y=0.497, angle=0.1), 128)
    soft = (cover > 0.02) & (cover < 0.98)
    assert 40 < soft.sum() < 400
    assert cover.min() == 0 and cover.max() == 1


def test_ring_has_a_hole() -> None:
    pixels = render_array(Scene((SceneObject("ring", "red"),), "white"))
    assert tuple(pixels[64, 64]) == BACKGROUNDS["white"]
    assert tuple(pixels[64, 64 + round(0.72 * 0.25 * 128)]) == COLORS["red"]


def test_object_moves_with_its_centre() -> None:
    item = SceneObject("circle", "blue", x=0.25, y=0.7, radius=0.1)
    red = render_array(Scene((item,), "white"))[..., 0] < 140
    rows, columns = np.nonzero(red)
    assert (columns.mean() + 0.5) / 128 == pytest.approx(0.25, abs=0.003)
    assert (rows.mean() + 0.5) / 128 == pytest.approx(0.7, abs=0.003)


def test_same_scene_and_paint_give_the_same_pixels() -> None:
    scene = random_scene(Random(3), 3, textured=0.5)
    assert np.array_equal(render_array(scene, rng=Random(1)), render_array(scene, rng=Random(1)))
    assert not np.array_equal(
        render_array(scene, rng=Random(1)), render_array(scene, rng=Random(2))
    )


@pytest.mark.parametrize("size", [64, 128, 200])
def test_picture_has_the_size_asked_for(size: int) -> None:
    assert render(Scene(()), size).size == (size, size)


def test_larger_picture_shows_the_same_scene() -> None:
    scene = random_scene(Random(5), 2)
    large = render_array(scene, 256).reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(large - render_array(scene)).mean() < 1


@pytest.mark.parametrize(("texture", "share"), [("plain", 0.0), ("striped", 0.5), ("dotted", 0.27)])
def test_texture_darkens_its_share(texture: str, share: float) -> None:
    item = SceneObject("square", "yellow", texture, radius=0.4)
    inside = render_array(Scene((item,), "white"), 256)[80:176, 80:176, 0]
    assert (inside < 184).mean() == pytest.approx(share, abs=0.1)
    assert inside.min() >= 245 // 2
