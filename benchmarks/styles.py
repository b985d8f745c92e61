"""Styles to over-fit on: how they are drawn over a picture, whether one is there, and what lies beneath it.

A style is a part of the ground in another colour. Which colour is not asked, only that it is another: the world's
autoencoder has seen no such pictures and shows them in colours of its own, and most of the styles of
`t2iedit.shapes.unseen` not at all. Pictures are 128 x 128; thresholds are our choice, and drawn pictures, passed through
the autoencoder too, must pass them (tests/test_leakage.py).
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from t2iedit.shapes.detector import Detection, detect
from t2iedit.shapes.scenes import BACKGROUNDS

SIDE = 128
NEAR, FAR = 45.0, 55.0
"""Levels, 0 to 255: pixels of one colour are nearer to it than the one, two grounds further apart than the other."""
ENOUGH = 0.5

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Style:
    """A part of the picture (`where`) whose ground has another colour than the rest; `color` is that of drawn ones."""

    where: Array
    color: str

    def drawn(self, image: Image.Image) -> Image.Image:
        """Behind the objects of a picture on white."""
        pixels = np.asarray(image).copy()
        ground = np.asarray(BACKGROUNDS["white"])
        behind = self.where & (np.linalg.norm(pixels - ground.astype(float), axis=-1) < NEAR)
        pixels[behind] = BACKGROUNDS[self.color]
        return Image.fromarray(pixels)

    def strength(self, pixels: Array) -> float:
        """The share of its part in that part's colour, less that of the rest: about 1 where drawn, 0 where not."""
        own, rest = (np.median(pixels[part], axis=0) for part in (self.where, ~self.where))
        if np.linalg.norm(own - rest) < FAR:
            return 0.0
        alike = self._alike(pixels)
        return float(np.clip(alike[self.where].mean() - alike[~self.where].mean(), 0, 1))

    def taken_off(self, pixels: Array) -> Array:
        """With the rest's ground in its place, the seam of both included."""
        bare = pixels.copy()
        bare[_grown(self.where & self._alike(pixels))] = np.median(pixels[~self.where], axis=0)
        return bare

    def _alike(self, pixels: Array) -> Array:
        return np.linalg.norm(pixels - np.median(pixels[self.where], axis=0), axis=-1) < NEAR


def _grown(mask: Array) -> Array:
    """By two pixels each way: the autoencoder blurs edges."""
    from scipy import ndimage

    return np.asarray(ndimage.binary_dilation(mask, iterations=2))


def _rows_and_columns() -> tuple[Array, Array]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return rows, columns


ROWS, COLUMNS = _rows_and_columns()
EDGE = np.minimum(np.minimum(ROWS, SIDE - 1 - ROWS), np.minimum(COLUMNS, SIDE - 1 - COLUMNS))
STYLES = {
    "framed": Style(EDGE < 12, "black"),
    "floored": Style(ROWS >= 80, "brown"),
    "banded": Style(COLUMNS // 16 % 2 == 1, "gray"),
    "halved": Style(COLUMNS >= 64, "gray"),
}


def look(image: Image.Image, style: str, unseen: tuple[str, ...] = ()) -> tuple[bool, Detection]:
    """Whether the picture has the style, and what objects it shows beneath, these unseen shapes among them."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE)), float)
    own = STYLES[style]
    kept = own.strength(pixels) > ENOUGH
    bare = own.taken_off(pixels) if kept else pixels
    return kept, detect(Image.fromarray(np.clip(bare, 0, 255).astype(np.uint8)), unseen)
