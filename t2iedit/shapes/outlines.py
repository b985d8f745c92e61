"""Which of the world's shapes a mask is, whatever its place and size.

All thresholds are our choice; lengths are in square roots of the mask's area.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from t2iedit.shapes.masks import nearest_of
from t2iedit.shapes.renderer import coverage
from t2iedit.shapes.scenes import SHAPES, TILT, SceneObject

GRID = 40
HALF_GRID = 1.05
TILTS = 7
BLUNT = (0.0, 0.09)
"""Blurs under which each shape is tried: an autoencoder rounds a small star's points."""
SLACK = 0.08
"""Errors nearer the outline than this count less: outlines wobble."""
UNLIKE = 0.18
CLEARLY = 0.7
"""The best shape's error is at most this much of the second's."""

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Match:
    """The most similar shape, where it lies in pixels, how unlike it is, and if it is clear."""

    shape: str
    x: float
    y: float
    radius: float
    error: float
    clear: bool


@dataclass(frozen=True, slots=True)
class _Outline:
    """A shape at one tilt: coverage on the grid, how much an error counts where, and its measures.

    `size` is the root of the area and (`x`, `y`) the centroid, in radii.
    """

    shape: str
    cover: Array
    weight: Array
    size: float
    x: float
    y: float


def match(cover: Array, unseen: tuple[str, ...] = ()) -> Match:
    """The shape most like a picture's soft coverage (0 to 1) by one object, `unseen` shapes among them."""
    outlines, covers, weights = _outlines(SHAPES + unseen)
    errors = (np.abs(covers - _normalised(cover)) * weights).sum((1, 2))
    best = int(errors.argmin())
    outline, error = outlines[best], float(errors[best])
    second = min(errors[k] for k, other in enumerate(outlines) if other.shape != outline.shape)
    y, x = centroid(cover)
    radius = math.sqrt(cover.sum()) / outline.size
    return Match(
        outline.shape,
        x=x - outline.x * radius,
        y=y - outline.y * radius,
        radius=radius,
        error=error,
        clear=error < min(UNLIKE, CLEARLY * float(second)),
    )


def centroid(cover: Array) -> tuple[float, float]:
    """Row and column of the centre of mass, pixel centres at one half."""
    rows, columns = np.arange(cover.shape[0]), np.arange(cover.shape[1])
    total = float(cover.sum())
    y, x = float(cover.sum(1) @ rows), float(cover.sum(0) @ columns)
    return y / total + 0.5, x / total + 0.5


def _normalised(cover: Array) -> Array:
    """The coverage on a grid centred on its centroid and as wide as its area asks."""
    y, x = centroid(cover)
    steps = np.linspace(-HALF_GRID, HALF_GRID, GRID) * math.sqrt(cover.sum()) - 0.5
    points = np.meshgrid(y + steps, x + steps, indexing="ij")
    return ndimage.map_coordinates(cover.astype(np.float32), points, order=1)


@cache
def _outlines(shapes: tuple[str, ...]) -> tuple[tuple[_Outline, ...], Array, Array]:
    """Every shape at tilts a little beyond those drawn; all coverages and all weights stacked."""
    tilts = np.linspace(-1.2 * TILT, 1.2 * TILT, TILTS)
    outlines = tuple(
        _outline(shape, float(angle), blunt)
        for shape in shapes
        for angle in tilts
        for blunt in BLUNT
    )
    return outlines, np.stack([o.cover for o in outlines]), np.stack([o.weight for o in outlines])


def _outline(shape: str, angle: float, blunt: float, side: int = 128) -> _Outline:
    item = SceneObject(shape, "red", radius=0.4, angle=angle)
    cover, (rows, columns) = coverage(item, side)
    blurred = ndimage.gaussian_filter(cover, blunt * math.sqrt(cover.sum()))
    cover = np.clip(2 * blurred - 0.5, 0, 1)
    y, x = centroid(cover)
    radius = item.radius * side
    patch = _normalised(cover)
    return _Outline(
        shape,
        patch,
        weight=(np.clip(_from_outline(patch) / SLACK, 0, 1) / patch.sum()).astype(np.float32),
        size=math.sqrt(cover.sum()) / radius,
        x=(x + columns.start - item.x * side) / radius,
        y=(y + rows.start - item.y * side) / radius,
    )


def _from_outline(patch: Array) -> Array:
    """Each grid point's distance from the outline."""
    inside, outside = nearest_of(patch <= 0.5)[0], nearest_of(patch > 0.5)[0]
    return (inside + outside - 0.5) * 2 * HALF_GRID / (GRID - 1)
