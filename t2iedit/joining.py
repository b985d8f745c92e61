"""How the embeddings of a family's encoders become the arguments of its diffusers pipeline."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from t2iedit.text import TextEmbedding

Join = Callable[[Sequence[TextEmbedding]], dict[str, Tensor]]
"""One prompt's embeddings, in the encoders' order, to `prompt_embeds` and its kin, without a batch axis."""


def sd(embeddings: Sequence[TextEmbedding]) -> dict[str, Tensor]:
    """SD 1.x and 2.x: the one encoder's rows as they are."""
    return {"prompt_embeds": embeddings[0].hidden}


def sdxl(embeddings: Sequence[TextEmbedding]) -> dict[str, Tensor]:
    """SDXL: both encoders joined on features, and the second one's pooled vector."""
    pooled = embeddings[1].pooled
    assert pooled is not None
    hidden = torch.cat([embedding.hidden for embedding in embeddings], dim=-1)
    return {"prompt_embeds": hidden, "pooled_prompt_embeds": pooled}


JOINS: dict[str, Join] = {"sd": sd, "sdxl": sdxl}
"""By the name of the family."""
