"""How the embeddings of a family's encoders become the arguments of its diffusers pipeline."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from t2iedit.blending import common_length, repeated
from t2iedit.errors import ConditioningNotUsable
from t2iedit.text import TextEmbedding

Join = Callable[[Sequence[TextEmbedding]], dict[str, Tensor]]
"""One prompt's embeddings, in the encoders' order, to `prompt_embeds` and its kin, without a batch axis."""


def sd(embeddings: Sequence[TextEmbedding]) -> dict[str, Tensor]:
    """SD 1.x and 2.x: the one encoder's rows as they are."""
    return {"prompt_embeds": embeddings[0].hidden}


def sdxl(embeddings: Sequence[TextEmbedding]) -> dict[str, Tensor]:
    """SDXL: both encoders joined on features, and the second one's pooled vector."""
    first, second = embeddings
    return {"prompt_embeds": _beside(first, second), "pooled_prompt_embeds": _pooled(second)}


def sd3(embeddings: Sequence[TextEmbedding]) -> dict[str, Tensor]:
    """SD3: both CLIPs joined on features and padded to T5's width, T5 after them on the text axis, both pooled vectors."""
    first, second, t5 = embeddings
    clip = _beside(first, second)
    clip = torch.nn.functional.pad(clip, (0, t5.hidden.shape[-1] - clip.shape[-1]))
    pooled = torch.cat([_pooled(first), _pooled(second)], dim=-1)
    return {"prompt_embeds": torch.cat([clip, t5.hidden]), "pooled_prompt_embeds": pooled}


def flux(embeddings: Sequence[TextEmbedding]) -> dict[str, Tensor]:
    """FLUX: T5's rows, and CLIP's pooled vector alone."""
    clip, t5 = embeddings
    return {"prompt_embeds": t5.hidden, "pooled_prompt_embeds": _pooled(clip)}


def _beside(first: TextEmbedding, second: TextEmbedding) -> Tensor:
    """Both encoders' rows joined on features; the one that read fewer windows is repeated whole."""
    length = common_length(len(first.hidden), len(second.hidden))
    return torch.cat([repeated(e.hidden, length) for e in (first, second)], dim=-1)


def _pooled(embedding: TextEmbedding) -> Tensor:
    if embedding.pooled is None:
        raise ConditioningNotUsable(
            f'the embedding of "{embedding.tokens.encoder}" has no pooled vector, which this family reads; encode again'
        )
    return embedding.pooled


JOINS: dict[str, Join] = {"sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux}
"""By the name of the family."""
