"""Conditionings as files: one safetensors file each, versioned, read as untrusted (docs/conditioning-format.md)."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from safetensors.torch import save as to_bytes
from torch import Tensor

from t2iedit.conditioning import Conditioning, Embeddings, Origin
from t2iedit.errors import ConditioningNotUsable
from t2iedit.provenance import environment, write_whole
from t2iedit.text import EncoderMark, Kind, TextEmbedding, Tokens

VERSION = (1, 0)
"""Readers take any minor version of their major one; what they do not know, they pass over."""
KEY = "t2iedit.conditioning"
MAX_BYTES = 2 << 30
MAX_HEADER = 16 << 20
KINDS = tuple(Kind)
INTEGERS = (torch.uint8, torch.int32, torch.int64)


class _Text(BaseModel):
    """What an embedding's tensors leave unsaid."""

    model_config = ConfigDict(extra="ignore")

    encoder: str
    text: str


class _Mark(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    config: str
    weights: str
    layer: int | None
    dtype: str
    adapters: list[tuple[str, float]] = []


class _Moment(BaseModel):
    """A conditioning from one fraction of the denoising on."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    start: float = Field(ge=0, lt=1)
    prompt: list[_Text] = Field(min_length=1, max_length=16)
    negative: list[_Text] | None = Field(max_length=16)


class _Header(BaseModel):
    model_config = ConfigDict(extra="ignore")

    family: str | None
    encoders: list[_Mark] = []
    history: list[dict[str, Any]] = []
    kinds: list[str]
    moments: list[_Moment] = Field(min_length=1, max_length=10_000)


def save(conditioning: Conditioning, path: str | Path) -> Path:
    """Write the conditioning, whole or not at all. Raises `OutputNotWritable`."""
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    moments = [(0.0, conditioning), *conditioning.changes]
    described = [_describe(number, *moment, tensors) for number, moment in enumerate(moments)]
    origin = conditioning.origin
    header = {
        "family": None if origin is None else origin.family,
        "encoders": [] if origin is None else [_mark(mark) for mark in origin.encoders],
        "history": [] if origin is None else list(origin.history),
        "kinds": [kind.value for kind in KINDS],
        "moments": described,
        "written_with": environment(),
    }
    version = ".".join(map(str, VERSION))
    metadata = {"format": version, KEY: json.dumps(header, ensure_ascii=False)}
    write_whole(path, to_bytes(tensors, metadata))
    return path


def load_file(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a file of ours, its sizes checked before anything is read."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise _unusable(path, f"it is larger than {MAX_BYTES >> 30} GiB")
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
        if not 0 < length <= min(MAX_HEADER, len(data) - 8):
            raise _unusable(path, "it is no safetensors file")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        return metadata, load(data)
    except FileNotFoundError as error:
        raise ConditioningNotUsable(
            f'there is no conditioning "{path}"; make it with t2iedit encode PROMPT -o {path.name}'
        ) from error
    except ConditioningNotUsable:
        raise
    except (OSError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
        raise _unusable(path, str(error).split("\n")[0]) from error


def load_conditioning(path: str | Path) -> Conditioning:
    """The conditioning in a file, on the CPU. Raises `ConditioningNotUsable`."""
    path = Path(path)
    metadata, tensors = load_file(path)
    header = _header(path, metadata)
    if set(header.kinds) - {kind.value for kind in Kind}:
        raise _unusable(
            path, f"it has kinds of tokens that this version does not know: {header.kinds}"
        )
    try:
        moments = [
            (moment.start, _moment(number, moment, header.kinds, tensors))
            for number, moment in enumerate(header.moments)
        ]
        _check_alike(header, [moment for _, moment in moments])
    except (KeyError, ValueError, IndexError, TypeError, RuntimeError) as error:
        raise _unusable(path, f"its tensors do not fit together: {error}") from error
    starts = [start for start, _ in moments]
    if starts[0] != 0 or starts != sorted(set(starts)):
        raise _unusable(path, f"its moments {starts} do not rise from 0")
    first = moments[0][1]
    origin = None
    if header.family is not None:
        marks = tuple(
            EncoderMark(m.name, m.config, m.weights, m.layer, m.dtype, tuple(m.adapters))
            for m in header.encoders
        )
        origin = Origin(header.family, marks, tuple(header.history))
    return Conditioning(first.prompt, first.negative, tuple(moments[1:]), origin)


def _check_alike(header: _Header, moments: list[Conditioning]) -> None:
    """Raises `ValueError` unless all sides at all times are of the same encoders, and those are the header's."""

    def nature(side: Embeddings) -> list[tuple]:
        pooled = [None if e.pooled is None else tuple(e.pooled.shape) for e in side]
        widths = [e.hidden.shape[1] for e in side]
        return list(zip([e.tokens.encoder for e in side], widths, pooled, strict=True))

    first = nature(moments[0].prompt)
    if header.family is not None and [name for name, _, _ in first] != [
        mark.name for mark in header.encoders
    ]:
        raise ValueError("they are of other encoders than the header says")
    sides = [side for m in moments for side in (m.prompt, m.negative) if side is not None]
    if any(nature(side) != first for side in sides):
        raise ValueError("they are of different encoders at different times")


def _describe(
    number: int, start: float, conditioning: Conditioning, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    sides: dict[str, Embeddings | None] = {
        "prompt": conditioning.prompt,
        "negative": conditioning.negative,
    }
    described: dict[str, Any] = {"start": start}
    for side, embeddings in sides.items():
        described[side] = None if embeddings is None else []
        for index, embedding in enumerate(embeddings or ()):
            tokens = embedding.tokens
            described[side].append({"encoder": tokens.encoder, "text": tokens.text})
            parts = {
                "hidden": embedding.hidden,
                "pooled": embedding.pooled,
                "ids": tokens.ids.to(torch.int64),
                "offsets": torch.tensor(tokens.offsets, dtype=torch.int32).reshape(-1, 2),
                "kinds": torch.tensor([KINDS.index(k) for k in tokens.kinds], dtype=torch.uint8),
            }
            for part, tensor in parts.items():
                if tensor is not None:
                    # A copy: safetensors refuses tensors that share memory, as rows of one batch do.
                    tensors[f"{number}/{side}/{index}/{part}"] = tensor.detach().cpu().clone()
    return described


def _moment(
    number: int, moment: _Moment, kinds: list[str], tensors: dict[str, Tensor]
) -> Conditioning:
    def side(name: str, texts: list[_Text]) -> Embeddings:
        return tuple(
            _embedding(f"{number}/{name}/{index}", text, kinds, tensors)
            for index, text in enumerate(texts)
        )

    negative = None if moment.negative is None else side("negative", moment.negative)
    return Conditioning(side("prompt", moment.prompt), negative)


def _embedding(
    name: str, text: _Text, kinds: list[str], tensors: dict[str, Tensor]
) -> TextEmbedding:
    hidden, ids, offsets, codes = (
        tensors[f"{name}/{part}"] for part in ("hidden", "ids", "offsets", "kinds")
    )
    pooled = tensors.get(f"{name}/pooled")
    length = len(ids)
    expected = {
        "hidden": (hidden, 2),
        "ids": (ids, 1),
        "offsets": (offsets, 2),
        "kinds": (codes, 1),
    }
    for part, (tensor, axes) in expected.items():
        if tensor.ndim != axes or len(tensor) != length or not length:
            raise ValueError(f"{name}/{part} has the shape {tuple(tensor.shape)}")
        if part != "hidden" and tensor.dtype not in INTEGERS:
            raise ValueError(f"{name}/{part} is of {tensor.dtype}")
    if int(codes.min()) < 0:
        raise ValueError(f"{name}/kinds holds a number below 0")
    if offsets.shape[1] != 2 or (pooled is not None and pooled.ndim != 1):
        raise ValueError(f"{name} has offsets or a pooled vector of a wrong shape")
    for tensor in (hidden, *([] if pooled is None else [pooled])):
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} has values that are no finite numbers")
    tokens = Tokens(
        encoder=text.encoder,
        text=text.text,
        ids=ids.to(torch.int64),
        offsets=tuple((int(a), int(b)) for a, b in offsets.tolist()),
        kinds=tuple(Kind(kinds[code]) for code in codes.tolist()),
    )
    return TextEmbedding(tokens, hidden, pooled)


def _header(path: Path, metadata: dict[str, str]) -> _Header:
    if KEY not in metadata:
        raise _unusable(path, "it holds no conditioning of t2iedit")
    found = metadata.get("format", "")
    major = found.partition(".")[0]
    if not re.fullmatch(r"[0-9]{1,4}", major):
        raise _unusable(path, f'its format "{found}" is no version')
    if int(major) != VERSION[0]:
        raise ConditioningNotUsable(
            f'"{path}" has the format {found}, and this t2iedit reads {VERSION[0]}.x; '
            + ("update t2iedit" if int(major) > VERSION[0] else "encode the prompt again")
        )
    try:
        return _Header.model_validate_json(metadata[KEY])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _unusable(path, f"its header is damaged at {place}: {first['msg']}") from error


def _mark(mark: EncoderMark) -> dict[str, Any]:
    names = ("name", "config", "weights", "layer", "dtype")
    return {name: getattr(mark, name) for name in names} | {"adapters": list(mark.adapters)}


def _unusable(path: Path, reason: str) -> ConditioningNotUsable:
    return ConditioningNotUsable(
        f'"{path}" cannot be read as a conditioning ({reason}); give a file that t2iedit encode made'
    )
