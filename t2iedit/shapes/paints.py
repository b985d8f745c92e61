"""Pictures to paints: the background's colour, and which pixels each of the world's paints covers.

All thresholds are our choice: colours in levels of 0 to 255, lengths in pixels at 128 x 128.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from t2iedit.errors import InvalidRequest
from t2iedit.shapes.masks import grown, labelled, nearest_of
from t2iedit.shapes.scenes import COLORS

SIDE = 128
SMALLEST_PICTURE = 64
SOFTENED = 0.5
FLAT = 30
STANDS_OUT = 45
SHADE_STANDS_OUT = 18
NEAR = 62
SHADY = 0.7
"""A pixel is shade only if so much nearer to one than to any full paint."""
DARK = 0.75
"""Brightness below which paint is shade; drawn shade is 0.5."""
SHADED = 0.04
CORE = 12
"""Even pixels of one paint that make an object."""
NEARBY = 9
REACH = 18
"""How far from them an object may extend: a dark stripe can hide a star's tip."""

Array = np.ndarray
PAINTS = np.asarray(list(COLORS.values()), np.float32)


@dataclass(frozen=True, slots=True)
class Picture:
    """What every step reads of a picture.

    The colours, the background's, each pixel's distance from it, which pixels lie in even areas,
    and how much of the contrast nearby is crossed from one pixel to the next.
    """

    pixels: Array
    ground: Array
    from_ground: Array
    flat: Array
    rise: Array


@dataclass(frozen=True, slots=True)
class Layer:
    """All pixels of one paint: how much of each it covers, and its brightness there, 0.5 to 1."""

    paint: Array
    core: Array
    cover: Array
    shade: Array


def read_picture(image: Image.Image) -> Picture | None:
    """The picture and its background, if most of its border has one colour.

    Raises InvalidRequest unless the picture is square and at least 64 px wide.
    """
    pixels = _pixels(image)
    ground = _ground(pixels)
    if ground is None:
        return None
    from_ground = distance(pixels, ground)
    return Picture(pixels, ground, from_ground, _flat(pixels), _rise(from_ground))


def layers(picture: Picture) -> Iterator[tuple[Layer, ...]]:
    """For each paint present its possible readings: as plain, and if it may be so, as textured."""
    paint = _paint_map(picture)
    present = np.unique(paint[paint >= 0])
    if not len(present):
        return
    away, (rows, columns) = nearest_of(paint >= 0)
    owner = np.where(away <= REACH, paint[rows, columns], -1)
    for color in present:
        yield _readings(picture, owner == color, paint == color)


def distance(pixels: Array, color: Array) -> Array:
    """Between colours, in the last axis."""
    difference = pixels - color
    return np.asarray(np.sqrt(np.einsum("...c,...c->...", difference, difference)))


def _pixels(image: Image.Image) -> Array:
    width, height = image.size
    if width != height or width < SMALLEST_PICTURE:
        raise InvalidRequest(
            f"the picture is {width} x {height}; shapes are detected in square pictures of at least"
            f" {SMALLEST_PICTURE} px: crop or resize it"
        )
    image = image.convert("RGB")
    if width != SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(SOFTENED)), np.float32)


def _ground(pixels: Array) -> Array | None:
    """The colour that most of the border has, if one has."""
    sides = (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:])
    border = np.concatenate([side.reshape(-1, 3) for side in sides])
    ground = np.median(border, axis=0)
    near = distance(border, ground) < FLAT
    return np.median(border[near], axis=0) if near.mean() > 0.5 else None


def _flat(pixels: Array) -> Array:
    """Where a pixel's neighbours differ little from one another."""
    right = np.abs(pixels[1:-1, 2:] - pixels[1:-1, :-2]) < FLAT
    down = np.abs(pixels[2:, 1:-1] - pixels[:-2, 1:-1]) < FLAT
    red, green, blue = np.moveaxis(right & down, -1, 0)
    return np.pad(red & green & blue, 1)


def _rise(from_ground: Array) -> Array:
    contrast = np.asarray(ndimage.maximum_filter(from_ground, NEARBY))
    return np.hypot(*np.gradient(from_ground)) / (contrast + 1e-6)


def _paint_map(picture: Picture) -> Array:
    """For each flat pixel of a paint's full brightness the paint's index, elsewhere -1."""
    core = picture.flat & (picture.from_ground > STANDS_OUT)
    pixels = picture.pixels[core]
    from_paints, from_shades = (
        np.stack([distance(pixels, color) for color in colors]) for colors in (PAINTS, PAINTS / 2)
    )
    nearest = from_paints.min(0)
    bright = (nearest < NEAR) & (nearest * SHADY < from_shades.min(0))
    paint = np.full(core.shape, -1)
    paint[core] = np.where(bright, from_paints.argmin(0), -1)
    for color in np.unique(paint[paint >= 0]):
        labels, sizes = labelled(paint == color)
        paint[(sizes < CORE)[labels] & (labels > 0)] = -1
    return paint


def _readings(picture: Picture, owned: Array, core: Array) -> tuple[Layer, ...]:
    """One layer of plain paint, and if dark pixels lie off the edges, one of textured paint."""
    pixels = picture.pixels
    paint = np.median(pixels[core], axis=0)
    shade = np.clip(pixels @ paint / (paint @ paint), 0.5, 1)
    edges = grown(picture.from_ground < SHADE_STANDS_OUT, 2)
    dark = owned & ~edges & (shade < DARK) & (distance(pixels, shade[..., None] * paint) < FLAT)
    shades = [np.ones_like(shade), shade][: 1 + int(dark.sum() > SHADED * core.sum())]
    return tuple(Layer(paint, core, _cover(picture, paint, owned, s), shade) for s in shades)


def _cover(picture: Picture, paint: Array, owned: Array, shade: Array) -> Array:
    """0 where a pixel is background, 1 where it is shaded paint, in between elsewhere."""
    from_paint = distance(picture.pixels, shade[..., None] * paint)
    return owned * picture.from_ground / (picture.from_ground + from_paint + 1e-6)
