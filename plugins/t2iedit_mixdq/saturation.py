"""Whether a prompt, edited or not, stays inside the range that the text layers were calibrated for."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from t2iedit import Edit, Kind, Run, TextEmbedding
from t2iedit_mixdq.bos import BosRows
from t2iedit_mixdq.quantizers import Affine, clipped_share
from t2iedit_mixdq.recipe import read_recipe
from t2iedit_mixdq.shards import Shards

LIMIT = 0.01
"""The share of clipped values above which the user is told (our choice)."""


def text_grid(folder: Path) -> Affine | None:
    """The widest grid of a recipe's text layers, which all read the same rows; None if those stay whole."""
    recipe, shards = read_recipe(folder), Shards(folder / "unet")
    grids = []
    for name, bits in recipe.activations.items():
        if name.endswith((".attn2.to_k", ".attn2.to_v")) and f"{name}.grids" in shards:
            grids += shards.grids(name, 1, bits)
    return widest(grids)


def widest(grids: Iterable[Affine]) -> Affine | None:
    """The grid that reaches furthest, None if there is none."""
    return max(grids, key=lambda grid: grid.delta * grid.levels, default=None)


class TextClipped(UserWarning):
    """Edits took the prompt out of the range that a packed model was calibrated for."""


def watch(unet: nn.Module, grid: Affine) -> None:
    """Warn with `TextClipped` when a packed UNet is given text, edited or not, that its text layers clip."""
    last: list[Any] = [None]

    def look(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        rows = kwargs.get("encoder_hidden_states")
        if not isinstance(rows, Tensor) or rows is last[0]:
            return
        last[0] = rows
        share = clipped_share(rows[:, BosRows().others(rows.shape[1])], grid)
        if share > LIMIT:
            warnings.warn(_sentence(share, "the text", grid), TextClipped, stacklevel=2)

    unet.register_forward_pre_hook(look, with_kwargs=True)


def warn_of_clipping(edit: Edit, embedding: TextEmbedding, grid: Affine | None, run: Run) -> None:
    """Report the share of the prompt's values that the text layers will clip; BOS rows are not quantised."""
    if grid is None:
        return
    rows = embedding.tokens.of(Kind.WORD, Kind.EOT, Kind.PAD)
    share = clipped_share(embedding.hidden[rows], grid)
    encoder = embedding.tokens.encoder
    run.record(edit, **{f"clipped ({encoder})": round(share, 4)})
    if share > LIMIT:
        run.warn(_sentence(share, f"the prompt's embedding ({encoder})", grid))


def _sentence(share: float, what: str, grid: Affine) -> str:
    low, high = affine_bounds(grid)
    return (
        f"{share:.0%} of {what} lies outside the range {low:.3g} to {high:.3g} that mixdq was calibrated for;"
        " quantise again with prompts like this one, or make the edits weaker"
    )


def affine_bounds(grid: Affine) -> tuple[float, float]:
    """The ends of a grid."""
    return -grid.zero * grid.delta, (grid.levels - 1 - grid.zero) * grid.delta
