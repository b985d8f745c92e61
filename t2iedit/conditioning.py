"""What the denoiser is told: both prompts through every encoder, how that changes as it works, and where it is from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2iedit import blending, digests
from t2iedit.errors import ConditioningNotUsable, InvalidRequest
from t2iedit.joining import JOINS
from t2iedit.text import EncoderMark, TextEmbedding

Embeddings = tuple[TextEmbedding, ...]
"""One prompt, one `TextEmbedding` per encoder, in the model's order."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The family and the encoders that made a conditioning, and what was done since, step by step, as JSON values."""

    family: str
    encoders: tuple[EncoderMark, ...]
    history: tuple[dict[str, Any], ...] = ()

    def then(self, **step: Any) -> "Origin":
        """The same with one more step."""
        return replace(self, history=(*self.history, step))


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The prompt's and the negative prompt's embeddings; `negative` is None without guidance.

    `changes` are (fraction of the denoising, conditioning from there on), in rising order; theirs are empty. `origin`
    is None for one put together by hand.
    """

    prompt: Embeddings
    negative: Embeddings | None
    changes: tuple[tuple[float, "Conditioning"], ...] = ()
    origin: Origin | None = None

    @property
    def text(self) -> str:
        """The prompt, as the first encoder read it."""
        return self.prompt[0].tokens.text

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits over all embeddings and changes: equal ones paint the same."""
        return digests.of_tensors(self.tensors())

    def at(self, fraction: float) -> "Conditioning":
        """What holds at this fraction of the denoising, 0 at its first step."""
        holding = self
        for start, later in self.changes:
            if fraction >= start:
                holding = later
        return holding

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every embedding by name, `prompt/clip/hidden` and so on, those of changes under their fraction."""
        for side, embeddings in (("prompt", self.prompt), ("negative", self.negative or ())):
            for embedding in embeddings:
                name = f"{side}/{embedding.tokens.encoder}"
                yield f"{name}/hidden", embedding.hidden
                if embedding.pooled is not None:
                    yield f"{name}/pooled", embedding.pooled
        for start, later in self.changes:
            yield from ((f"{start!r}/{name}", tensor) for name, tensor in later.tensors())

    def map(self, change: Callable[[TextEmbedding], TextEmbedding]) -> "Conditioning":
        """The same with every embedding changed: both sides, at all times."""
        return replace(
            self,
            prompt=tuple(map(change, self.prompt)),
            negative=None if self.negative is None else tuple(map(change, self.negative)),
            changes=tuple((start, later.map(change)) for start, later in self.changes),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Conditioning":
        """The same on another device; with `dtype` also in another precision, which its origin records."""
        moved = self.map(lambda embedding: embedding.to(device, dtype))
        if dtype is None or self.origin is None:
            return moved
        name = str(dtype).removeprefix("torch.")
        marks = tuple(replace(mark, dtype=name) for mark in self.origin.encoders)
        return replace(moved, origin=replace(self.origin, encoders=marks).then(converted=name))

    def blend(
        self, other: "Conditioning", weight: float = 0.5, path: str = "lerp"
    ) -> "Conditioning":
        """`weight` of the way to another conditioning of the same encoders: `lerp` straight, `slerp` along the arc.

        Per encoder and row, pooled vectors too, on both sides and at all times. Prompts of different numbers of
        windows are repeated whole to a common length, which cross-attention does not notice. Tokens are those of this
        one, and so are phrases that later edits name. Raises `InvalidRequest` and `ConditioningNotUsable`.
        """
        if not 0 <= weight <= 1:
            raise InvalidRequest(f"a blend's weight is a number from 0 to 1, not {weight:g}")
        if path not in ("lerp", "slerp"):
            raise InvalidRequest(f'a blend\'s path is "lerp" or "slerp", not "{path}"')
        _check_blendable(self, other)
        times = sorted({0.0} | {start for c in (self, other) for start, _ in c.changes})
        held = [_blended(self.at(time), other.at(time), weight, path) for time in times]
        origin = None
        if self.origin is not None and other.origin is not None:
            step = {"weight": weight, "path": path, "with": list(other.origin.history)}
            origin = self.origin.then(blended=step)
        return replace(held[0], changes=tuple(zip(times[1:], held[1:], strict=True)), origin=origin)

    def edit(self, model: Any, *edits: Any, **values: Any) -> "Conditioning":
        """The same with edits on top, by a model with the encoders that made it; `values` are a request's, `loras` say.

        Raises `ConditioningNotUsable`, and what the edits raise.
        """
        from t2iedit.pipeline import encode

        # Of the guidance only matters whether there is a negative half, and that stays.
        guidance = 1.0 if self.negative is None else 2.0
        return encode(model, self, edits=edits, **({"guidance_scale": guidance} | values))

    def for_diffusers(self, batch: int = 1) -> dict[str, Any]:
        """The arguments of a plain diffusers pipeline: `pipe(**conditioning.for_diffusers(), ...)`.

        `prompt_embeds` and its kin (batch, seq, dim), the same prompt `batch` times; a conditioning that changes also
        brings the `callback_on_step_end` that tells the pipeline. Raises `ConditioningNotUsable` for a conditioning of
        unknown family, where `model.inputs(conditioning)` serves, and for changes that the family's pipelines cannot be told.
        """
        from t2iedit.steps import telling

        named = {name: _copies(tensor, batch) for name, tensor in self.joined().items()}
        return named | telling(self)

    def joined(self) -> dict[str, Tensor]:
        """The first moment's embeddings under the pipeline's names, without a batch axis."""
        join = JOINS.get(self.origin.family) if self.origin else None
        if join is None:
            family = (
                f'of the family "{self.origin.family}"' if self.origin else "put together by hand"
            )
            raise ConditioningNotUsable(
                f"this conditioning is {family}, whose arguments t2iedit does not know; use model.inputs(conditioning)"
            )
        return joined(join, self)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all (docs/conditioning-format.md). Raises `OutputNotWritable`."""
        from t2iedit.conditioning_files import save

        return save(self, path)

    @staticmethod
    def load(path: str | Path) -> "Conditioning":
        """What `save` wrote, on the CPU. Raises `ConditioningNotUsable`."""
        from t2iedit.conditioning_files import load_conditioning

        return load_conditioning(path)


def joined(join: Any, conditioning: Conditioning) -> dict[str, Tensor]:
    """Both sides under the pipeline's names, the negative ones with `negative_` before them.

    Pipelines want both sides equally long, so a shorter one is repeated whole.
    """
    prompt = join(conditioning.prompt)
    if conditioning.negative is None:
        return prompt
    negative = join(conditioning.negative)
    sides = prompt, negative
    length = blending.common_length(*(len(side["prompt_embeds"]) for side in sides))
    for side in sides:
        side["prompt_embeds"] = blending.repeated(side["prompt_embeds"], length)
    return prompt | {f"negative_{name}": value for name, value in negative.items()}


def check_same_encoders(
    made: tuple[EncoderMark, ...], here: tuple[EncoderMark, ...], what: str, where: str
) -> None:
    """Raises `ConditioningNotUsable`, in one sentence on the first difference, unless the encoders are the same."""
    if [mark.name for mark in made] != [mark.name for mark in here]:
        names = " + ".join(mark.name for mark in made), " + ".join(mark.name for mark in here)
        raise ConditioningNotUsable(
            f"{what} was made by the encoders {names[0]}, and {where} has {names[1]}; encode the prompt again there"
        )
    for mark, other in zip(made, here, strict=True):
        difference = mark.difference(other)
        if difference is not None:
            raise ConditioningNotUsable(
                f'{what} was made by another encoder "{mark.name}" than that of {where}: {difference}'
            )


def _check_blendable(first: Conditioning, second: Conditioning) -> None:
    if first.origin is not None and second.origin is not None:
        check_same_encoders(
            second.origin.encoders, first.origin.encoders, "the second conditioning", "the first"
        )
    shapes = [[tuple(e.hidden.shape[1:]) for e in c.prompt] for c in (first, second)]
    if shapes[0] != shapes[1]:
        raise ConditioningNotUsable(
            f"conditionings of the widths {shapes[0]} and {shapes[1]} cannot be blended; encode both with one model"
        )


def _blended(first: Conditioning, second: Conditioning, weight: float, path: str) -> Conditioning:
    def side(a: Embeddings | None, b: Embeddings | None) -> Embeddings | None:
        if a is None or b is None:
            return a if b is None else b
        pairs = zip(a, b, strict=True)
        return tuple(_between(one, other, weight, path) for one, other in pairs)

    prompt = side(first.prompt, second.prompt)
    assert prompt is not None
    return Conditioning(prompt, side(first.negative, second.negative))


def _between(one: TextEmbedding, other: TextEmbedding, weight: float, path: str) -> TextEmbedding:
    length = blending.common_length(len(one.hidden), len(other.hidden))
    rows = blending.repeated(one.hidden, length), blending.repeated(other.hidden, length)
    pooled = None
    if one.pooled is not None and other.pooled is not None:
        pooled = blending.between(one.pooled, other.pooled, weight, path)
    hidden = blending.between(*rows, weight, path)
    return TextEmbedding(one.tokens.repeated(length // len(one.hidden)), hidden, pooled)


def _copies(tensor: Tensor, batch: int) -> Tensor:
    return tensor[None].repeat(batch, *(1 for _ in tensor.shape))
