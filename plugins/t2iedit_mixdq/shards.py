"""Tensors of a folder in numbered safetensors files with an index, as diffusers shards them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from t2iedit_mixdq.errors import QuantisedModelNotUsable

INDEX = "mixdq.safetensors.index.json"
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
    index = json.dumps({"weight_map": place}, indent=2)
    (folder / INDEX).write_text(index + "\n", encoding="utf-8")


class Shards:
    """The tensors of a folder of shards, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._place = self._read_index()
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
            raise QuantisedModelNotUsable(
                f'"{self.folder}" has {tensor.nbytes} bytes of {tensor.dtype} for {name} where {size} of uint8'
                " belong; quantise the model again"
            )
        return tensor.clone() if size is None else tensor

    def _shard(self, file: str) -> Any:
        if file not in self._open:
            # One at a time, so that no more than one shard stays mapped.
            self._open = {file: safe_open(self.folder / file, "pt")}
        return self._open[file]

    def _read_index(self) -> dict[str, str]:
        path = self.folder / INDEX
        try:
            place = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        except (OSError, ValueError, KeyError, TypeError) as error:
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
        return place
