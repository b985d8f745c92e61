"""Pictures to learn from: reading a folder, and turning, mirroring and cropping as the authors do."""

from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from t2iedit import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
MOST_PIXELS = 100_000_000
MOST_PICTURES = 10_000
SMALLEST = 8
LONGEST = 8
"""Times the shorter side: the picture is scaled by that one, and what is longer would fill the memory."""
ANGLE, TURNED, MIRRORED = 45.0, 0.75, 0.25
"""Rotation by up to 45 degrees with p .75 and a horizontal flip with p .25, as in CoRe's program."""


class PicturesNotUsable(UserError):
    """A folder without pictures, or with one that cannot be read."""


def read_pictures(
    folder: str | Path, *, skip_broken: bool = False
) -> tuple[list[Image.Image], list[str]]:
    """The folder's pictures in the order of their names, and sentences on those passed over.

    Raises `PicturesNotUsable`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PicturesNotUsable(
            f'there is no folder "{folder}"; give one with a few pictures of the concept'
        )
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if len(paths) > MOST_PICTURES:
        raise PicturesNotUsable(f'"{folder}" has {len(paths)} pictures; 3 to 10 are usual')
    pictures, skipped = [], []
    for path in paths:
        try:
            pictures.append(_read(path))
        except PicturesNotUsable as error:
            if not skip_broken:
                raise
            skipped.append(str(error).split(";")[0] + "; skipped")
    if not pictures:
        raise PicturesNotUsable(
            f'"{folder}" has no {"readable " if paths else ""}pictures; put a few of the concept there,'
            " as PNG, JPEG or WebP"
        )
    return pictures, skipped


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"more than {MOST_PIXELS} pixels")
            if min(picture.size) < SMALLEST:
                raise ValueError(f"fewer than {SMALLEST} pixels on a side")
            if max(picture.size) > LONGEST * min(picture.size):
                raise ValueError(f"more than {LONGEST} times as long as wide")
            if picture.mode[0] in "IF":
                raise ValueError("grey values of more than 8 bits, which are to be saved as 8")
            upright = ImageOps.exif_transpose(picture)
            return _on_white(upright)
    # A broken picture makes Pillow raise nearly anything.
    except Exception as error:
        reason = " ".join(str(error).split())[:150]
        raise PicturesNotUsable(
            f'"{path}" cannot be read as a picture ({reason}); take it out of the folder, or add --skip-broken'
        ) from error


def _on_white(picture: Image.Image) -> Image.Image:
    """In RGB, what is transparent on white."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return picture.convert("RGB")


def prepared(picture: Image.Image, size: int, random: Random | None) -> Tensor:
    """The picture as a square of `size` pixels (3 x size x size, -1 to 1), changed at random if asked.

    Turned, resized, mirrored and cropped, in the order of CoRe's program; without `random` only resized and cropped at
    the centre. Corners that turning lays bare show the picture's mirror image, which is our choice.
    """
    if random is not None and random.random() < TURNED:
        picture = _turned(picture, random.uniform(-ANGLE, ANGLE))
    picture = _resized(picture, size)
    if random is not None and random.random() < MIRRORED:
        picture = ImageOps.mirror(picture)
    left, top = (
        random.randint(0, spare) if random is not None else spare // 2
        for spare in (picture.width - size, picture.height - size)
    )
    cropped = picture.crop((left, top, left + size, top + size))
    values = np.asarray(cropped, np.float32) / 127.5 - 1
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def _turned(picture: Image.Image, angle: float) -> Image.Image:
    width, height = picture.size
    margin = (height // 2, height // 2), (width // 2, width // 2), (0, 0)
    wide = Image.fromarray(np.pad(np.asarray(picture), margin, mode="symmetric"))
    turned = wide.rotate(angle, Image.Resampling.BICUBIC)
    left, top = width // 2, height // 2
    return turned.crop((left, top, left + width, top + height))


def _resized(picture: Image.Image, size: int) -> Image.Image:
    """The shorter side at `size` pixels."""
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
