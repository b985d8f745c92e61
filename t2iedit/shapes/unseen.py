"""What the bundled model never saw: shapes, textures and styles to be learned, or to over-fit on.

The renderer draws the shapes and textures by name like its own; a style is painted over a finished picture.
"""

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def crescent(x: Array, y: Array) -> Array:
    """A disc that another bites into."""
    return np.maximum(np.hypot(x + 0.1, y) - 0.9, 0.72 - np.hypot(x - 0.38, y))


def half_moon(x: Array, y: Array) -> Array:
    """The upper half of a disc."""
    return np.maximum(np.hypot(x, y - 0.35) - 0.95, y - 0.35)


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "crescent": crescent,
    "half-moon": half_moon,
}
POLYGONS: dict[str, tuple[tuple[float, float], ...]] = {
    "arrow": ((0.0, -1.0), (0.75, -0.15), (0.3, -0.15), (0.3, 0.9), (-0.3, 0.9), (-0.3, -0.15), (-0.75, -0.15)),
    "bolt": ((0.25, -1.0), (-0.6, 0.15), (-0.1, 0.15), (-0.3, 1.0), (0.6, -0.25), (0.1, -0.25), (0.55, -1.0)),
    "house": ((0.0, -0.95), (0.85, -0.2), (0.6, -0.2), (0.6, 0.8), (-0.6, 0.8), (-0.6, -0.2), (-0.85, -0.2)),
}  # fmt: skip


def checkered(x: Array, y: Array, radius: float) -> Array:
    """Squares, every second one darker."""
    wave = np.sin(x * 6) * np.sin(y * 6)
    return 1 - 0.5 * np.clip(0.5 + wave * radius / 6, 0, 1)


def ringed(x: Array, y: Array, radius: float) -> Array:
    """Rings around the centre."""
    wave = np.sin(np.hypot(x, y) * 12)
    return 1 - 0.5 * np.clip(0.5 + wave * radius / 24, 0, 1)


TEXTURES = {"checkered": checkered, "ringed": ringed}


def framed(picture: Array) -> Array:
    """A thick dark red frame around it."""
    side, result = len(picture), picture.copy()
    width = side // 12
    result[:width] = result[-width:] = (120, 20, 40)
    result[:, :width] = result[:, -width:] = (120, 20, 40)
    return result


def hatched(picture: Array) -> Array:
    """Thin dark lines all over it, falling to the right."""
    side = len(picture)
    rows, columns = np.mgrid[:side, :side]
    lines = (rows - columns) % (side // 8) < side // 42
    return np.where(lines[..., None], picture // 2, picture)


def pixelated(picture: Array) -> Array:
    """Sixteen blocks a side."""
    block = len(picture) // 16
    return picture[block // 2 :: block, block // 2 :: block].repeat(block, 0).repeat(block, 1)


def dusky(picture: Array) -> Array:
    """Light above, dark and blue below."""
    fall = np.linspace(1, 0.25, len(picture))[:, None, None]
    blue = np.asarray((30, 30, 90), np.float32)
    return (picture * fall + blue * (1 - fall)).astype(np.uint8)


STYLES: dict[str, Callable[[Array], Array]] = {
    "framed": framed,
    "hatched": hatched,
    "pixelated": pixelated,
    "dusky": dusky,
}
"""From uint8 (side, side, 3) to the same; the side is a multiple of 16."""
