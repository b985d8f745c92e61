"""What an edit did to a prompt, as numbers: its tokens, how alike they are before and after, where a word is looked for."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from t2iedit.attention import Probabilities, Site, opened
from t2iedit.edit import Run
from t2iedit.encoding import condition
from t2iedit.errors import InvalidRequest
from t2iedit.model import Model
from t2iedit.pipeline import OnStep, generate, start
from t2iedit.request import Request
from t2iedit.text import Kind, TextEmbedding, TextEncoder, Tokens

NEAREST = 5
"""Words of the vocabulary that are named for a token."""
CHANGED = 1e-6
"""The relative change of a row that counts as an edit's work rather than rounding."""


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """One token of the prompt. Norms are of its row in the encoder's output; `change` is relative to the first.

    `nearest` are the vocabulary's other pieces whose input embeddings have the highest cosine with this token's, after
    edits of the input embeddings.
    """

    position: int
    piece: str
    id: int
    kind: str
    norm_before: float
    norm_after: float
    change: float
    nearest: tuple[tuple[str, float], ...]

    @property
    def edited(self) -> bool:
        return self.change > CHANGED


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """What one encoder makes of the prompt; the matrices are cosines between the rows of `tokens`."""

    encoder: str
    tokens: tuple[TokenFacts, ...]
    before: Float[Tensor, "token token"]
    after: Float[Tensor, "token token"]

    @property
    def difference(self) -> Float[Tensor, "token token"]:
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class Inspection:
    """A prompt as each encoder reads it, without and with the edits of a request, and what the edits reported."""

    prompt: str
    encoders: tuple[EncoderFacts, ...]
    report: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "prompt": self.prompt,
            "encoders": [_encoder_to_json(facts) for facts in self.encoders],
            "report": self.report,
        }


@torch.no_grad()
def inspect(model: Model, request: Request) -> Inspection:
    """The prompt without and with the request's edits, as they are at the denoising's beginning.

    Tokens are those up to and with EOT; a step window that begins later does not show. Raises what `generate` raises
    before it denoises.
    """
    plain, edited = start(model, request.model_copy(update={"edits": ()})), start(model, request)
    with model.lock:
        (before,) = condition([plain])
        (after,) = condition([edited])
        found = [
            _encoder_facts(model.encoder(one.tokens.encoder), one, other, edited)
            for one, other in zip(before.prompt, after.prompt, strict=True)
        ]
    return Inspection(request.prompt, tuple(found), edited.report)


@torch.no_grad()
def attention_map(
    model: Model, request: Request, phrase: str, *, on_step: OnStep | None = None
) -> tuple[Image, Float[Tensor, "height width"]]:
    """The image of the request's one seed, and where its cross-attention looked at the phrase, from 0 to 1.

    The mean over steps, heads and layers of the probability of the phrase's tokens (summed over them), each layer's map
    brought to the size of the largest, before edits of the attention itself; divided by its maximum. Averaging over all
    layers and steps is DAAM's choice (arXiv 2210.04885).

    Raises `SpanNotFound`, `InvalidRequest` for several seeds, `EditNotSupported` if the attention cannot be opened.
    """
    if len(request.seeds) != 1:
        raise InvalidRequest(
            f"an attention map is of one image; {len(request.seeds)} seeds were given"
        )
    run = start(model, request)
    span = run.span(phrase)
    (conditioning,) = condition([run])
    columns = conditioning.prompt[0].tokens.indices(span)
    gathered: list[Tensor] = []

    def look(site: Site) -> Callable[[Probabilities], Probabilities]:
        def keep(probs: Probabilities) -> Probabilities:
            heat = probs[0, :, :, columns].sum(dim=-1).mean(dim=0)
            gathered.append(heat.unflatten(0, (site.height, site.width)).cpu())
            return probs

        return keep

    scheduler = model.pipeline.scheduler
    with model.lock, opened(model.denoiser, scheduler, look, guided=run.guided):
        image = generate(model, request, on_step=on_step).image
    return image, mean_map(gathered)


def mean_map(maps: list[Float[Tensor, "_ _"]]) -> Float[Tensor, "height width"]:
    """The maps at the size of the largest, averaged, divided by their maximum."""
    largest = max((tuple(one.shape) for one in maps), key=lambda size: size[0] * size[1])
    enlarged = [
        torch.nn.functional.interpolate(one[None, None], size=largest, mode="bilinear")[0, 0]
        for one in maps
    ]
    mean = torch.stack(enlarged).mean(dim=0)
    return mean / mean.max().clamp(min=1e-12)


def similarities(rows: Float[Tensor, "token dim"]) -> Float[Tensor, "token token"]:
    """Cosines between the rows; a row of zeros is like nothing, itself included."""
    unit = torch.nn.functional.normalize(rows.float(), dim=-1)
    return unit @ unit.T


def nearest_pieces(
    encoder: TextEncoder, embeds: Float[Tensor, "token width"], without: list[int]
) -> list[tuple[tuple[str, float], ...]]:
    """The vocabulary's pieces most like each input embedding, best first, its own id left out."""
    table = encoder.transformer.get_input_embeddings().weight  # type: ignore[operator]
    unit = torch.nn.functional.normalize(table.float(), dim=-1)
    cosines = torch.nn.functional.normalize(embeds.float(), dim=-1) @ unit.T
    cosines[torch.arange(len(without)), torch.tensor(without)] = -2.0
    best = cosines.topk(min(NEAREST, len(table) - 1), dim=-1)
    return [
        tuple(
            (_piece(encoder, index), round(value, 4))
            for index, value in zip(ids, values, strict=True)
        )
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _encoder_facts(
    encoder: TextEncoder, before: TextEmbedding, after: TextEmbedding, run: Run
) -> EncoderFacts:
    tokens = after.tokens
    if not torch.equal(before.tokens.ids, tokens.ids):
        # Edits put other words in the prompt; the rest is compared on those.
        before = encoder.encode(tokens)
    shown = tokens.of(Kind.BOS, Kind.WORD, Kind.EOT)
    ids = [int(tokens.ids[position]) for position in shown]
    near = nearest_pieces(encoder, _input_embeds(encoder, tokens, run)[shown], ids)
    first, second = before.hidden[shown].float().cpu(), after.hidden[shown].float().cpu()
    changes = (second - first).norm(dim=-1) / first.norm(dim=-1).clamp(min=1e-12)
    facts = tuple(
        TokenFacts(
            position,
            _piece(encoder, ids[row]),
            ids[row],
            tokens.kinds[position].value,
            first[row].norm().item(),
            second[row].norm().item(),
            changes[row].item(),
            near[row],
        )
        for row, position in enumerate(shown)
    )
    return EncoderFacts(encoder.name, facts, similarities(first), similarities(second))


def _input_embeds(encoder: TextEncoder, tokens: Tokens, run: Run) -> Tensor:
    """The transformer's input after the edits of that stage."""
    embeds = encoder.embed(tokens)
    for edit in run.doing("edit_token_embeds", 0.0):
        with torch.enable_grad():
            embeds = edit.edit_token_embeds(embeds, tokens, run).detach()
    return embeds


def _piece(encoder: TextEncoder, index: int) -> str:
    return str(encoder.tokenizer.convert_ids_to_tokens(index)).removesuffix("</w>")


def _encoder_to_json(facts: EncoderFacts) -> dict[str, Any]:
    def rounded(matrix: Tensor) -> list[list[float]]:
        return [[round(value, 4) for value in row] for row in matrix.tolist()]

    return {
        "encoder": facts.encoder,
        "tokens": [asdict(token) | {"edited": token.edited} for token in facts.tokens],
        "similarities": {
            "before": rounded(facts.before),
            "after": rounded(facts.after),
            "difference": rounded(facts.difference),
        },
    }
