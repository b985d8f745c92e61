"""What a picture shows of a new concept, and of what else its prompt asks for, by the detector of the bundled world."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from personalization_concepts import Asked, Unknown
from PIL import Image

from t2iedit.shapes import renderer
from t2iedit.shapes.detector import FAR, SMALLEST, _nearest, detect
from t2iedit.shapes.masks import grown, labelled, without_gaps
from t2iedit.shapes.outlines import UNLIKE, _normalised, _outlines
from t2iedit.shapes.paints import PAINTS, layers, read_picture
from t2iedit.shapes.scenes import COLORS, SHAPES, TILT, SceneObject

Array = np.ndarray
CORRELATED = 0.5
"""Correlation from which a texture counts as identified; two textures of the world have less than .3."""
TURNS = 7


@dataclass(frozen=True, slots=True)
class Seen:
    """What one picture shows: how like the concept its best object is, whether clearly it, the share of the rest that is there."""

    identity: float
    identified: bool
    followed: float

    @property
    def right(self) -> bool:
        """The concept, and all that was asked for besides."""
        return self.identified and self.followed == 1


def judge(image: Image.Image, unknown: Unknown, asked: Asked) -> Seen:
    found = _shape if unknown.kind == "shape" else _texture
    identity, identified, color = found(image, unknown)
    seen = detect(image, (unknown.name,) if unknown.kind == "shape" else ())
    wishes = []
    if asked.color is not None:
        wishes.append(color == asked.color)
    if asked.background is not None:
        wishes.append(seen.background == asked.background)
    if asked.other is not None:
        wishes.append(any((o.color, o.shape) == asked.other for o in seen.objects))
    return Seen(identity, identified, sum(wishes) / len(wishes))


def _shape(image: Image.Image, unknown: Unknown) -> tuple[float, bool, str]:
    """Of the object most like the concept: likeness, whether no known shape is more so, and its colour."""
    best = (0.0, False, "")
    outlines, covers, weights = _outlines((*SHAPES, unknown.name))
    is_own = np.asarray([outline.shape == unknown.name for outline in outlines])
    for cover, paint in _covers(image):
        errors = (np.abs(covers - _normalised(cover)) * weights).sum((1, 2))
        own, other = float(errors[is_own].min()), float(errors[~is_own].min())
        if 1 - own > best[0]:
            clear = own < UNLIKE and own < other
            best = 1 - own, clear, _nearest(paint, PAINTS, tuple(COLORS), FAR)
    return best


def _covers(image: Image.Image) -> Iterator[tuple[Array, Array]]:
    """Each object's soft coverage and paint."""
    picture = read_picture(image)
    for plain, *_ in layers(picture) if picture is not None else ():
        labels, sizes = labelled(without_gaps(plain.cover > 0.5))
        for index in range(1, len(sizes)):
            if sizes[index] >= SMALLEST:
                near = grown(labels == index, 2)
                yield np.where(near, np.clip(2 * plain.cover - 0.5, 0, 1), 0), plain.paint


def _texture(image: Image.Image, unknown: Unknown) -> tuple[float, bool, str]:
    """Of the object whose paint correlates best with the texture: how much, whether clearly, and its colour."""
    best = (0.0, False, "")
    brightness = np.asarray(image.convert("L").resize((128, 128)), np.float32)
    for item in detect(image).objects:
        if item.shape in renderer.DISTANCES:
            correlation = max(_correlation(brightness, item, unknown.name, k) for k in range(TURNS))
            if correlation > best[0]:
                best = correlation, correlation > CORRELATED, item.color
    return best


def _correlation(brightness: Array, item: Any, texture: str, turn: int) -> float:
    angle = (2 * turn / (TURNS - 1) - 1) * 1.2 * TILT
    drawn = SceneObject(item.shape, "red", texture, item.x, item.y, item.radius, angle)
    cover, window = renderer.coverage(drawn, 128)
    x, y = renderer._coordinates(drawn, 128, window)
    shade = renderer.TEXTURE_SHADES[texture](x, y, item.radius * 128)
    inside = cover > 0.95
    if inside.sum() < SMALLEST:
        return 0.0
    one, other = brightness[window][inside], shade[inside]
    if one.std() < 1 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
