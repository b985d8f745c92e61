"""Whether a prompt, edited or not, stays inside the range that the text layers were calibrated for."""

from pathlib import Path

from t2iedit import Edit, Kind, Run, TextEmbedding
from t2iedit_mixdq.checkpoint import Shards
from t2iedit_mixdq.quantizers import Affine, clipped_share
from t2iedit_mixdq.recipe import read_recipe

LIMIT = 0.01
"""The share of clipped values above which the user is told (our choice)."""


def text_grid(folder: Path) -> Affine | None:
    """The widest grid of a recipe's text layers, which all read the same rows; None if those stay whole."""
    recipe, shards = read_recipe(folder), Shards(folder / "unet")
    grids = []
    for name, bits in recipe.activations.items():
        if name.endswith((".attn2.to_k", ".attn2.to_v")) and f"{name}.grids" in shards:
            ((step, zero),) = shards.take(f"{name}.grids").tolist()
            grids.append(Affine(step, int(zero), bits))
    return max(grids, key=lambda grid: grid.delta * grid.levels, default=None)


def warn_of_clipping(edit: Edit, embedding: TextEmbedding, grid: Affine | None, run: Run) -> None:
    """Report the share of the prompt's values that the text layers will clip; BOS rows are not quantised."""
    if grid is None:
        return
    rows = embedding.tokens.of(Kind.WORD, Kind.EOT, Kind.PAD)
    share = clipped_share(embedding.hidden[rows], grid)
    encoder = embedding.tokens.encoder
    run.record(edit, **{f"clipped ({encoder})": round(share, 4)})
    if share > LIMIT:
        low, high = affine_bounds(grid)
        run.warn(
            f"{share:.0%} of the prompt's embedding ({encoder}) lies outside the range {low:.3g} to {high:.3g} that mixdq"
            " was calibrated for; quantise again with prompts like this one, or make the edits before mixdq weaker"
        )


def affine_bounds(grid: Affine) -> tuple[float, float]:
    """The ends of a grid."""
    return -grid.zero * grid.delta, (grid.levels - 1 - grid.zero) * grid.delta
