"""Tensors of a folder in numbered safetensors files with an index, as diffusers shards them."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from t2iedit_mixdq.errors import QuantisedModelNotUsable
from t2iedit_mixdq.quantizers import Affine

INDEX = "mixdq.safetensors.index.json"
CHECKSUMS = "sha256"
LIMIT = 2**28
"""Bytes after which a new shard begins. A shard is mapped as a whole while it is read, so loading takes so much more."""


def write_shards(
    tensors: Iterable[tuple[str, Tensor]], folder: Path, *, limit: int = LIMIT
) -> None:
    """Into a folder, made if need be; no more than one shard is ever in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}

    def flush() -> None:
        shards.append(list(held))
        save_file(held, folder / f"{len(shards)}.part")
        held.clear()

    for name, tensor in tensors:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > limit:
            flush()
        # A copy of its own: weights may share memory, which safetensors refuses.
        held[name] = tensor.detach().cpu().contiguous().clone()
    flush()
    place: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"mixdq-{number:05}-of-{len(shards):05}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        place |= dict.fromkeys(names, file)
    sums = {file: _checksum(folder / file) for file in sorted(set(place.values()))}
    index = json.dumps({"metadata": {CHECKSUMS: sums}, "weight_map": place}, indent=2)
    (folder / INDEX).write_text(index + "\n", encoding="utf-8")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Shards:
    """The tensors of a folder of shards, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._place, self._checksums = self._read_index()
        self._open: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def take(self, name: str, *, size: int | None = None) -> Tensor:
        """A tensor, `size` bytes long if given: then it lies in the mapped shard, else it is a copy.

        A tensor that is kept must not hold the whole shard. Raises `QuantisedModelNotUsable`.
        """
        if name not in self._place:
            raise QuantisedModelNotUsable(
                f'"{self.folder}" lacks the tensor {name}; quantise the model again'
            )
        try:
            tensor = self._shard(self._place[name]).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise QuantisedModelNotUsable(
                f'the shard "{self._place[name]}" in "{self.folder}" is missing or damaged ({error});'
                " copy it again, or quantise the model again"
            ) from error
        if size is not None and (tensor.dtype != torch.uint8 or tensor.nbytes != size):
            raise self.unusable(name, tensor, f"{size} bytes of uint8")
        return tensor.clone() if size is None else tensor

    def numbers(
        self, name: str, shape: tuple[int, ...], *, positive: bool = False
    ) -> Float[Tensor, "..."]:
        """A tensor in floating point of this shape, -1 standing for any length; each number finite, or above zero too.

        Raises `QuantisedModelNotUsable`.
        """
        tensor = self.take(name)
        lengths = zip(tensor.shape, shape, strict=False)
        fits = tensor.ndim == len(shape) and all(wanted in (-1, n) for n, wanted in lengths)
        if not fits or not tensor.is_floating_point():
            raise self.unusable(name, tensor, f"floating point of the shape {list(shape)}")
        if not bool(tensor.isfinite().all()) or (positive and not bool((tensor > 0).all())):
            raise self.unusable(name, tensor, f"{'positive' if positive else 'finite'} numbers")
        return tensor

    def grids(self, layer: str, parts: int, bits: int) -> tuple[Affine, ...]:
        """The grids of what each part of a layer reads. Raises `QuantisedModelNotUsable`."""
        name = f"{layer}.grids"
        pairs = self.numbers(name, (parts, 2))
        grids = tuple(Affine(step, int(zero), bits) for step, zero in pairs.tolist())
        if any(grid.delta <= 0 or not 0 <= grid.zero < grid.levels for grid in grids):
            raise self.unusable(name, pairs, f"steps and zero points of {bits} bits")
        return grids

    def unusable(self, name: str, tensor: Tensor, wanted: str) -> QuantisedModelNotUsable:
        """What to raise for a tensor that is not what belongs in its place."""
        return QuantisedModelNotUsable(
            f'"{self.folder}" has a {name} of {tensor.dtype} {list(tensor.shape)} where {wanted} belong;'
            " copy the folder again, or quantise the model again"
        )

    def verify(self) -> None:
        """Read every shard whole against its checksum. Raises `QuantisedModelNotUsable`, naming the first that differs."""
        for file, checksum in self._checksums.items():
            if _checksum(self.folder / file) != checksum:
                raise QuantisedModelNotUsable(
                    f'the shard "{file}" in "{self.folder}" is damaged: its bytes are not those that were written;'
                    " copy it again, or quantise the model again"
                )

    def _shard(self, file: str) -> Any:
        if file not in self._open:
            # One at a time, so that no more than one shard stays mapped.
            self._open = {file: safe_open(self.folder / file, "pt")}
        return self._open[file]

    def _read_index(self) -> tuple[dict[str, str], dict[str, str]]:
        """Where each tensor lies, and the checksums of the shards; folders of earlier versions have none."""
        path = self.folder / INDEX
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            place = index["weight_map"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise QuantisedModelNotUsable(
                f'"{path}" cannot be read ({error}); copy the folder again, or quantise the model again'
            ) from error
        if not isinstance(place, dict) or not all(
            isinstance(file, str) and Path(file).name == file for file in place.values()
        ):
            raise QuantisedModelNotUsable(
                f'"{path}" is no index of shards; quantise the model again'
            )
        for file in sorted(set(place.values())):
            if not (self.folder / file).is_file():
                raise QuantisedModelNotUsable(
                    f'"{self.folder}" lacks its shard "{file}"; copy it again, or quantise the model again'
                )
        metadata = index.get("metadata")
        checksums = metadata.get(CHECKSUMS) if isinstance(metadata, dict) else None
        known = checksums if isinstance(checksums, dict) else {}
        return place, {file: known[file] for file in sorted(set(place.values()) & set(known))}
