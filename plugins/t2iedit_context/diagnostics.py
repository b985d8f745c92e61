"""What a concept is like beside the words of its encoder."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from t2iedit import TextEncoder, Wording
from t2iedit_context.embeddings import vocabulary
from t2iedit_context.placing import placed, rows_of, rows_where, stand_in, worded
from t2iedit_context.regularisation import aligned_contexts

NEAREST = 5
SAMPLED = 20
"""Prompts that a mean similarity is taken over, about."""


@torch.no_grad()
def described(encoder: TextEncoder, vectors: Tensor) -> dict[str, Any]:
    """The vectors' norms, the vocabulary's (its 5th, 50th and 95th per cent), and the nearest words of each by cosine."""
    words = vocabulary(encoder).float()
    own = vectors.to(words)
    near = (normalize(own, dim=1) @ normalize(words, dim=1).T).topk(NEAREST, dim=1)
    low, middle, high = torch.quantile(
        words.norm(dim=1)[:: max(1, len(words) // 10_000)],
        torch.tensor([0.05, 0.5, 0.95], device=words.device),
    ).tolist()
    return {
        "norm": [round(value, 4) for value in own.norm(dim=1).tolist()],
        "vocabulary norms": [round(low, 4), round(middle, 4), round(high, 4)],
        "nearest words": [
            {_word(encoder, int(i)): round(float(c), 3) for i, c in zip(ids, cosines, strict=True)}
            for ids, cosines in zip(near.indices, near.values, strict=True)
        ],
    }


@torch.no_grad()
def context_similarity(
    encoder: TextEncoder,
    prompt: Wording,
    placeholder: str,
    vectors: Tensor,
    category: str,
    among: Sequence[str] = (),
) -> float:
    """The mean cosine of the context's rows with the concept and with its category (CoRe, figure 2).

    `prompt` holds the placeholder, which is one `among` others.
    """
    words = " ".join([stand_in(category, [encoder])] * len(vectors))
    tokens = encoder.tokenize(worded(prompt, placeholder, words))
    others = encoder.tokenize(worded(prompt, placeholder, category))
    embeds = placed(encoder.embed(tokens), tokens, placeholder, vectors, among)
    with_concept, with_category = encoder.encode_batch([tokens, others], [embeds, None])
    rows, other_rows = aligned_contexts(
        tokens,
        sum(rows_of(tokens, placeholder, len(vectors), among), []),
        others,
        sum(rows_where(others, placeholder, among), []),
    )
    cosines = cosine_similarity(
        with_concept.hidden[rows].float(),
        with_category.hidden[other_rows].float(),
        dim=1,
    )
    return float(cosines.mean())


def mean_similarity(
    encoder: TextEncoder,
    prompts: Sequence[str],
    placeholder: str,
    vectors: Tensor,
    category: str,
) -> float:
    """The mean of `context_similarity` over at most a few of the prompts, evenly chosen."""
    chosen = prompts[:: max(1, len(prompts) // SAMPLED)]
    found = [
        context_similarity(encoder, Wording.of(prompt), placeholder, vectors, category)
        for prompt in chosen
    ]
    return round(sum(found) / len(found), 4)


def _word(encoder: TextEncoder, token: int) -> str:
    return str(encoder.tokenizer.convert_ids_to_tokens(token)).removesuffix("</w>")
