"""The concepts of the personalisation benchmark: new shapes and textures, the pictures they are learned from, the prompts they are put in.

Those reported on and those that settings are tuned on are apart.
"""

import math
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from PIL import Image

from t2iedit.shapes import renderer
from t2iedit.shapes.renderer import polygon, render
from t2iedit.shapes.scenes import TILT, Scene, SceneObject, place

Array = np.ndarray
PICTURED = ("circle", "square", "heart", "star", "diamond")
"""What a texture's pictures show it on; as many pictures are learned from."""
RADII, MARGIN = (0.28, 0.36), 0.05
"""A concept fills its pictures, as photographs of one thing do; in sides."""
SAFE = 0.02
"""How much smaller than the world's objects new shapes are drawn, since they reach farther out; in sides."""


def drop(x: Array, y: Array) -> Array:
    tip = polygon((0.0, -1.0), (0.5, 0.1), (-0.5, 0.1))
    return np.minimum(np.hypot(x, y - 0.3) - 0.6, tip(x, y))


NEW_SHAPES = {
    "hexagon": polygon(
        *((0.9 * math.cos(k * math.pi / 3), 0.9 * math.sin(k * math.pi / 3)) for k in range(6))
    ),
    "drop": drop,
    "tee": polygon((-0.85, -0.85), (0.85, -0.85), (0.85, -0.3), (0.28, -0.3), (0.28, 0.9), (-0.28, 0.9), (-0.28, -0.3), (-0.85, -0.3)),
    "trapezoid": polygon((-0.4, -0.7), (0.4, -0.7), (0.95, 0.7), (-0.95, 0.7)),
}  # fmt: skip
"""Beside those of `t2iedit.shapes.unseen`."""


def zigzag(x: Array, y: Array, radius: float) -> Array:
    wave = np.sin(9 * (y + 0.18 * np.abs((x * 2.5) % 2 - 1) * 2))
    return _banded(wave, 9 / radius)


def wavy(x: Array, y: Array, radius: float) -> Array:
    return _banded(np.sin(8 * y + 1.6 * np.sin(5 * x)), 9 / radius)


def _banded(wave: Array, softness: float) -> Array:
    """Half as bright where the wave is high, as the world's own textures are."""
    return 1 - 0.5 * np.clip(0.5 + wave / (2 * softness), 0, 1)


NEW_TEXTURES = {"zigzag": zigzag, "wavy": wavy}


@dataclass(frozen=True, slots=True)
class Unknown:
    """A concept to learn; `category` is the model's nearest word, `color` that of its pictures."""

    name: str
    kind: str
    category: str
    color: str

    @property
    def placeholder(self) -> str:
        return f"<{self.name}>"


REPORTED = (
    Unknown("crescent", "shape", "circle", "red"),
    Unknown("arrow", "shape", "triangle", "blue"),
    Unknown("bolt", "shape", "star", "yellow"),
    Unknown("house", "shape", "square", "green"),
    Unknown("drop", "shape", "heart", "cyan"),
    Unknown("tee", "shape", "cross", "purple"),
    Unknown("checkered", "texture", "dotted", "orange"),
    Unknown("zigzag", "texture", "striped", "pink"),
    Unknown("ringed", "texture", "striped", "blue"),
)
TUNING = (
    Unknown("half-moon", "shape", "circle", "green"),
    Unknown("wavy", "texture", "striped", "red"),
    Unknown("trapezoid", "shape", "square", "orange"),
    Unknown("hexagon", "shape", "circle", "purple"),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt with {} for the concept, and what it asks for besides.

    `shape` is what a texture is to be seen on.
    """

    template: str
    color: str | None = None
    background: str | None = None
    other: tuple[str, str] | None = None
    shape: str | None = None


def teach_renderer() -> None:
    """Let the renderer draw the new concepts by name, and so the detector look for them."""
    renderer.DISTANCES.update(NEW_SHAPES)
    renderer.TEXTURE_SHADES.update(NEW_TEXTURES)


def asked_of(unknown: Unknown) -> tuple[Asked, ...]:
    """Other colours than the pictures', other backgrounds, other objects."""
    one, two, three = [c for c in ("blue", "red", "yellow", "purple") if c != unknown.color][:3]
    if unknown.kind == "shape":
        return (
            Asked(f"a {one} {{}}", one),
            Asked(f"a {two} {{}} on a black background", two, "black"),
            Asked("a {} on a gray background", None, "gray"),
            Asked(f"a {three} {{}} on a brown background", three, "brown"),
            Asked(f"a {{}} and a {one} square", None, None, (one, "square")),
            Asked(f"a {two} {{}} and a {three} circle", two, None, (three, "circle")),
        )
    return (
        Asked(f"a {{}} {one} square", one, shape="square"),
        Asked(f"a {{}} {two} heart on a black background", two, "black", shape="heart"),
        Asked(f"a {{}} {three} star on a gray background", three, "gray", shape="star"),
        Asked(f"a {{}} {two} circle on a brown background", two, "brown", shape="circle"),
        Asked(f"a {{}} {one} circle and a {two} square", one, None, (two, "square"), "circle"),
        Asked(f"a {{}} {three} square and a {one} ring", three, None, (one, "ring"), "square"),
    )


def pictures_of(unknown: Unknown, size: int) -> list[Image.Image]:
    """A few drawings in one colour on white, each of another size, place and tilt."""
    random = Random(unknown.name)
    return [_picture(unknown, shape, size, random) for shape in PICTURED]


def drawn_as_asked(unknown: Unknown, asked: Asked, size: int, random: Random) -> Image.Image:
    """What a perfect model would make of the prompt."""
    objects = [_object(unknown, asked.color or unknown.color, asked.shape or "circle", random)]
    if asked.other is not None:
        color, shape = asked.other
        objects.append(SceneObject(shape, color, angle=random.uniform(-TILT, TILT)))
    return _drawn(tuple(objects), asked.background or "white", size, random)


def _picture(unknown: Unknown, shape: str, size: int, random: Random) -> Image.Image:
    radius = random.uniform(*RADII)
    x, y = (random.uniform(radius + MARGIN, 1 - radius - MARGIN) for _ in "xy")
    item = replace(_object(unknown, unknown.color, shape, random), radius=radius, x=x, y=y)
    return render(Scene((item,), "white"), size, random)


def _object(unknown: Unknown, color: str, shape: str, random: Random) -> SceneObject:
    angle = random.uniform(-TILT, TILT)
    if unknown.kind == "shape":
        return SceneObject(unknown.name, color, angle=angle)
    return SceneObject(shape, color, unknown.name, angle=angle)


def _drawn(
    objects: tuple[SceneObject, ...], background: str, size: int, random: Random
) -> Image.Image:
    placed = place([replace(item) for item in objects], random)
    smaller = tuple(replace(item, radius=item.radius - SAFE) for item in placed)
    return render(Scene(smaller, background), size, random)
