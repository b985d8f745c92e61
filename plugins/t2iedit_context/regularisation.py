"""CoRe's mathematics (arXiv 2408.15914): how far a concept moves its context, in embeddings and in attention.

Every loss comes in two forms: "paper" is the paper's equation, "code" what the authors' program computes, which differs.
"""

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from t2iedit import Kind, Tokens

Form = Literal["paper", "code"]


def context_rows(
    tokens: Tokens,
    concept: Collection[int],
    *,
    bos: bool = False,
    padding: bool = False,
) -> list[int]:
    """The rows around the concept: words and EOT, told by position; BOS and padding if asked for.

    The paper sums over all tokens but the concept's; which of the special ones count it does not say. EOT counts since
    it carries the prompt's meaning; BOS never changes, so it has no gradient; padding is left out, as in the authors'
    program.
    """
    kinds = [Kind.WORD, Kind.EOT] + [Kind.BOS] * bos + [Kind.PAD] * padding
    return [row for row in tokens.of(*kinds) if row not in concept]


class ContextsDiffer(ValueError):
    """Two prompts that differ in more than the concept, as when a window cuts one of them off."""


def aligned_contexts(
    tokens: Tokens,
    concept: Collection[int],
    category_tokens: Tokens,
    category: Collection[int],
    *,
    bos: bool = False,
    padding: bool = False,
) -> tuple[list[int], list[int]]:
    """The context's rows in both prompts of a pair, the k-th of one standing for the k-th of the other.

    However many tokens the concept and its category have. Raises `ContextsDiffer` if the prompts differ elsewhere too.
    """
    rows = context_rows(tokens, concept, bos=bos, padding=padding)
    others = context_rows(category_tokens, category, bos=bos, padding=padding)
    if padding:
        shorter = min(len(rows), len(others))
        rows, others = rows[:shorter], others[:shorter]
    if len(rows) != len(others):
        raise ContextsDiffer(
            f"the contexts have {len(rows)} and {len(others)} tokens; the prompts must be alike but for the concept"
        )
    return rows, others


def embedding_regularisation(
    context: Float[Tensor, "context dim"],
    category: Float[Tensor, "context dim"],
    form: Form = "paper",
) -> Float[Tensor, ""]:
    """CER, L_emb = 1/(n-1) sum over i != k of 1 - cos(E(v_i), E(v'_i)), for aligned rows of the two prompts.

    "paper" takes the cosine of each token over its channels; "code" that of each channel along the tokens, and the mean
    over the channels. Nothing flows into the category's side.
    """
    along = {"paper": 1, "code": 0}[form]
    cosine = torch.nn.functional.cosine_similarity(
        context.float(), category.detach().float(), dim=along
    )
    return (1 - cosine).mean()


def mean_map(
    probs: Float[Tensor, "batch heads pixels tokens"],
) -> Float[Tensor, "batch tokens"]:
    """How much attention each token gets in one layer, over heads and pixels."""
    return probs.float().mean(dim=(1, 2))


def attention_regularisation(
    means: Mapping[str, Float[Tensor, "batch context"]],
    category: Mapping[str, Float[Tensor, "batch context"]],
    sizes: Mapping[str, int] | None = None,
    form: Form = "paper",
) -> Float[Tensor, ""]:
    """CAR, L_attn = 1/(n-1) sum over i != k of (mu(M_i) - mu(M'_i))^2, from each layer's `mean_map` at the context's rows.

    "paper": mu is the mean of all values of a token's maps in all layers, so layers count by their `sizes` (heads times
    pixels; all alike without), and the batch is averaged. "code": the square of each layer's own difference, summed over
    the batch, averaged over the layers. Nothing flows into the category's side.
    """
    gaps = {layer: means[layer] - category[layer].detach() for layer in means}
    if form == "code":
        squares = [gap.square().mean(dim=1).sum() for gap in gaps.values()]
        return torch.stack(squares).mean()
    weights = sizes if sizes is not None else dict.fromkeys(gaps, 1)
    total = sum(weights[layer] for layer in gaps)
    gap = torch.stack([gaps[layer] * (weights[layer] / total) for layer in gaps]).sum(dim=0)
    return gap.square().mean()


def rescaled(
    vectors: Float[Tensor, "vectors width"], norm: float
) -> Float[Tensor, "vectors width"]:
    """v_s * |v_(s-1)| / |v_s|: the same direction at another norm, over all vectors of the concept."""
    return vectors * (norm / vectors.norm())
