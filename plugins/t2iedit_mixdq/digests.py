"""Short names for tensors, by which what was found for some is not taken for others."""

import hashlib
from collections.abc import Iterable

from torch import Tensor


def digest_of(named: Iterable[tuple[str, Tensor]]) -> str:
    """Twelve hexadecimal digits of names, shapes and every value."""
    digest = hashlib.sha256()
    for name, value in named:
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
