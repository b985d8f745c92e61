"""Which of T2I-Zero's readings and strengths draw most of what prompts ask for: a short search, candidates dropping out."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from referees import Referee
from studio import Arm, Studio, judged
from tqdm import tqdm

from t2iedit.shapes.tasks import Task

SEED = 20_001
"""Of the prompts; the noise of prompt k has the seed 1000 times that, plus k."""
ROUNDS = (30, 90, 300)
"""Prompts after which the better third of the candidates goes on, then the better two, then the best."""

STEPS = (10, 20)
WORTH = 0.02
"""How much likeness the longer run has to buy to be taken."""
GUIDANCE = [{"guidance_scale": g, "steps": STEPS[0]} for g in (2.5, 4.0, 6.0, 8.0)]
WEIGHTS = (1.1, 1.25, 1.5, 1.75)
CORRECTION: dict[str, Any] = {"alpha": 0.3}
CORRECTIONS: list[dict[str, Any]] = [
    {"alpha": 0.1},
    {"alpha": 0.6},
    {"tau": 0.0},
    {"tau": 0.3},
    {"gamma": 1},
    {"gamma": 2},
    {"gamma": 8},
    {"normalise": "after"},
    {"maximum": "row"},
    {"maximum": "feature"},
    {"include_self": False},
    {"simultaneous": False},
    {"scope": "words+eot"},
    {"scope": "words+eot+pad", "gamma": 76},
    {"stop": 0.4},
]
SUPPRESSION: dict[str, Any] = {"alpha": 0.0, "suppression": 1.0}
SUPPRESSIONS: list[dict[str, Any]] = [
    {"suppression": 0.5},
    {"suppress_until": 0.1},
    {"suppress_until": 1.0},
    {"smallest_map": 1},
    {"heads": "each"},
    {"balance": True},
    {"renormalise": "concepts"},
    {"renormalise": "all"},
]
"""What the paper leaves open, one thing changed at a time."""


@dataclass
class Search:
    """The choice of options, and the likeness of every candidate on as many prompts as it came to."""

    studio: Studio
    referee: Referee
    tasks: list[Task]
    rounds: Sequence[int] = ROUNDS
    tried: list[dict[str, Any]] = field(default_factory=list)

    def best(self, candidates: list[Arm]) -> Arm:
        """The best after the last round; candidates drop out after each."""
        for number, size in enumerate(self.rounds):
            ranked = self.ranked(candidates, size)
            keep = max(2, len(ranked) // 3) if number == 0 else 2
            candidates = ranked[:keep]
            if len(ranked) == 1:
                break
        return candidates[0]

    def longer_if_worth_it(self, arm: Arm) -> Arm:
        """With more steps if they buy anything on all prompts."""
        longer = replace(arm, run=arm.run | {"steps": STEPS[1]})
        self.ranked([arm, longer], self.rounds[-1])
        before, after = self.tried[-2:]
        return longer if after["likeness"] - before["likeness"] > WORTH else arm

    def ranked(self, candidates: list[Arm], size: int) -> list[Arm]:
        tasks = self.tasks[:size]
        verdicts = judged(self.studio, self.referee, candidates, tasks, SEED)
        likeness = [float(np.mean([v.likeness for v in each])) for each in verdicts]
        for arm, value, each in zip(candidates, likeness, verdicts, strict=True):
            right = float(np.mean([v.right for v in each]))
            self.tried.append({"n": len(tasks), "likeness": value, "right": right} | asdict(arm))
            tqdm.write(f"n {len(tasks):3}  likeness {value:.3f}  right {right:.3f}  {told(arm)}")
        order = np.argsort([-value for value in likeness], kind="stable")
        return [candidates[k] for k in order]

    def best_reading(self, base: Arm, changes: list[dict[str, Any]]) -> Arm:
        """Of changes to the base one at a time, and of those that helped most, taken together."""
        arms = [base, *(replace(base, zero=(base.zero or {}) | change) for change in changes)]
        ranked = self.ranked(arms, self.rounds[0])
        merged: dict[str, Any] = {}
        for arm in reversed(ranked[: ranked.index(base)][:3]):
            merged |= {k: v for k, v in (arm.zero or {}).items() if (base.zero or {}).get(k) != v}
        together = replace(base, zero=(base.zero or {}) | merged)
        return self.best(list({told(arm): arm for arm in [together, *ranked]}.values()))


def told(arm: Arm) -> str:
    given = (arm.zero or {}) | arm.run | ({"weight": arm.weight} if arm.weight != 1 else {})
    return f"{arm.name}: " + ", ".join(f"{key}={value}" for key, value in given.items())


def chosen(search: Search, *, quick: bool) -> dict[str, Arm]:
    few = slice(2 if quick else None)
    plain = search.best([Arm("plain", run=run) for run in GUIDANCE[few]])
    plain = search.longer_if_worth_it(plain)
    compel = [replace(plain, name="compel", weight=weight) for weight in WEIGHTS[few]]
    first = replace(plain, name="algorithm 1", zero=CORRECTION)
    second = replace(plain, name="algorithm 2", zero=SUPPRESSION)
    arms = [
        plain,
        search.best(compel),
        search.best_reading(first, CORRECTIONS[few]),
        search.best_reading(second, SUPPRESSIONS[few]),
    ]
    correction, suppression = arms[2].zero or {}, arms[3].zero or {}
    both = suppression | correction
    halved = both | {"alpha": both["alpha"] / 2}
    arms.append(search.best([replace(plain, name="both", zero=zero) for zero in (both, halved)]))
    return {arm.name: arm for arm in arms}
