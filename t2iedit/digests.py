"""Short names for large things: hexadecimal digits that tell apart weights, configurations and tensors."""

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DIGITS = 12
SMALL = 2**20
"""Bytes up to which a folder's file is told by its contents."""


def of_weights(named: Iterable[tuple[str, Tensor]]) -> str:
    """Names, shapes, dtypes and a sample of the values: milliseconds where hashing all of a model takes seconds."""
    digest = hashlib.sha256()
    for name, value in named:
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(sample(value))
    return digest.hexdigest()[:DIGITS]


def of_tensors(named: Iterable[tuple[str, Tensor]]) -> str:
    """Names, shapes, dtypes and every value."""
    digest = hashlib.sha256()
    for name, value in named:
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        flat = value.detach().contiguous().cpu().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def of_path(path: str | Path) -> str:
    """A file's contents; of a folder the names and sizes of all its files, and the contents of small ones.

    Raises `OSError` for what cannot be read.
    """
    path = Path(path)
    if path.is_file():
        return of_file(path)
    digest = hashlib.sha256()
    for each in sorted(path.rglob("*")):
        if each.is_file():
            size = each.stat().st_size
            told = of_file(each) if size <= SMALL else size
            digest.update(f"{each.relative_to(path).as_posix()} {told}\n".encode())
    return digest.hexdigest()[:DIGITS]


def of_file(path: str | Path) -> str:
    """A file's contents, read anew only once its size or time is another. Raises `OSError`."""
    found = Path(path).stat()
    return _of_file(Path(path).absolute(), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _of_file(path: Path, size: int, when: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]


def of_json(value: Any, digits: int = DIGITS) -> str:
    """A JSON value in its canonical form."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def sample(value: Tensor, count: int = 64) -> bytes:
    """The bytes of about `count` values, evenly spread."""
    flat = value.detach().flatten()
    taken = flat[:: max(1, len(flat) // count)]
    return taken.cpu().to(torch.float32).numpy().tobytes()
