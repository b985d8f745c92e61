"""Scenes to pixels: every shape is a signed distance function, so edges are anti-aliased at any size."""

import math
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
from PIL import Image

from t2iedit.shapes import unseen
from t2iedit.shapes.scenes import BACKGROUNDS, COLORS, Scene, SceneObject

Array = np.ndarray
Distance = Callable[[Array, Array], Array]
"""From coordinates in units of the radius (x right, y down) to distance from the outline, negative inside."""


def render(scene: Scene, size: int = 128, rng: Random | None = None) -> Image.Image:
    """The scene as an RGB picture; with `rng`, colours vary a little, as paint does."""
    return Image.fromarray(render_array(scene, size, rng))


def render_array(scene: Scene, size: int = 128, rng: Random | None = None) -> Array:
    """The scene as `uint8` of shape (size, size, 3)."""
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = _paint(BACKGROUNDS[scene.background], rng)
    for item in scene.objects:
        _draw(canvas, item, _paint(COLORS[item.color], rng))
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def coverage(item: SceneObject, size: int) -> tuple[Array, tuple[slice, slice]]:
    """How much of each pixel the object covers (0 to 1), and the window of the picture this is about."""
    window = _window(item, size)
    x, y = _coordinates(item, size, window)
    distance = DISTANCES[item.shape](x, y)
    return np.clip(0.5 - distance * item.radius * size, 0, 1), window


def _paint(color: tuple[int, int, int], rng: Random | None) -> Array:
    jitter = [rng.uniform(-9, 9) if rng else 0.0 for _ in color]
    return np.clip(np.asarray(color, np.float32) + np.asarray(jitter, np.float32), 0, 255)


def _draw(canvas: Array, item: SceneObject, paint: Array) -> None:
    alpha, window = coverage(item, canvas.shape[0])
    x, y = _coordinates(item, canvas.shape[0], window)
    shade = TEXTURE_SHADES[item.texture](x, y, item.radius * canvas.shape[0])
    canvas[window] += alpha[..., None] * (paint * shade[..., None] - canvas[window])


def _window(item: SceneObject, size: int) -> tuple[slice, slice]:
    reach = item.radius * size * 1.05 + 2
    return _range(item.y * size, reach, size), _range(item.x * size, reach, size)


def _range(centre: float, reach: float, size: int) -> slice:
    return slice(max(0, math.floor(centre - reach)), min(size, math.ceil(centre + reach)))


def _coordinates(item: SceneObject, size: int, window: tuple[slice, slice]) -> tuple[Array, Array]:
    rows, columns = (np.arange(s.start, s.stop, dtype=np.float32) + 0.5 for s in window)
    dx = (columns / size - item.x)[None, :] / item.radius
    dy = (rows / size - item.y)[:, None] / item.radius
    cos, sin = math.cos(item.angle), math.sin(item.angle)
    return cos * dx + sin * dy, cos * dy - sin * dx


def circle(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 0.92


def ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.72) - 0.2


def heart(x: Array, y: Array) -> Array:
    """Two lobes over a right angle, after Quilez's exact distance to a heart."""
    scale = 1 / 1.5
    x, y = np.abs(x) * scale, 0.56 - y * scale
    lobe = np.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    nearest = np.maximum(x + y, 0) / 2
    tip = np.minimum(np.hypot(x, y - 1), np.hypot(x - nearest, y - nearest)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, tip) / scale


def polygon(*corners: Sequence[float]) -> Distance:
    """The exact signed distance to a simple polygon."""
    ends = np.asarray(corners, np.float32)
    starts = np.roll(ends, 1, axis=0)

    def distance(x: Array, y: Array) -> Array:
        nearest = np.full(np.broadcast(x, y).shape, np.inf, np.float32)
        inside = np.zeros(nearest.shape, bool)
        for (ax, ay), (bx, by) in zip(starts, ends, strict=True):
            ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
            along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
            if ay != by:
                inside ^= ((y < ay) != (y < by)) & (px < ex * py / ey)
        return np.sqrt(nearest) * np.where(inside, -1, 1)

    return distance


def _spiked(points: int, outer: float, inner: float) -> Distance:
    angles = [math.pi * (k / points - 0.5) for k in range(2 * points)]
    radii = [outer, inner] * points
    return polygon(
        *((r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, radii, strict=True))
    )


def _cross(arm: float, half: float) -> Distance:
    quarter = [(half, -arm), (half, -half), (arm, -half), (arm, half), (half, half), (half, arm)]
    return polygon(*quarter, *((-x, -y) for x, y in quarter))


DISTANCES: dict[str, Distance] = {
    "circle": circle,
    "square": polygon((-0.72, -0.72), (0.72, -0.72), (0.72, 0.72), (-0.72, 0.72)),
    "triangle": polygon((0.0, -0.95), (0.9, 0.65), (-0.9, 0.65)),
    "star": _spiked(5, 1.0, 0.42),
    "heart": heart,
    "diamond": polygon((0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)),
    "ring": ring,
    "cross": _cross(0.92, 0.3),
    **unseen.SHAPES,
    **{name: polygon(*corners) for name, corners in unseen.POLYGONS.items()},
}


def _plain(x: Array, y: Array, radius: float) -> Array:
    return np.ones(np.broadcast(x, y).shape, np.float32)


def _striped(x: Array, y: Array, radius: float) -> Array:
    return 1 - 0.5 * _band(np.sin((x + y) * 5.5), 5.5 / radius)


def _dotted(x: Array, y: Array, radius: float) -> Array:
    return 1 - 0.5 * _band(np.sin(x * 8) * np.sin(y * 8) - 0.35, 8 / radius)


def _band(wave: Array, softness: float) -> Array:
    return np.clip(0.5 + wave / (2 * softness), 0, 1)


TEXTURE_SHADES = {"plain": _plain, "striped": _striped, "dotted": _dotted, **unseen.TEXTURES}
"""From coordinates and radius in pixels to the brightness of the paint, 0.5 to 1."""
