"""One tokenizer and one frozen transformer: text to tokens to embeddings."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from t2iedit import digests
from t2iedit.errors import ModelNotUsable, SpanTruncated
from t2iedit.spans import Span


class Kind(Enum):
    """What a token is, decided by its position, never by its id (SD 1.x pads with EOT, SD 2.x with "!")."""

    BOS = "bos"
    WORD = "word"
    EOT = "eot"
    PAD = "pad"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt as one encoder reads it; `offsets` are character ranges of `text`, (0, 0) for special tokens."""

    encoder: str
    text: str
    ids: Int[Tensor, " seq"]
    offsets: tuple[tuple[int, int], ...]
    kinds: tuple[Kind, ...]

    @property
    def words(self) -> list[int]:
        """The positions that are neither BOS, EOT nor padding."""
        return self.of(Kind.WORD)

    def of(self, *kinds: Kind) -> list[int]:
        """The positions of these kinds."""
        return [index for index, kind in enumerate(self.kinds) if kind in kinds]

    def indices(self, span: Span) -> list[int]:
        """Every position whose characters overlap the span. Raises `SpanTruncated` if part of it is cut off."""
        if self.text[max(span.start, self.reach) : span.end].strip():
            raise SpanTruncated(
                f'"{self.text[span.start : span.end]}" lies beyond the {len(self.ids)} tokens that the encoder'
                f' "{self.encoder}" reads; move it forward in the prompt, or shorten the prompt'
            )
        return [index for index in self.words if span.overlaps(*self.offsets[index])]

    @property
    def reach(self) -> int:
        """The end of the last character that a token stands for."""
        return max((self.offsets[index][1] for index in self.words), default=0)

    def repeated(self, times: int) -> "Tokens":
        """The same windows, `times` over."""
        return replace(
            self,
            ids=self.ids.repeat(times),
            offsets=self.offsets * times,
            kinds=self.kinds * times,
        )

    @property
    def lost(self) -> str:
        """The end of the prompt that does not fit into the window."""
        return self.text[self.reach :].strip()


@dataclass(frozen=True, slots=True)
class TextEmbedding:
    """What one encoder makes of one prompt; `pooled` is the vector SDXL's second encoder adds."""

    tokens: Tokens
    hidden: Float[Tensor, "seq dim"]
    pooled: Float[Tensor, " proj"] | None = None

    def with_hidden(self, hidden: Float[Tensor, "seq dim"]) -> "TextEmbedding":
        """The same embedding with other rows."""
        return replace(self, hidden=hidden)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "TextEmbedding":
        """The same on another device, in another precision if given."""
        pooled = None if self.pooled is None else self.pooled.to(device, dtype)
        return replace(self, hidden=self.hidden.to(device, dtype), pooled=pooled)


@dataclass(frozen=True, slots=True)
class EncoderMark:
    """What an encoding depends on: digests of the encoder's configuration and weights, its layer, dtype and adapters.

    `adapters` are (name, scale) of the LoRAs that are on.
    """

    name: str
    config: str
    weights: str
    layer: int | None
    dtype: str
    adapters: tuple[tuple[str, float], ...] = ()

    def difference(self, other: "EncoderMark") -> str | None:
        """What keeps an embedding of this encoder from being used where the other one is, as advice, or None."""
        if self.config != other.config:
            return "its architecture differs; encode the prompt again with this model"
        if self.layer != other.layer:
            return f"it read layer {_layer(self.layer)} and not {_layer(other.layer)}; use the same clip_skip"
        if self.dtype != other.dtype:
            return f"it computed in {self.dtype} and not in {other.dtype}; use dtype {self.dtype}, or encode again"
        if self.adapters != other.adapters:
            return f"it had {_adapters(self.adapters)} and not {_adapters(other.adapters)}; load the same LoRAs"
        if self.weights != other.weights:
            return "its weights differ; use the checkpoint of that time, or encode the prompt again with this one"
        return None


def _layer(layer: int | None) -> str:
    return "last" if layer is None else str(layer)


def _adapters(adapters: tuple[tuple[str, float], ...]) -> str:
    return ", ".join(f"LoRA {name}:{scale:g}" for name, scale in adapters) or "no LoRA"


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer and its transformer; `layer` indexes the hidden states, None means the normalised last one.

    `pooled` names the transformer's output that is the pooled vector, if the denoiser reads one.
    """

    name: str
    tokenizer: Any
    transformer: nn.Module
    layer: int | None = None
    pooled: str | None = None
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _known: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "is_fast", False):
            raise ModelNotUsable(
                f"the tokenizer {type(self.tokenizer).__name__} of the encoder {self.name!r} gives no character"
                " offsets; load the model with fast tokenizers"
            )

    @property
    def device(self) -> torch.device:
        return self.transformer.get_input_embeddings().weight.device  # type: ignore[operator]

    @property
    def mark(self) -> EncoderMark:
        """What tells this encoder, as it is now, from others."""
        return EncoderMark(
            name=self.name,
            config=digests.of_json(_architecture(self.transformer)),
            weights=self._weights(),
            layer=self.layer,
            dtype=str(next(self.transformer.parameters()).dtype).removeprefix("torch."),
            adapters=_active_adapters(self.transformer),
        )

    def _weights(self) -> str:
        """The weights' digest; the last known while they are offloaded."""
        values = self.transformer.state_dict()
        if not any(value.is_meta for value in values.values()):
            self._known["weights"] = digests.of_weights(values.items())
        return self._known["weights"]

    def tokenize(self, text: str) -> Tokens:
        """The prompt in this encoder's window, cut off at its end if need be."""
        encoded = self.tokenizer(
            text,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        # The mask ends at the first EOT, whatever id pads and whatever the user typed.
        content = int(encoded.attention_mask.sum())
        length = encoded.input_ids.shape[1]
        words = (Kind.WORD,) * (content - 2)
        return Tokens(
            encoder=self.name,
            text=text,
            ids=encoded.input_ids[0],
            offsets=tuple((a, b) for a, b in encoded.offset_mapping[0].tolist()),
            kinds=(Kind.BOS, *words, Kind.EOT, *(Kind.PAD,) * (length - content)),
        )

    def embed(self, tokens: Tokens) -> Float[Tensor, "seq width"]:
        """The transformer's input embeddings, before positions are added."""
        with self.lock:
            return self.transformer.get_input_embeddings()(tokens.ids.to(self.device))  # type: ignore[operator]

    def encode(
        self, tokens: Tokens, embeds: Float[Tensor, "seq width"] | None = None
    ) -> TextEmbedding:
        """The prompt's embedding, from `embeds` in place of the vocabulary's if given; differentiable in them."""
        return self.encode_batch([tokens], [embeds])[0]

    def encode_batch(
        self, batch: Sequence[Tokens], embeds: Sequence[Tensor | None] | None = None
    ) -> list[TextEmbedding]:
        """Several prompts in one forward pass."""
        ids = torch.stack([tokens.ids for tokens in batch]).to(self.device)
        given = list(embeds) if embeds is not None else [None] * len(batch)
        with self.lock, _input_embeds(self.transformer, given):
            output = self.transformer(ids, output_hidden_states=self.layer is not None)
        hidden = output[0] if self.layer is None else output.hidden_states[self.layer]
        pooled = [None] * len(batch) if self.pooled is None else output[self.pooled]
        return [TextEmbedding(*parts) for parts in zip(batch, hidden, pooled, strict=True)]


@contextmanager
def _input_embeds(transformer: nn.Module, given: Sequence[Tensor | None]) -> Iterator[None]:
    """While this holds, the given rows of a batch replace what the vocabulary would give.

    A hook, since CLIP's `forward` takes no `inputs_embeds`.
    """
    if all(embeds is None for embeds in given):
        yield
        return

    def replace_rows(module: nn.Module, args: object, output: Tensor) -> Tensor:
        rows = zip(output, given, strict=True)
        return torch.stack([row if embeds is None else embeds for row, embeds in rows])

    handle = transformer.get_input_embeddings().register_forward_hook(replace_rows)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


def _architecture(transformer: nn.Module) -> dict[str, Any]:
    """The configuration's values that shape what the transformer computes."""
    config = getattr(transformer, "config", None)
    values = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
    passing = {"architectures", "dtype", "torch_dtype", "transformers_version", "return_dict"}
    kept = {key: value for key, value in values.items() if key not in passing and key[0] != "_"}
    return {"class": type(transformer).__name__, **kept}


def _active_adapters(transformer: nn.Module) -> tuple[tuple[str, float], ...]:
    """The LoRAs in force, by peft's own bookkeeping in each adapted layer."""
    scales: dict[str, float] = {}
    for module in transformer.modules():
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and not getattr(module, "disable_adapters", False):
            active = getattr(module, "active_adapters", ())
            scales |= {name: float(scaling[name]) for name in active if name in scaling}
    return tuple(sorted(scales.items()))
