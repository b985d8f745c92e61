"""Losses as small curves, each on its own scale: HTML that follows the page's colours."""

import html
from collections.abc import Mapping, Sequence

POINTS = 60
"""Of a curve: each the mean of as many steps as it stands for, since single ones jump."""
WIDTH, HEIGHT = 200, 70


def curves(losses: Mapping[str, Sequence[float]], titles: Mapping[str, str]) -> str:
    """A curve for each loss that has a title, side by side where there is room."""
    known = [(titles[name], values) for name, values in losses.items() if name in titles and values]
    return f'<div class="curves">{"".join(_figure(title, values) for title, values in known)}</div>'


def means(values: Sequence[float]) -> list[float]:
    """Means of neighbouring values, at most about `POINTS`."""
    size = max(1, len(values) // POINTS)
    parts = [values[at : at + size] for at in range(0, len(values), size)]
    return [sum(part) / len(part) for part in parts]


def _figure(title: str, values: Sequence[float]) -> str:
    shown = means(values)
    low, high = min(shown), max(shown)
    wide, tall = max(1, len(shown) - 1), (high - low) or 1.0
    points = " ".join(
        f"{WIDTH * place / wide:.1f},{HEIGHT * (high - value) / tall:.1f}"
        for place, value in enumerate(shown)
    )
    told = f"{html.escape(title)}: {shown[0]:.3g} at first, {shown[-1]:.3g} now"
    return (
        f"<figure><figcaption>{html.escape(title)}<b>{shown[-1]:.3g}</b></figcaption>"
        f'<svg viewBox="-2 -4 {WIDTH + 4} {HEIGHT + 8}" preserveAspectRatio="none" role="img" aria-label="{told}">'
        f'<polyline points="{points}"/></svg>'
        f"<small>from {shown[0]:.3g}, between {low:.3g} and {high:.3g}, {len(values)} steps</small></figure>"
    )
