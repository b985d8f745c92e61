"""Pictures for those who have none at hand: a shape that the bundled model never saw."""

from pathlib import Path
from random import Random

from PIL import Image

from t2iedit.shapes.renderer import render
from t2iedit.shapes.scenes import TILT, Scene, SceneObject

SHAPE, COLOUR, CATEGORY, COUNT = "crescent", "yellow", "circle", 5


def drawn(size: int = 128) -> list[Image.Image]:
    """Some drawings, each of another size and tilt."""
    random = Random(SHAPE)
    return [render(Scene((_one(random),), "white"), size, random) for _ in range(COUNT)]


def saved(folder: Path) -> list[str]:
    """The drawings as files."""
    paths = [folder / f"{SHAPE}-{number}.png" for number in range(COUNT)]
    for path, picture in zip(paths, drawn(), strict=True):
        picture.save(path)
    return [str(path) for path in paths]


def _one(random: Random) -> SceneObject:
    radius, angle = random.uniform(0.25, 0.36), random.uniform(-TILT, TILT)
    return SceneObject(SHAPE, COLOUR, "plain", radius=radius, angle=angle)
