"""One tokenizer and one frozen transformer: text to tokens to embeddings."""

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from t2iedit import digests
from t2iedit.errors import InvalidRequest, ModelNotUsable, SpanTruncated
from t2iedit.spans import Span
from t2iedit.wording import Wording

LONGEST = 100_000
"""Tokens; transformers says astronomically many where a tokenizer's configuration is missing."""


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

    `pooled` names the transformer's output that is the pooled vector, if the denoiser reads one. With `normalise` a
    layer's rows go through the final LayerNorm. `window` is how many tokens it reads at once, if not as many as its
    tokenizer says.
    """

    name: str
    tokenizer: Any
    transformer: nn.Module
    layer: int | None = None
    pooled: str | None = None
    normalise: bool = False
    window: int | None = None
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _known: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Its weights' digest while they are offloaded, and texts while it remembers them."""

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "is_fast", False):
            raise ModelNotUsable(
                f"the tokenizer {type(self.tokenizer).__name__} of the encoder {self.name!r} gives no character"
                " offsets; load the model with fast tokenizers"
            )
        if self.length > LONGEST:
            raise ModelNotUsable(
                f'the tokenizer of the encoder "{self.name}" does not say how many tokens are read at once'
                " (model_max_length in its tokenizer_config.json); fetch or copy the model again"
            )

    @property
    def device(self) -> torch.device:
        """Where it computes, though its weights may wait elsewhere."""
        return execution_device(self.transformer)

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
        offloaded = any(value.is_meta for value in self.transformer.parameters())
        if not offloaded or "weights" not in self._known:
            self._known["weights"] = digests.of_weights(weights(self.transformer).items())
        return self._known["weights"]

    @property
    def length(self) -> int:
        """How many tokens it reads at once."""
        return self.window or self.tokenizer.model_max_length

    @property
    def windowed(self) -> bool:
        """Whether a long prompt can be read in several windows, each between BOS and EOT, as CLIP's can."""
        return self.tokenizer.bos_token_id is not None

    def pieces(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """Each token of the text with its characters, without special tokens, however many there are."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))

    def tokenize_windows(self, text: str | Wording, breaks: tuple[int, ...] = ()) -> Tokens:
        """The whole prompt in as many windows as it needs; a new one begins at each of the typed characters `breaks`."""
        wording = text if isinstance(text, Wording) else Wording.of(text)
        pieces = [(id, wording.origin(a, b)) for id, (a, b) in self.pieces(wording.text)]
        room = self.length - 2
        starts = _window_starts([place for _, place in pieces], breaks, room)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        kinds: list[Kind] = []
        for first, end in zip(starts, [*starts[1:], len(pieces)], strict=True):
            held, free = pieces[first:end], room - (end - first)
            special = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
            ids += [self.tokenizer.bos_token_id, *(id for id, _ in held), special[0]]
            ids += [special[1]] * free
            offsets += [(0, 0), *((a, b) for _, (a, b) in held), *[(0, 0)] * (free + 1)]
            kinds += [Kind.BOS, *[Kind.WORD] * len(held), Kind.EOT, *[Kind.PAD] * free]
        return Tokens(self.name, wording.typed, torch.tensor(ids), tuple(offsets), tuple(kinds))

    def tokenize(self, text: str | Wording) -> Tokens:
        """The prompt in this encoder's window, cut off at its end if need be."""
        texts = self._known.get("texts")
        if texts is None:
            return self._tokenize(text)
        if text not in texts:
            texts[text] = self._tokenize(text)
        return texts[text]

    def _tokenize(self, text: str | Wording) -> Tokens:
        wording = text if isinstance(text, Wording) else Wording.of(text)
        encoded = self.tokenizer(
            wording.text,
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        # The mask ends at the first EOT, whatever id pads and whatever the user typed.
        content = int(encoded.attention_mask.sum())
        length = encoded.input_ids.shape[1]
        # T5 has no BOS.
        bos = (Kind.BOS,) * self.windowed
        words = (Kind.WORD,) * (content - 1 - len(bos))
        return Tokens(
            encoder=self.name,
            text=wording.typed,
            ids=encoded.input_ids[0],
            offsets=tuple(
                wording.origin(a, b) if b > a else (0, 0)
                for a, b in encoded.offset_mapping[0].tolist()
            ),
            kinds=(*bos, *words, Kind.EOT, *(Kind.PAD,) * (length - content)),
        )

    def skipping(self, layers: int) -> "TextEncoder":
        """The same encoder read this many layers earlier, as diffusers' `clip_skip` has it. Raises `InvalidRequest`.

        What was normalised stays normalised. Encoders other than CLIP have no layers to skip and stay as they are.
        """
        if layers == 0 or _final_norm(self.transformer) is None:
            return self
        config: Any = self.transformer.config
        has = config.num_hidden_layers
        last = -1 if self.layer is None else self.layer
        if last - layers < -(has + 1):
            raise InvalidRequest(
                f'clip_skip={layers}: the encoder "{self.name}" has {has} layers; skip fewer'
            )
        return replace(self, layer=last - layers, normalise=self.normalise or self.layer is None)

    def embed(self, tokens: Tokens) -> Float[Tensor, "seq width"]:
        """The transformer's input embeddings, before positions are added."""
        with self.lock:
            table: Any = self.transformer.get_input_embeddings()  # type: ignore[operator]
            # Offloaded as a whole, the table waits on the CPU; in parts, its own hook fetches it.
            place = self.device if table.weight.is_meta else table.weight.device
            return table(tokens.ids.to(place)).to(self.device)

    def encode(
        self, tokens: Tokens, embeds: Float[Tensor, "seq width"] | None = None
    ) -> TextEmbedding:
        """The prompt's embedding, from `embeds` in place of the vocabulary's if given; differentiable in them."""
        texts = self._known.get("texts")
        if texts is None or embeds is not None or torch.is_grad_enabled():
            return self.encode_batch([tokens], [embeds])[0]
        key = self.layer, self.normalise, tuple(tokens.ids.tolist())
        if key not in texts:
            texts[key] = self.encode_batch([tokens])[0]
        pooled = texts[key].pooled
        # Copies, since an edit may do with its own what it likes.
        return TextEmbedding(
            tokens, texts[key].hidden.clone(), None if pooled is None else pooled.clone()
        )

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """While this holds, `tokenize`, and `encode` without gradients, do a text once: many edits look at the same one.

        Nothing may change the weights meanwhile.
        """
        if "texts" in self._known:
            yield
            return
        self._known["texts"] = {}
        try:
            yield
        finally:
            del self._known["texts"]

    def encode_batch(
        self, batch: Sequence[Tokens], embeds: Sequence[Tensor | None] | None = None
    ) -> list[TextEmbedding]:
        """Several prompts in one forward pass; of a prompt of several windows, each is read on its own.

        A pooled vector is that of the first window.
        """
        counts = [len(tokens.ids) // self.length for tokens in batch]
        ids = torch.cat([tokens.ids for tokens in batch]).view(-1, self.length).to(self.device)
        given: list[Tensor | None] = []
        for count, whole in zip(counts, embeds or [None] * len(batch), strict=True):
            given += [None] * count if whole is None else list(whole.chunk(count))
        with self.lock, _input_embeds(self.transformer, given):
            output = self.transformer(ids, output_hidden_states=self.layer is not None)
        hidden = output[0] if self.layer is None else output.hidden_states[self.layer]
        if self.normalise:
            hidden = _final_norm(self.transformer)(hidden)
        pooled = None if self.pooled is None else output[self.pooled]
        embeddings, first = [], 0
        for tokens, count in zip(batch, counts, strict=True):
            rows = hidden[first : first + count].flatten(0, 1)
            embeddings.append(
                TextEmbedding(tokens, rows, None if pooled is None else pooled[first])
            )
            first += count
        return embeddings


def _window_starts(
    offsets: Sequence[tuple[int, int]], breaks: tuple[int, ...], room: int
) -> list[int]:
    """The indices of tokens at which windows begin: after `room` tokens, and at every break."""
    starts, chapter = [0], 0
    for index, (start, _) in enumerate(offsets):
        now = bisect_right(breaks, start)
        if now != chapter or index - starts[-1] == room:
            # A break before the first word begins nothing new.
            starts += [index] if index else []
            chapter = now
    return starts


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


def _final_norm(transformer: nn.Module) -> Any:
    """CLIP's last LayerNorm, None for other transformers."""
    holder = getattr(transformer, "text_model", transformer)
    return getattr(holder, "final_layer_norm", None)


def execution_device(module: nn.Module) -> torch.device:
    """Where a module computes: where accelerate's hooks send it if it is offloaded, else where it is."""
    for part in module.modules():
        # Asked of the module itself, an attribute that is not there takes ten times as long.
        hook = vars(part).get("_hf_hook")
        place = getattr(hook, "execution_device", None)
        if place is not None:
            return torch.device(place)
    return next(module.parameters()).device


def weights(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, the values that are offloaded in parts from where accelerate's hooks keep them."""
    state = dict(module.state_dict())
    if not any(value.is_meta for value in state.values()):
        return state
    for place, part in module.named_modules():
        hook = getattr(part, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            kept: Any = getattr(each, "weights_map", None) or {}
            for name in (*part._parameters, *part._buffers) if len(kept) else ():
                whole = f"{place}.{name}" if place else name
                if whole in state and state[whole].is_meta:
                    state[whole] = kept[name]
    return state
