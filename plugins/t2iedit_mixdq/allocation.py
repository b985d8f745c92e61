"""Which layer gets how many bits: MixDQ's integer programs (arXiv 2405.17873), solved by HiGHS through scipy."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from t2iedit_mixdq.errors import BudgetNotReachable
from t2iedit_mixdq.recipe import Bits
from t2iedit_mixdq.wiring import Group, Layer

SLACK = 0.02
"""How far the mean may lie from its target, in bits, as in the authors' code."""
ALLOWED: dict[str, dict[Group, tuple[int, ...]]] = {
    "weights": {"content": (2, 4, 8), "quality": (4, 8)},
    "activations": {"content": (4, 8), "quality": (4, 8)},
}
"""The widths that the authors' programs choose from."""
SPLITS = {"weights": (0.46, 1.36, 10), "activations": (0.94, 1.09, 20)}
"""The ratios k of the content group's mean to the quality group's that are swept: first, last, how many."""

Scores = Mapping[str, Mapping[int, float]]
"""Layer to width to how good the picture stays when that layer alone has that width; higher is better."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """A solved program: the bits, the true mean, the score, and how far the best possible one may be (0: none is better)."""

    bits: Bits
    mean: float
    score: float
    gap: float


def allocate(scores: Scores, sizes: Mapping[str, int], budget: float) -> Allocation:
    """The bits with the greatest sum of scores whose mean, weighed by `sizes`, is within `SLACK` of the budget.

    max sum s[i,b] c[i,b] over binary c with sum_b c[i,b] = 1 for each layer i and
    (B - .02) sum w <= sum c[i,b] b w[i] <= (B + .02) sum w. Where few or equal layers leave no mean that near, the
    lower bound is dropped (our choice). Raises `BudgetNotReachable`.
    """
    names = list(scores)
    choices = [(index, bits) for index, name in enumerate(names) for bits in sorted(scores[name])]
    total = sum(sizes[name] for name in names)
    low, high = reachable(scores, sizes)
    if not low - SLACK <= budget <= high + SLACK:
        raise _unreachable(budget, low, high)
    owner = np.array([index for index, _ in choices])
    value = np.array([scores[names[index]][bits] for index, bits in choices])
    cost = np.array([bits * sizes[names[index]] / total for index, bits in choices])
    columns = np.arange(len(choices))
    one_each = csr_array(
        (np.ones(len(choices)), (owner, columns)), shape=(len(names), len(choices))
    )
    for floor in (budget - SLACK, low):
        solved = milp(
            -value,
            integrality=np.ones(len(choices)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(cost[None], floor, budget + SLACK),
            ],
            options={"time_limit": 60},
        )
        if solved.x is not None:
            break
    else:
        raise _unreachable(budget, low, high)
    picked = [choice for choice, x in zip(choices, solved.x, strict=True) if x > 0.5]
    bits = {names[index]: width for index, width in picked}
    mean = sum(bits[name] * sizes[name] for name in names) / total
    gap = float(solved.mip_gap or 0.0)
    return Allocation(bits, mean, float(-solved.fun), gap)


def reachable(scores: Scores, sizes: Mapping[str, int]) -> tuple[float, float]:
    """The least and the greatest mean that these widths allow."""
    total = sum(sizes[name] for name in scores)
    ends = [sum(pick(scores[name]) * sizes[name] for name in scores) / total for pick in (min, max)]
    return ends[0], ends[1]


def check_budget(layers: Mapping[str, Layer], of: str, budget: float) -> None:
    """Raises `BudgetNotReachable` for a mean that no allocation can have, before hours of judging find that out."""
    size = "weights" if of == "weights" else "inputs"
    widths = {n: dict.fromkeys(ALLOWED[of][layer.group], 0.0) for n, layer in layers.items()}
    low, high = reachable(widths, {name: getattr(layers[name], size) for name in layers})
    if not low - SLACK <= budget <= high + SLACK:
        raise _unreachable(budget, low, high)


def splits(of: str, budget: float, content: int, quality: int) -> Iterator[tuple[float, float]]:
    """The pairs (content mean, quality mean) to try for a global mean, `content` and `quality` being the groups' sizes.

    r = content / quality; B_q = B (1 + r) / (k r + 1); B_c = k B_q, for each ratio k. What leaves the groups' widths is left out.
    """
    ratio = content / quality
    first, last, count = SPLITS[of]
    floor, ceiling = min(ALLOWED[of]["content"]), max(ALLOWED[of]["content"])
    for k in np.linspace(first, last, count):
        of_quality = budget * (1 + ratio) / (k * ratio + 1)
        of_content = k * of_quality
        if min(ALLOWED[of]["quality"]) <= of_quality <= 8 and floor <= of_content <= ceiling:
            yield float(of_content), float(of_quality)


def candidates(
    scores: Scores, layers: Mapping[str, Layer], of: str, budget: float, *, decoupled: bool = True
) -> list[Allocation]:
    """An allocation for each budget split, the groups solved apart since their scores are of different kinds.

    Where none of the paper's splits can be met, as near the ends of what is reachable, all that can be are tried (our
    choice). Without `decoupled`, scores of one kind for all, it is one program (the paper's ablation). Raises
    `BudgetNotReachable` with the reachable range if there is none.
    """
    size = "weights" if of == "weights" else "inputs"
    allowed = restricted(scores, layers, of)
    sizes = {name: getattr(layers[name], size) for name in allowed}
    groups: dict[Group, dict] = {"content": {}, "quality": {}}
    for name, by_bits in allowed.items():
        groups[layers[name].group][name] = by_bits
    if not decoupled or not all(groups.values()):
        return [allocate(allowed, sizes, budget)]
    content, quality = (sum(sizes[name] for name in members) for members in groups.values())
    ways = splits(of, budget, content, quality), remainders(groups, sizes, budget)
    for pairs in ways:
        if found := list(_solved(groups, sizes, pairs)):
            return _distinct(found)
    raise _unreachable(budget, *reachable(allowed, sizes))


Groups = Mapping[Group, Scores]
"""The scores of each group's layers."""


def remainders(
    groups: Groups, sizes: Mapping[str, int], budget: float
) -> Iterator[tuple[float, float]]:
    """Pairs (content mean, quality mean) for a global mean: ten of all that the quality group can have, and what that leaves."""
    content, quality = (sum(sizes[name] for name in members) for members in groups.values())
    for of_quality in np.linspace(*reachable(groups["quality"], sizes), 10):
        rest = budget * (content + quality) - of_quality * quality
        yield float(rest / content), float(of_quality)


def _solved(
    groups: Groups, sizes: Mapping[str, int], pairs: Iterable[tuple[float, float]]
) -> Iterator[Allocation]:
    """Both groups' programs for each pair of means that can be met."""
    totals = [sum(sizes[name] for name in members) for members in groups.values()]
    for means in pairs:
        try:
            parts = [
                allocate(members, sizes, mean)
                for members, mean in zip(groups.values(), means, strict=True)
            ]
        except BudgetNotReachable:
            continue
        yield _joined(parts, totals)


def restricted(scores: Scores, layers: Mapping[str, Layer], of: str) -> dict[str, dict[int, float]]:
    """The scores of the widths that a layer's group may have."""
    return {
        name: {b: s for b, s in by_bits.items() if b in ALLOWED[of][layers[name].group]}
        for name, by_bits in scores.items()
    }


def most_sensitive(scores: Scores, layers: Mapping[str, Layer], share: float) -> frozenset[str]:
    """The worst layers of each group at 8 bits by that group's own metric, `share` of the group, rounded up (MixDQ: 1 %)."""
    worst: set[str] = set()
    for group in ("content", "quality"):
        members = [name for name in scores if layers[name].group == group]
        members.sort(key=lambda name: scores[name][8])
        worst |= set(members[: int(np.ceil(share * len(members)))])
    return frozenset(worst)


def _joined(parts: Sequence[Allocation], totals: Sequence[int]) -> Allocation:
    bits = {name: width for part in parts for name, width in part.bits.items()}
    means = zip(parts, totals, strict=True)
    mean = sum(part.mean * total for part, total in means) / sum(totals)
    return Allocation(bits, mean, sum(p.score for p in parts), max(p.gap for p in parts))


def _distinct(found: Sequence[Allocation]) -> list[Allocation]:
    return list({tuple(sorted(a.bits.items())): a for a in found}.values())


def _unreachable(budget: float, low: float, high: float) -> BudgetNotReachable:
    return BudgetNotReachable(
        f"no allocation has a mean of {budget:g} bits; with the allowed widths and this model's layers"
        f" means from {low:.2f} to {high:.2f} can be reached"
    )
