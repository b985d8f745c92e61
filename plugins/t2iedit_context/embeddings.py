"""Learned concepts as files: one safetensors with where it comes from, and the layouts that people share."""

import hashlib
import io
import json
import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from t2iedit import Model, OutputNotWritable, TextEncoder, UserError

METADATA = "t2iedit"
LARGEST = 64 * 2**20
MOST_VECTORS = 75
LONGEST_NAME = 200
SAMPLES = 16
SD, SDXL = ("clip",), ("clip_l", "clip_g")
PICKLES = (".pt", ".bin", ".pth")
FAMILIES = {
    768: "SD 1.x",
    1024: "SD 2.x",
    1280: "SDXL's second encoder",
}
"""Who has an encoder of this width."""


class ConceptNotUsable(UserError):
    """A file holds no concept, or none for this model."""


@dataclass(frozen=True, slots=True, eq=False)
class Concept:
    """A placeholder and its input vectors (vectors x width, float32) for each encoder, `clip` or `clip_l` and `clip_g`.

    `category` is the word it is a kind of, `digest` tells its file. `made` says how it was learned, as JSON, with a sample of each encoder's
    vocabulary under `encoders`.
    """

    placeholder: str
    vectors: Mapping[str, Tensor]
    category: str | None = None
    made: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    @property
    def count(self) -> int:
        """How many vectors, so tokens, stand for it."""
        return len(next(iter(self.vectors.values())))

    def for_encoder(self, encoder: TextEncoder) -> Tensor:
        """Its vectors for this encoder. Raises `ConceptNotUsable` if they are of another kind of model."""
        if encoder.name not in self.vectors:
            raise ConceptNotUsable(
                f'the concept "{self.placeholder}" has vectors for {_listed(self.vectors)}, and this model wants them'
                f" for {encoder.name}; learn it again on this model, or choose a model of its kind"
            )
        vectors, wanted = self.vectors[encoder.name], vocabulary(encoder).shape[1]
        if vectors.shape[1] != wanted:
            raise ConceptNotUsable(
                f'the concept "{self.placeholder}" has vectors of width {_owner(vectors.shape[1])}, and this model\'s'
                f" encoder reads width {_owner(wanted)}; learn it again on this model, or choose a model of its kind"
            )
        return vectors

    def learned_elsewhere(self, encoder: TextEncoder) -> bool:
        """Whether the file says that it was learned on another encoder than this, however like it in size."""
        known = self.made.get("encoders", {}).get(encoder.name)
        if not known:
            return False
        here = vocabulary_sample(encoder)
        if not isinstance(known, list) or len(known) != len(here):
            return True
        # Half precision keeps three digits.
        return not torch.allclose(torch.tensor(known), torch.tensor(here), rtol=1e-2, atol=1e-4)


def vocabulary(encoder: TextEncoder) -> Tensor:
    """The input embeddings of all the encoder's tokens (tokens x width)."""
    return encoder.transformer.get_input_embeddings().weight  # type: ignore[operator]


def vocabulary_sample(encoder: TextEncoder) -> list[float]:
    """A few values that tell apart encoders, whatever the dtype they were loaded in."""
    flat = vocabulary(encoder).detach().flatten()
    sample = flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES]
    return [round(value, 5) for value in sample.float().tolist()]


def check_concepts(concepts: list[Concept], model: Model) -> None:
    """Raises `ConceptNotUsable` for the first that does not fit this model, or for two of one name."""
    names = [concept.placeholder.lower() for concept in concepts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConceptNotUsable(
            f'two concepts are called "{twice}"; rename one with: t2iedit core convert FILE -o NEW --placeholder NAME'
        )
    for concept in concepts:
        for encoder in model.encoders:
            concept.for_encoder(encoder)


def read_concept(path: str | Path, placeholder: str | None = None) -> Concept:
    """The concept in a file of ours, or in one of diffusers, A1111 or SDXL's two-encoder layout.

    `placeholder` replaces the name in the file. Pickled files are read without running anything they hold. Raises
    `ConceptNotUsable`.
    """
    path = Path(path)
    data = _contents(path)
    if path.suffix == ".safetensors":
        stored, metadata = _read_safetensors(data, path)
    elif path.suffix in PICKLES:
        stored, metadata = _read_pickle(path), {}
    else:
        raise ConceptNotUsable(f'"{path}" is no .safetensors, .pt or .bin file; give one of those')
    category, made = metadata.get("category") or None, metadata.get("made", {})
    known = made.get("encoders", {}) if isinstance(made, dict) else None
    if not isinstance(category, str | None) or not isinstance(known, dict):
        raise ConceptNotUsable(f'"{path}" is damaged (its header); fetch or copy it again')
    name, vectors = _vectors(stored, path)
    checked = {encoder: _checked(value, path) for encoder, value in vectors.items()}
    if len({len(value) for value in checked.values()}) != 1:
        raise ConceptNotUsable(
            f'"{path}" has different numbers of vectors for its encoders, which no prompt can hold;'
            " give a file with as many for each"
        )
    return Concept(
        _checked_name(placeholder or metadata.get("placeholder") or name, path),
        checked,
        category,
        made,
        hashlib.sha256(data).hexdigest()[:12],
    )


def write_concept(concept: Concept, path: Path) -> None:
    """Write the file, whole or not at all; its suffix is the layout.

    `.safetensors` is ours, which diffusers reads too; `.bin` is diffusers' older one, and `.pt` A1111's, which has one
    encoder. Raises `OutputNotWritable`, and `ConceptNotUsable` for what the layout cannot hold.
    """
    write_whole(path, _serialised(concept, path))


def write_whole(path: Path, data: bytes) -> None:
    """A file that is either as it was or complete, also on a full disc. Raises `OutputNotWritable`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        Path(unfinished).unlink(missing_ok=True)


def check_layout(path: Path) -> None:
    """Raises `OutputNotWritable` for a suffix that is no layout of ours."""
    if path.suffix not in (".safetensors", ".bin", ".pt"):
        raise OutputNotWritable(
            f'"{path}" is no name for a concept; end it in .safetensors, or in .bin or .pt for older programs'
        )


def _unwritable(path: Path, error: OSError) -> OutputNotWritable:
    return OutputNotWritable(
        f'cannot write "{path}" ({error.strerror or error}); choose a place you may write to, with room'
    )


def _contents(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise ConceptNotUsable(
                f'"{path}" has {size / 2**20:.0f} MiB, and a concept has less than one; is it a LoRA or a model?'
            )
        return path.read_bytes()
    except OSError as error:
        raise ConceptNotUsable(
            f'cannot read the concept "{path}" ({error.strerror or error}); give a file that'
            " t2iedit core learn wrote, or another textual inversion"
        ) from error


def _read_safetensors(data: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        ours = json.loads(header.get("__metadata__", {}).get(METADATA, "{}"))
    except (SafetensorError, ValueError) as error:
        raise ConceptNotUsable(f'"{path}" is damaged ({error}); fetch or copy it again') from error
    return tensors, ours if isinstance(ours, dict) else {}


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConceptNotUsable(
            f'"{path}" holds more than tensors, so opening it could run a program; give it as .safetensors'
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConceptNotUsable(f'"{path}" is damaged ({reason}); fetch or copy it again') from error


def _vectors(stored: Any, path: Path) -> tuple[str, dict[str, Any]]:
    """The placeholder and the tensors by encoder, whatever the layout."""
    if isinstance(stored, Tensor):
        return path.stem, {SD[0]: stored}
    if not isinstance(stored, dict):
        raise _foreign(path, "no tensors")
    if isinstance(stored.get("string_to_param"), dict):
        parameters = stored["string_to_param"]
        name = stored.get("name") or path.stem
        return str(name), {SD[0]: parameters.get("*", next(iter(parameters.values()), None))}
    if set(SDXL) <= set(stored):
        return path.stem, {name: stored[name] for name in SDXL}
    if len(stored) == 1:
        ((name, tensor),) = stored.items()
        return (path.stem if name == "emb_params" else str(name)), {SD[0]: tensor}
    raise _foreign(path, ", ".join(map(str, list(stored)[:5])) or "nothing")


def _foreign(path: Path, found: str) -> ConceptNotUsable:
    return ConceptNotUsable(
        f'"{path}" holds {found}, which is no layout of a textual inversion that t2iedit knows; give one of'
        " diffusers (learned_embeds), A1111 (.pt) or SDXL (clip_l and clip_g)"
    )


def _checked(value: Any, path: Path) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim not in (1, 2):
        raise _foreign(path, "something else than rows of numbers")
    rows = value.detach().float().cpu()
    rows = rows[None] if rows.ndim == 1 else rows
    if not 1 <= len(rows) <= MOST_VECTORS or rows.shape[1] < 1:
        raise ConceptNotUsable(
            f'"{path}" has {len(rows)} vectors; a prompt has room for 1 to {MOST_VECTORS}'
        )
    if not rows.isfinite().all():
        raise ConceptNotUsable(f'"{path}" holds values that are not finite; learn it again')
    return rows.clone()


def _checked_name(name: Any, path: Path) -> str:
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME:
        raise ConceptNotUsable(f'"{path}" has no usable name; give one with --placeholder')
    return name.strip()


def _serialised(concept: Concept, path: Path) -> bytes:
    check_layout(path)
    vectors = {name: value.detach().float().contiguous() for name, value in concept.vectors.items()}
    single = vectors.get(SD[0])
    # One key, the placeholder, is what diffusers takes; two are what everybody takes for SDXL.
    named = vectors if single is None else {concept.placeholder: single}
    if path.suffix == ".safetensors":
        ours = {
            "placeholder": concept.placeholder,
            "category": concept.category,
            "made": dict(concept.made),
        }
        return save_safetensors(named, {METADATA: json.dumps(ours, ensure_ascii=False)})
    if path.suffix == ".bin":
        return _pickled(named)
    if single is None:
        raise ConceptNotUsable(
            f'A1111\'s .pt holds vectors for one encoder, and "{concept.placeholder}" has {len(vectors)};'
            " write .safetensors, which A1111 reads for SDXL"
        )
    made = concept.made
    return _pickled(
        {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": single},
            "name": concept.placeholder,
            "step": made.get("steps", 0),
            "sd_checkpoint": made.get("fingerprint"),
            "sd_checkpoint_name": made.get("model"),
        }
    )


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _owner(width: int) -> str:
    return f"{width} ({FAMILIES[width]})" if width in FAMILIES else str(width)


def _listed(names: Mapping[str, Any]) -> str:
    return " and ".join(names)
