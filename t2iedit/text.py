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

from t2iedit.errors import ModelNotUsable, SpanTruncated
from t2iedit.spans import Span
from t2iedit.wording import Wording


class Kind(Enum):
    """What a token is, decided by its position, never by its id (SD 1.x pads with EOT, SD 2.x with "!")."""

    BOS = "bos"
    WORD = "word"
    EOT = "eot"
    PAD = "pad"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt as one encoder reads it; `offsets` are character ranges of `text`, (0, 0) for special tokens.

    `text` is what was typed, whatever an edit has put in its place for the encoder.
    """

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

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "is_fast", False):
            raise ModelNotUsable(
                f"the tokenizer {type(self.tokenizer).__name__} of the encoder {self.name!r} gives no character"
                " offsets; load the model with fast tokenizers"
            )

    @property
    def device(self) -> torch.device:
        return self.transformer.get_input_embeddings().weight.device  # type: ignore[operator]

    def tokenize(self, text: str | Wording) -> Tokens:
        """The prompt in this encoder's window, cut off at its end if need be."""
        wording = text if isinstance(text, Wording) else Wording.of(text)
        encoded = self.tokenizer(
            wording.text,
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
            text=wording.typed,
            ids=encoded.input_ids[0],
            offsets=tuple(
                wording.origin(a, b) if b > a else (0, 0)
                for a, b in encoded.offset_mapping[0].tolist()
            ),
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
