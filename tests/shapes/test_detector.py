"""The referee is right about drawn scenes, and elsewhere says unknown rather than guess."""

import io
from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from t2iedit.errors import InvalidRequest
from t2iedit.shapes.detector import UNKNOWN, Detection, detect
from t2iedit.shapes.renderer import render
from t2iedit.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    TEXTURES,
    Scene,
    SceneObject,
    random_scene,
)

COUNTS = (1, 2, 3)


def drawn(count: int, number: int, size: int = 128) -> list[tuple[Scene, Image.Image]]:
    random = Random(f"detector {count}")
    scenes = [random_scene(random, count, textured=0.12) for _ in range(number)]
    return [(scene, render(scene, size, random)) for scene in scenes]


def is_right(found: Detection, scene: Scene) -> bool:
    shown, wanted = (Counter((i.color, i.shape) for i in s.objects) for s in (found, scene))
    return shown == wanted and found.background == scene.background


def one(shape: str, color: str, background: str, **more: float) -> Image.Image:
    return render(Scene((SceneObject(shape, color, **more),), background))


def changed(image: Image.Image, change: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(image) + change, 0, 255).astype(np.uint8))


def worn(image: Image.Image, seed: int) -> Image.Image:
    """Roughly what an autoencoder leaves: blurred, noisy, off in colour, in blocks."""
    random = np.random.default_rng(seed)
    noise = random.normal(0, 4, (128, 128, 3)) + random.choice([-8, 8], 3)
    file = io.BytesIO()
    changed(image.filter(ImageFilter.GaussianBlur(1)), noise).save(file, "JPEG", quality=40)
    return Image.open(file)


def named(found: Detection) -> list[str]:
    return [item.shape for item in found.objects if item.shape != UNKNOWN]


@pytest.mark.parametrize("count", COUNTS)
def test_drawn_scenes_are_read_right(count: int) -> None:
    right = [is_right(detect(image), scene) for scene, image in drawn(count, 300)]
    assert sum(right) >= 0.995 * len(right)


@pytest.mark.parametrize("count", COUNTS)
def test_worn_scenes_are_read_right(count: int) -> None:
    right = [is_right(detect(worn(im, k)), s) for k, (s, im) in enumerate(drawn(count, 80))]
    assert sum(right) >= 0.95 * len(right)


def test_held_out_pairs_are_read_right() -> None:
    random = Random(6)
    scenes = [random_scene(random, 2, held_out=True) for _ in range(40)]
    assert all(is_right(detect(render(scene, rng=random)), scene) for scene in scenes)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("color", COLORS)
def test_every_shape_and_colour_is_known_on_every_background(color: str, background: str) -> None:
    for shape in SHAPES:
        (found,) = detect(one(shape, color, background)).objects
        assert (found.shape, found.color) == (shape, color)


@pytest.mark.parametrize("texture", TEXTURES)
def test_texture_is_told(texture: str) -> None:
    for shape in SHAPES:
        scene = Scene((SceneObject(shape, "blue", texture, radius=0.3),), "white")
        (found,) = detect(render(scene)).objects
        assert (found.shape, found.texture) == (shape, texture)


def test_place_and_size_are_measured() -> None:
    for scene, image in drawn(3, 40):
        found = detect(image).objects
        for item, seen in zip(sorted(scene.objects, key=lambda i: i.x), found, strict=True):
            assert (seen.x, seen.y, seen.radius) == pytest.approx(
                (item.x, item.y, item.radius), abs=0.02
            )


@pytest.mark.parametrize("size", [64, 100, 256, 512])
def test_pictures_of_other_sizes_are_read_alike(size: int) -> None:
    assert all(is_right(detect(image), scene) for scene, image in drawn(2, 20, size))


@pytest.mark.parametrize("shift", [(15, -15, 15), (-15, 15, 15), (15, 15, -15), (-15, -15, -15)])
def test_colours_somewhat_off_are_still_known(shift: tuple[int, int, int]) -> None:
    seen = [(scene, detect(changed(im, np.asarray(shift)))) for scene, im in drawn(2, 40)]
    assert sum(is_right(found, scene) for scene, found in seen) >= 38


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_blank_picture_shows_nothing(background: str) -> None:
    assert detect(render(Scene((), background))) == Detection((), background)


@pytest.mark.parametrize("deviation", [20, 60, 120])
def test_noise_shows_no_shape(deviation: int) -> None:
    random = np.random.default_rng(deviation)
    for _ in range(10):
        pixels = np.clip(random.normal(128, deviation, (128, 128, 3)), 0, 255)
        assert named(detect(Image.fromarray(pixels.astype(np.uint8)))) == []


def test_many_colours_at_the_border_are_no_background() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 128)[:, None, None], (128, 128, 3))
    assert detect(Image.fromarray(ramp.astype(np.uint8))).background == UNKNOWN


@pytest.mark.parametrize("count", COUNTS)
def test_heavy_blur_leaves_no_shape(count: int) -> None:
    blurred = [image.filter(ImageFilter.GaussianBlur(6)) for _, image in drawn(count, 30)]
    assert sum(bool(named(detect(image))) for image in blurred) <= 1


@pytest.mark.parametrize("shape", ["circle", "square", "star", "heart", "ring", "cross"])
@pytest.mark.parametrize("side", ["left", "top"])
def test_half_drawn_object_has_no_shape(shape: str, side: str) -> None:
    pixels = np.array(one(shape, "red", "white", radius=0.3))
    pixels[(slice(None), slice(64)) if side == "left" else slice(64)] = 245
    assert named(detect(Image.fromarray(pixels))) in ([], ["diamond"])


def test_foreign_colour_is_unknown() -> None:
    pixels = np.full((128, 128, 3), 245, np.uint8)
    pixels[40:90, 40:90] = (128, 128, 0)
    (found,) = detect(Image.fromarray(pixels)).objects
    assert found.color == UNKNOWN


def test_foreign_background_is_unknown() -> None:
    picture = Image.new("RGB", (128, 128), (0, 90, 200))
    assert detect(picture) == Detection((), UNKNOWN)


def test_merged_objects_have_no_shape() -> None:
    pair = [SceneObject("circle", "red", x=x, radius=0.15) for x in (0.38, 0.62)]
    found = detect(render(Scene(tuple(pair), "white"))).objects
    assert [(item.color, item.shape) for item in found] == [("red", UNKNOWN)]


def test_touching_objects_of_two_colours_are_two() -> None:
    pair = [SceneObject("square", c, x=x, radius=0.15) for c, x in (("red", 0.39), ("blue", 0.61))]
    scene = Scene(tuple(pair), "white")
    assert is_right(detect(render(scene)), scene)


def test_object_slightly_cut_off_is_unknown_or_right() -> None:
    for shape in SHAPES:
        for x in (0.03, 0.1, 0.17):
            found = detect(one(shape, "green", "black", x=x, radius=0.2)).objects
            assert [item.color for item in found] == ["green"]
            assert shape == "diamond" or found[0].shape in (shape, UNKNOWN)


@pytest.mark.parametrize("size", [(63, 63), (128, 120)])
def test_picture_of_an_impossible_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequest, match=f"{size[0]} x {size[1]}"):
        detect(Image.new("RGB", size))
