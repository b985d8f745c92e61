"""The world of shapes as data: what a scene may contain, and how one is drawn at random."""

import math
from dataclasses import dataclass, replace
from random import Random

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 70, 220),
    "yellow": (245, 215, 50),
    "purple": (130, 50, 175),
    "orange": (245, 130, 30),
    "pink": (250, 150, 195),
    "cyan": (50, 205, 220),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (18, 18, 18),
    "gray": (128, 128, 128),
    "brown": (105, 70, 45),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross")
TEXTURES = ("plain", "striped", "dotted")

# Pairs that no training scene shows, so that a correct picture of one is composition, not memory.
HELD_OUT = frozenset(
    {
        ("red", "star"),
        ("blue", "heart"),
        ("green", "triangle"),
        ("purple", "ring"),
        ("yellow", "diamond"),
        ("cyan", "cross"),
    }
)

MAX_OBJECTS = 3
RADII = {1: (0.2, 0.34), 2: (0.165, 0.24), 3: (0.14, 0.19)}
GAP = 0.03
MARGIN = 0.03
TILT = math.radians(12)


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One drawn object; `x`, `y`, `radius` are fractions of the image side, `angle` is in radians."""

    shape: str
    color: str
    texture: str = "plain"
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.25
    angle: float = 0.0


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects that do not touch, on a background of one colour."""

    objects: tuple[SceneObject, ...]
    background: str = "white"


def random_object(rng: Random, *, held_out: bool = False, textured: float = 0.0) -> SceneObject:
    """An object of a random kind at the centre; a pair of `HELD_OUT` only if asked for, then always one."""
    color, shape = _held_out_pair(rng) if held_out else _known_pair(rng)
    texture = rng.choice(TEXTURES[1:]) if rng.random() < textured else "plain"
    return SceneObject(shape=shape, color=color, texture=texture, angle=rng.uniform(-TILT, TILT))


def random_scene(
    rng: Random, count: int, *, held_out: bool = False, textured: float = 0.0
) -> Scene:
    """A scene of `count` (1 to 3) objects, no two alike in both shape and colour."""
    objects: list[SceneObject] = []
    while len(objects) < count:
        candidate = random_object(rng, held_out=held_out, textured=textured)
        if all((o.shape, o.color) != (candidate.shape, candidate.color) for o in objects):
            objects.append(candidate)
    return Scene(place(objects, rng), rng.choice(list(BACKGROUNDS)))


def place(objects: list[SceneObject], rng: Random) -> tuple[SceneObject, ...]:
    """The objects with sizes and places of their own, none touching another or the border."""
    low, high = RADII[len(objects)]
    while True:
        placed: list[SceneObject] = []
        for candidate in objects:
            radius = rng.uniform(low, high)
            edge = radius + MARGIN
            spot = replace(
                candidate,
                radius=radius,
                x=rng.uniform(edge, 1 - edge),
                y=rng.uniform(edge, 1 - edge),
            )
            if any(_touching(spot, other) for other in placed):
                break
            placed.append(spot)
        else:
            return tuple(placed)


def _touching(a: SceneObject, b: SceneObject) -> bool:
    return math.hypot(a.x - b.x, a.y - b.y) < a.radius + b.radius + GAP


def _held_out_pair(rng: Random) -> tuple[str, str]:
    return rng.choice(sorted(HELD_OUT))


def _known_pair(rng: Random) -> tuple[str, str]:
    while True:
        pair = rng.choice(list(COLORS)), rng.choice(SHAPES)
        if pair not in HELD_OUT:
            return pair
