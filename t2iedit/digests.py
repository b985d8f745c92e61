"""Short names for large things: hexadecimal digits that tell apart weights, configurations and tensors."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

DIGITS = 12


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


def of_json(value: Any, digits: int = DIGITS) -> str:
    """A JSON value in its canonical form."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def sample(value: Tensor, count: int = 64) -> bytes:
    """The bytes of about `count` values, evenly spread."""
    flat = value.detach().flatten()
    taken = flat[:: max(1, len(flat) // count)]
    return taken.cpu().to(torch.float32).numpy().tobytes()
