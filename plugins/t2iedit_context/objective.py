"""What a concept's vectors are judged by on a model: the noise they predict, and what they do to their context."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn.functional import mse_loss

from t2iedit import Conditioning, Model, TextEmbedding, Tokens, Wording
from t2iedit_context.placing import (
    Vectors,
    placed,
    rows_of,
    rows_where,
    stand_in,
    worded,
)
from t2iedit_context.probe import Means, Probe
from t2iedit_context.regularisation import (
    Form,
    aligned_contexts,
    attention_regularisation,
    embedding_regularisation,
)


@dataclass(frozen=True, slots=True)
class Weights:
    """lambda_emb and lambda_attn, CoRe's own by default, and each loss's form."""

    embedding: float = 1.5e-4
    attention: float = 0.05
    embedding_form: Form = "paper"
    attention_form: Form = "paper"


@dataclass(frozen=True, slots=True)
class Part:
    """A concept as a prompt has it: `category` is the word it is compared with, `count` its number of vectors."""

    placeholder: str
    category: str
    count: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with concepts, as each encoder reads it, and the same with their categories, encoded once for all.

    `contexts` are, for each form of the losses and each encoder, the rows around the concepts in the one prompt and in
    the other.
    """

    tokens: tuple[Tokens, ...]
    category: tuple[TextEmbedding, ...]
    contexts: Mapping[Form, tuple[tuple[list[int], list[int]], ...]]


@dataclass(frozen=True, slots=True)
class Noised:
    """Noisy latents at their times, and what the denoiser should say of them."""

    latents: Tensor
    times: Tensor
    target: Tensor

    def first(self, count: int) -> "Noised":
        return Noised(self.latents[:count], self.times[:count], self.target[:count])


def make_pair(model: Model, prompt: str, parts: Sequence[Part]) -> Pair:
    """The prompt, in which the parts' placeholders stand, as a pair.

    The category stands there once, however many vectors a concept has, and the contexts are aligned from both ends;
    a stand-in holds the places of the vectors.
    """
    with_concepts = with_categories = Wording.of(prompt)
    for part in sorted(parts, key=lambda part: -len(part.placeholder)):
        word = stand_in(part.category, model.encoders)
        with_concepts = worded(with_concepts, part.placeholder, " ".join([word] * part.count))
        with_categories = worded(with_categories, part.placeholder, part.category)
    tokens = tuple(encoder.tokenize(with_concepts) for encoder in model.encoders)
    others = tuple(encoder.tokenize(with_categories) for encoder in model.encoders)
    # The authors' program keeps the BOS row.
    contexts: dict[Form, Any] = {
        "paper": _all_contexts(tokens, others, parts, bos=False),
        "code": _all_contexts(tokens, others, parts, bos=True),
    }
    with torch.no_grad():
        category = encoded(model, others, {})
    return Pair(tokens, category, contexts)


def _all_contexts(
    tokens: Sequence[Tokens], others: Sequence[Tokens], parts: Sequence[Part], *, bos: bool
) -> tuple[tuple[list[int], list[int]], ...]:
    return tuple(
        _contexts(read, other, parts, bos=bos) for read, other in zip(tokens, others, strict=True)
    )


def _contexts(
    tokens: Tokens, others: Tokens, parts: Sequence[Part], *, bos: bool
) -> tuple[list[int], list[int]]:
    names = [part.placeholder for part in parts]
    own = [
        r for p in parts for rows in rows_of(tokens, p.placeholder, p.count, names) for r in rows
    ]
    other = [r for p in parts for rows in rows_where(others, p.placeholder, names) for r in rows]
    return aligned_contexts(tokens, own, others, other, bos=bos)


def encoded(
    model: Model, tokens: Sequence[Tokens], concepts: Mapping[str, Vectors]
) -> tuple[TextEmbedding, ...]:
    """The prompt by every encoder, each placeholder's vectors in its rows; differentiable in them."""
    names = list(concepts)
    embeddings = []
    for encoder, read in zip(model.encoders, tokens, strict=True):
        embeds = encoder.embed(read)
        for placeholder, vectors in concepts.items():
            embeds = placed(embeds, read, placeholder, vectors[encoder.name], names)
        embeddings.append(encoder.encode(read, embeds))
    return tuple(embeddings)


def noise_schedule(model: Model) -> DDPMScheduler:
    """The noise the model was trained with, from the configuration of whatever scheduler it has."""
    schedule: Any = DDPMScheduler.from_config(model.pipeline.scheduler.config)
    return schedule


def noised(schedule: DDPMScheduler, latents: Tensor, noise: Tensor, times: Tensor) -> Noised:
    """The latents with noise at these times; the target is noise, velocity or the latents, as the model predicts."""
    at: Any = times
    target = {
        "epsilon": lambda: noise,
        "sample": lambda: latents,
        "v_prediction": lambda: schedule.get_velocity(latents, noise, at),
    }[schedule.config["prediction_type"]]()
    return Noised(schedule.add_noise(latents, noise, at), times, target)


def predicted(model: Model, embeddings: tuple[TextEmbedding, ...], noisy: Noised) -> Tensor:
    """What the denoiser says of the noisy latents under this prompt."""
    batch = len(noisy.latents)
    told = model.denoiser_inputs(Conditioning(embeddings, None), batch)
    if "added_cond_kwargs" in told:
        told["added_cond_kwargs"] |= {"time_ids": _time_ids(model, noisy.latents)}
    return model.denoiser(noisy.latents.to(model.dtype), noisy.times, **told).sample


def _time_ids(model: Model, latents: Tensor) -> Tensor:
    """SDXL is told the picture's size, that nothing was cropped off, and the size again."""
    height, width = (side * model.pipeline.vae_scale_factor for side in latents.shape[-2:])
    row: list[Any] = [height, width, 0, 0, height, width]
    return torch.tensor([row] * len(latents), device=latents.device, dtype=model.dtype)


def diffusion_loss(model: Model, embeddings: tuple[TextEmbedding, ...], noisy: Noised) -> Tensor:
    """L_diff: the mean squared error of the prediction."""
    return mse_loss(predicted(model, embeddings, noisy).float(), noisy.target.float())


def context_losses(
    model: Model,
    pair: Pair,
    concepts: Mapping[str, Vectors],
    noisy: Noised,
    probe: Probe | None,
    weights: Weights,
    precision: AbstractContextManager,
) -> dict[str, Tensor]:
    """CER and CAR of one prompt, weighted; CAR only with a probe, on these noisy latents.

    Of several encoders the mean of their CER is taken, which is our extension to SDXL. The category's side needs no
    graph, since nothing in it depends on the concept.
    """
    with_concepts = encoded(model, pair.tokens, concepts)
    losses = {}
    if weights.embedding:
        terms = [
            embedding_regularisation(
                mine.hidden[rows], theirs.hidden[others], weights.embedding_form
            )
            for mine, theirs, (rows, others) in zip(
                with_concepts, pair.category, pair.contexts[weights.embedding_form], strict=True
            )
        ]
        losses["embedding"] = weights.embedding * torch.stack(terms).mean()
    if weights.attention and probe is not None:
        rows, others = pair.contexts[weights.attention_form][0]
        with precision:
            with torch.no_grad():
                category = _attended(model, pair.category, noisy, probe)
            own = _attended(model, with_concepts, noisy, probe)
        losses["attention"] = weights.attention * attention_regularisation(
            own.at(rows), category.at(others), own.sizes, weights.attention_form
        )
    return losses


def accumulate(loss: Tensor, leaves: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Add the loss's gradient to each leaf's; in float16 it is scaled on its way, so that small ones do not vanish."""
    if not loss.requires_grad:
        return
    scale = 2.0**16 if dtype == torch.float16 else 1.0
    found = torch.autograd.grad(loss * scale, leaves, allow_unused=True)
    for leaf, gradient in zip(leaves, found, strict=True):
        if gradient is not None:
            own = gradient.to(leaf.dtype) / scale
            leaf.grad = own if leaf.grad is None else leaf.grad + own


def _attended(
    model: Model, embeddings: tuple[TextEmbedding, ...], noisy: Noised, probe: Probe
) -> Means:
    with probe.reading() as means:
        predicted(model, embeddings, noisy)
    return means
