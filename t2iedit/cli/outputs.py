"""Where images go: the names that scripts can rely on, and whether they can be written, before anything runs."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from t2iedit.errors import OutputNotWritable


def image_paths(output: str | None, prompt: str, seeds: Sequence[int]) -> list[Path]:
    """One path a seed: `x.png` or `x-<seed>.png`, `DIR/<seed>.png`, or a free name in the current folder.

    Raises `OutputNotWritable`.
    """
    with nameable(output):
        paths = _named(output, prompt, seeds)
        for folder in {path.parent for path in paths}:
            check_writable(folder)
        for path in paths:
            if path.is_dir():
                raise OutputNotWritable(
                    f'"{path}" is a folder; give a file name or another folder with -o'
                )
    return paths


def check_writable(folder: Path) -> None:
    """Raises `OutputNotWritable` if files cannot be made there; makes nothing."""
    nearest = folder
    with nameable(str(folder)):
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
    if not nearest.is_dir():
        raise OutputNotWritable(
            f'cannot write into "{folder}": "{nearest}" is a file; choose another -o'
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputNotWritable(
            f'cannot write into "{folder}": no permission in "{nearest}"; choose another -o'
        )


@contextmanager
def nameable(output: str | None) -> Iterator[None]:
    """Names that no file can have, too long ones for instance, are refused."""
    try:
        yield
    except OSError as error:
        raise OutputNotWritable(
            f'"{str(output)[:40]}..." cannot be written ({error.strerror}); choose another -o'
        ) from error


def _named(output: str | None, prompt: str, seeds: Sequence[int]) -> list[Path]:
    if output is None:
        return [_free_name(prompt, seed) for seed in seeds]
    if not output.strip():
        raise OutputNotWritable("-o is empty; give a name, or leave it out for a free one here")
    path = Path(output)
    if path.is_dir() or not path.suffix or output.endswith(("/", os.sep)):
        return [path / f"{seed}.png" for seed in seeds]
    if path.suffix.lower() != ".png":
        raise OutputNotWritable(
            f'"{output}" is not a .png name; images are saved as PNG, which can carry their recipe'
        )
    if len(seeds) == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{seed}{path.suffix}") for seed in seeds]


def _free_name(prompt: str, seed: int) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].rstrip("-") or "image"
    path, number = Path(f"{slug}-{seed}.png"), 1
    while path.exists():
        number += 1
        path = Path(f"{slug}-{seed}-{number}.png")
    return path
