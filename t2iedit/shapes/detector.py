"""Pictures to scenes: which shapes, in which colours, on which background, or "unknown".

Nothing here is learned. Even areas give each object's paint, the paint gives its mask, and the mask
is compared with the renderer's own shapes. All thresholds are our choice: colours in levels of 0 to
255, lengths in pixels of the picture brought to 128 x 128.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from t2iedit.shapes.masks import grown, labelled, shrunk, without_gaps, without_specks
from t2iedit.shapes.outlines import centroid, match
from t2iedit.shapes.paints import (
    CORE,
    DARK,
    PAINTS,
    SIDE,
    STANDS_OUT,
    Layer,
    Picture,
    distance,
    layers,
    read_picture,
)
from t2iedit.shapes.scenes import BACKGROUNDS, COLORS

UNKNOWN = "unknown"

FAR = 55.0
FAR_BACKGROUND = 60.0
DECISIVE = 0.85
"""The nearest colour is at most this much as far as the second."""
SMALLEST = 110
"""Pixels of the smallest object; the smallest drawn one covers about 400."""
TEXTURED = 0.08
STRIPED = 0.5
PLAINLY = 0.002
SHARP = 0.115
"""Share of the contrast by which most of an outline rises per pixel, after a blur of 3 px less."""
SHARPEST = 0.7
WHOLE = 0.035
"""Error at most which an object that touches the picture's border is taken as whole."""
STRAY = 120
STRAY_GAP = 6
"""Pixels that make an unknown object, and how far they must be from known ones."""

Array = np.ndarray
GROUNDS = np.asarray(list(BACKGROUNDS.values()), np.float32)


@dataclass(frozen=True, slots=True)
class Detected:
    """One object; `x`, `y`, `radius` are fractions of the image side.

    `score` says how like its shape the mask is, 1 being perfect.
    """

    shape: str
    color: str
    texture: str
    x: float
    y: float
    radius: float
    score: float


@dataclass(frozen=True, slots=True)
class Detection:
    """What a picture shows, objects from left to right."""

    objects: tuple[Detected, ...]
    background: str


def detect(image: Image.Image, unseen: tuple[str, ...] = ()) -> Detection:
    """The objects and the background of a square picture of at least 64 px.

    Shapes of `t2iedit.shapes.unseen` are looked for only if named.

    Raises InvalidRequest for other sizes.
    """
    picture = read_picture(image)
    if picture is None:
        return Detection((), UNKNOWN)
    rest = picture.from_ground > STANDS_OUT
    found: list[Detected] = []
    for readings in layers(picture):
        objects, mask = _best(picture, readings, unseen)
        found += objects
        rest &= ~grown(mask, STRAY_GAP)
    found += _strays(rest)
    background = _nearest(picture.ground, GROUNDS, tuple(BACKGROUNDS), FAR_BACKGROUND)
    return Detection(tuple(sorted(found, key=lambda item: item.x)), background)


def _best(
    picture: Picture, readings: tuple[Layer, ...], unseen: tuple[str, ...]
) -> tuple[list[Detected], Array]:
    """The objects and the mask of one paint, as textured only if the objects are more alike so."""
    plain, *textured = (_objects(picture, layer, unseen) for layer in readings)
    better = [r for r in textured if _likeness(r[0]) > _likeness(plain[0]) + PLAINLY]
    return better[0] if better else plain


def _likeness(objects: list[Detected]) -> float:
    areas = sum(item.radius**2 for item in objects)
    return sum(item.score * item.radius**2 for item in objects) / areas if objects else 0.0


def _objects(
    picture: Picture, layer: Layer, unseen: tuple[str, ...]
) -> tuple[list[Detected], Array]:
    """The connected areas of a layer as objects, and the pixels they cover."""
    labels, sizes = labelled(without_gaps(layer.cover > 0.5))
    cores = np.bincount(labels[layer.core], minlength=len(sizes))
    large = (sizes >= SMALLEST) & (cores >= CORE)
    large[0] = False
    areas = (labels == k for k in np.flatnonzero(large))
    return [_object(picture, layer, area, unseen) for area in areas], large[labels]


def _object(picture: Picture, layer: Layer, area: Array, unseen: tuple[str, ...]) -> Detected:
    near = grown(area, 2)
    found = match(np.where(near, np.clip(2 * layer.cover - 0.5, 0, 1), 0), unseen)
    clear = found.clear and _is_sharp(picture, area)
    clear = clear and not (_is_cut_off(area) and found.error > WHOLE)
    return Detected(
        shape=found.shape if clear else UNKNOWN,
        color=_nearest(layer.paint, PAINTS, tuple(COLORS), FAR),
        texture=_texture(layer.shade, area),
        x=found.x / SIDE,
        y=found.y / SIDE,
        radius=found.radius / SIDE,
        score=max(0.0, 1 - found.error),
    )


def _texture(shade: Array, area: Array) -> str:
    """Stripes change along one direction, dots along two."""
    inside = shrunk(area, 3)
    if not (shade[inside] < DARK).sum() > TEXTURED * inside.sum():
        return "plain"
    down, right = (slope[inside] for slope in np.gradient(shade))
    straight, slanted = (right**2 - down**2).sum(), 2 * (right * down).sum()
    coherence = math.hypot(straight, slanted) / ((right**2 + down**2).sum() + 1e-6)
    return "striped" if coherence > STRIPED else "dotted"


def _is_sharp(picture: Picture, area: Array) -> bool:
    """Whether the picture changes at the outline as quickly as at the edge of an object."""
    outline = grown(area, 1) & ~shrunk(area, 1)
    return bool(np.quantile(picture.rise[outline], SHARPEST) > SHARP)


def _is_cut_off(area: Array) -> bool:
    inner = area[2:-2, 2:-2]
    return bool(area.sum() > inner.sum())


def _nearest(color: Array, palette: Array, names: tuple[str, ...], far: float) -> str:
    """The palette's name for a colour, if it is near one and clearly nearer than to all others."""
    distances = distance(palette, color)
    order = np.argsort(distances)
    first, second = distances[order[:2]]
    return names[int(order[0])] if first < far and first < DECISIVE * second else UNKNOWN


def _strays(rest: Array) -> list[Detected]:
    """What stands out from the background and is no known paint."""
    labels, sizes = labelled(without_specks(rest))
    return [_stray(labels == k) for k in range(1, len(sizes)) if sizes[k] >= STRAY]


def _stray(area: Array) -> Detected:
    y, x = centroid(area)
    radius = math.sqrt(area.sum() / math.pi)
    return Detected(UNKNOWN, UNKNOWN, UNKNOWN, x / SIDE, y / SIDE, radius / SIDE, 0.0)
