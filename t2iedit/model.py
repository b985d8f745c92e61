"""A checkpoint behind few verbs: its encoders, what its pipeline wants to be told, what has been patched."""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from t2iedit import digests
from t2iedit.conditioning import Conditioning, joined
from t2iedit.errors import InvalidRequest
from t2iedit.joining import JOINS
from t2iedit.text import EncoderMark, TextEncoder, execution_device, weights

Undo = Callable[[], None]
Key = tuple[str, str]
"""An edit's name and its options as canonical JSON."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the model is run with unless asked otherwise; `size` is (width, height) in pixels."""

    steps: int
    guidance_scale: float
    size: tuple[int, int]


class Model(ABC):
    """A diffusers pipeline, its text encoders, and one lock around whatever hooks or patches it."""

    family: ClassVar[str]
    timesteps: ClassVar[float] = 1.0
    """What the denoiser's timestep is multiplied by to be the scheduler's."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        encoders: tuple[TextEncoder, ...],
        defaults: Defaults,
        *,
        zero_negative: bool = False,
    ) -> None:
        self.pipeline: Any = pipeline
        self.encoders = encoders
        self.defaults = defaults
        self.zero_negative = zero_negative
        self.name = ""
        self.lock = threading.RLock()
        self._patches: list[tuple[Key, Undo | None]] = []
        freeze(pipeline)
        self.fingerprint = fingerprint(pipeline)

    @property
    def denoiser(self) -> nn.Module:
        parts = self.pipeline.components
        return parts["unet"] if "unet" in parts else parts["transformer"]

    @property
    def dtype(self) -> torch.dtype:
        denoiser: Any = self.denoiser
        return denoiser.dtype

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes."""
        return execution_device(self.denoiser)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a denoiser that a plugin opened has to say of how it runs here."""
        return tuple(getattr(self.denoiser, "notes", ()))

    @property
    def memory_format(self) -> str:
        """`channels_last` or `contiguous`, read off the denoiser's first convolution that has plain weights."""
        parameters = self.denoiser.parameters()
        weight = next((p for p in parameters if p.ndim == 4), torch.empty(0))
        last = weight.is_contiguous(memory_format=torch.channels_last)
        return "channels_last" if last and not weight.is_contiguous() else "contiguous"

    def encoder(self, name: str) -> TextEncoder:
        """The encoder of this name. Raises `InvalidRequest` with the names there are."""
        for encoder in self.encoders:
            if encoder.name == name:
                return encoder
        names = ", ".join(encoder.name for encoder in self.encoders)
        raise InvalidRequest(f'this model has no encoder "{name}"; it has {names}')

    def inputs(self, conditioning: Conditioning) -> dict[str, Tensor]:
        """The conditioning under the names of the pipeline's own call, batch axis first."""
        return {
            name: value[None] for name, value in joined(JOINS[self.family], conditioning).items()
        }

    @property
    def marks(self) -> tuple[EncoderMark, ...]:
        """What tells the encoders, as they are now, from others."""
        return tuple(encoder.mark for encoder in self.encoders)

    @abstractmethod
    def denoiser_inputs(self, conditioning: Conditioning, batch: int) -> dict[str, Any]:
        """The same as the denoiser's keyword arguments, for a batch that holds both guidance halves if any."""

    def guided(self, guidance_scale: float) -> bool:
        """Whether the pipeline runs a negative half at this scale, by diffusers' own rule."""
        config: Any = self.denoiser.config
        return guidance_scale > 1 and getattr(config, "time_cond_proj_dim", None) is None

    @property
    def size_step(self) -> int:
        """What both sides of a picture must be a multiple of, in pixels."""
        return math.lcm(8, self.pipeline.vae_scale_factor * getattr(self.pipeline, "patch_size", 1))

    @contextmanager
    def skipping(self, layers: int | None) -> Iterator[None]:
        """While this holds, the encoders are read this many layers earlier. Raises `InvalidRequest`."""
        with self.lock:
            own = self.encoders
            self.encoders = tuple(encoder.skipping(layers or 0) for encoder in own)
            try:
                yield
            finally:
                self.encoders = own

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises `InvalidRequest` if the model cannot make pictures of this width and height."""
        step = self.size_step
        for side in size:
            if side < step or side % step:
                nearest = max(step, round(side / step) * step)
                raise InvalidRequest(
                    f"this model cannot make pictures of {size[0]}x{size[1]} pixels: both sides must be"
                    f" multiples of {step}, for instance {nearest} instead of {side}"
                )

    @property
    def patched(self) -> tuple[Key, ...]:
        """The patches that are on, in their order."""
        return tuple(key for key, _ in self._patches)

    def patch(self, wanted: Sequence[tuple[Key, Callable[["Model"], Undo | None]]]) -> None:
        """Leave exactly the wanted patches on, in this order.

        Those already on stay; the rest are undone in reverse, down to the first that differs. Raises what a patch
        raises; those before it are on, and the next call undoes them.
        """
        with self.lock:
            kept = _shared_beginning(self.patched, [key for key, _ in wanted])
            while len(self._patches) > kept:
                _, undo = self._patches.pop()
                if undo is not None:
                    undo()
            for key, apply in wanted[kept:]:
                self._patches.append((key, apply(self)))


def freeze(pipeline: DiffusionPipeline) -> None:
    """Evaluation mode and no gradients, in every module."""
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval().requires_grad_(False)


def fingerprint(pipeline: DiffusionPipeline) -> str:
    """Twelve hexadecimal digits that tell apart checkpoints: names, shapes, dtypes and some values of all weights."""
    return digests.of_weights(
        (f"{name}.{key}", value)
        for name, component in sorted(pipeline.components.items())
        if isinstance(component, nn.Module)
        for key, value in weights(component).items()
    )


def _shared_beginning(first: Sequence[Key], second: Sequence[Key]) -> int:
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length
