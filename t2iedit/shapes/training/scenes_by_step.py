"""The training scenes: number k is always the same scene, so nothing is stored and a run can resume anywhere."""

from random import Random

import numpy as np
import torch
from torch import Tensor

from t2iedit.shapes.captions import caption
from t2iedit.shapes.renderer import render_array
from t2iedit.shapes.scenes import Scene, random_scene

COUNTS = (1, 1, 1, 2, 2, 2, 2, 3, 3)
TEXTURED = 0.12


def rng(*key: object) -> Random:
    """A generator of its own for a named use."""
    return Random(":".join(map(str, key)))


def scene(index: int) -> Scene:
    random = rng("scene", index)
    return random_scene(random, random.choice(COUNTS), textured=TEXTURED)


def picture(index: int, size: int) -> np.ndarray:
    """Scene `index` as painted for training, colours a little varied: uint8 (size, size, 3)."""
    return render_array(scene(index), size, rng("paint", index))


def caption_of(index: int, step: object) -> str:
    """One of the scene's captions, chosen by `step`."""
    return caption(scene(index), rng("caption", index, step))


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """uint8 pictures to float (batch, 3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
