"""Do T2I-Zero's two algorithms draw more of what prompts of several objects ask for? Against plain and up-weighting.

    python benchmarks/composition.py choose [--n 60] [--quick]     options, on prompts of their own
    python benchmarks/composition.py report [--n 300] [--quick]    with the options chosen, on prompts looked at once

Every arm starts from the same noise for the same prompt, so differences are paired: their 95 % intervals are
bootstrapped over prompts. The baseline that people use today is compel's up-weighting of the concepts.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import numpy as np
from compel import CompelForSD
from tqdm import tqdm

import t2iedit
from t2iedit.plots import labelled_grid
from t2iedit.plugins import installed
from t2iedit.shapes.detector import Detection, detect
from t2iedit.shapes.evaluate import Row
from t2iedit.shapes.scoring import score, wilson
from t2iedit.shapes.tasks import Task, make_tasks

RESULTS = Path(__file__).parent / "results"
CHOICE = RESULTS / "composition-choice.json"
CHOOSING, REPORTING = 20_001, 20_002
"""Seeds of the two sets of prompts."""
COUNTED = ("one object", "two objects", "three objects")
SHOWN = 8

Tell = Callable[[t2iedit.Model, Task, t2iedit.Conditioning], t2iedit.Conditioning]


@dataclass(frozen=True)
class Arm:
    """One way to draw a prompt: T2I-Zero's options, compel's weight, and how the model is run."""

    name: str
    zero: dict[str, Any] | None = None
    weight: float = 1.0
    run: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    task: Task
    detection: Detection
    seconds: float
    image: Any


PLAIN = Arm("plain")
CANDIDATES: dict[str, list[Arm]] = {
    "plain": [Arm("plain", run={"guidance_scale": g}) for g in (3.0, 4.0, 6.0)],
    "compel": [Arm("compel", weight=w) for w in (1.1, 1.2, 1.35, 1.5)],
    "algorithm 1": [
        Arm("algorithm 1", {"alpha": a, "gamma": g, "include_self": s, "scope": c})
        for a, g, s, c in product((0.1, 0.3), (1, 4), (True, False), ("words", "words+eot+pad"))
    ],
    "algorithm 2": [
        Arm("algorithm 2", {"alpha": 0.0, "suppression": s, "suppress_until": u, "renormalise": r})
        for s, u, r in product((0.5, 1.0), (0.2, 0.4, 1.0), ("none", "concepts"))
    ],
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=("choose", "report"))
    parser.add_argument("--n", type=int, help="prompts of each number of objects")
    parser.add_argument("--quick", action="store_true", help="6 prompts of each, few candidates")
    parser.add_argument("-m", "--model", default="shapes")
    options = parser.parse_args(arguments)
    model = t2iedit.open_model(options.model)
    phase = choose if options.phase == "choose" else report
    phase(model, 6 if options.quick else options.n, quick=options.quick)


def choose(model: t2iedit.Model, n: int | None, *, quick: bool) -> None:
    """The best candidate of each family by the share of prompts of two and three objects drawn right."""
    tasks = prompts(n or 60, CHOOSING, COUNTED[1:])
    chosen: dict[str, Any] = {}
    tried = []
    settings: dict[str, Any] = {}
    for family, candidates in CANDIDATES.items():
        arms = [replace(arm, run=settings | arm.run) for arm in candidates[: 2 if quick else None]]
        shares = []
        for arm in arms:
            drawn = draw(model, arm, tasks)
            shares.append(float(np.mean([right(each) for each in drawn])))
            tried.append({"right": round(shares[-1], 4)} | asdict(arm))
            print(f"{shares[-1]:6.1%}  {arm}", flush=True)
        best = arms[int(np.argmax(shares))]
        chosen[family] = asdict(best)
        if family == "plain":
            settings = best.run
    both = chosen["algorithm 1"]["zero"] | chosen["algorithm 2"]["zero"]
    both["alpha"] = chosen["algorithm 1"]["zero"]["alpha"]
    chosen["both"] = asdict(Arm("both", both, run=settings))
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        CHOICE.write_text(json.dumps({"chosen": chosen, "tried": tried}, indent=1) + "\n")


def report(model: t2iedit.Model, n: int | None, *, quick: bool) -> None:
    arms = [Arm(**values) for values in json.loads(CHOICE.read_text())["chosen"].values()]
    tasks = prompts(n or 300, REPORTING, COUNTED)
    drawn = {arm.name: draw(model, arm, tasks) for arm in arms}
    rows = [row for arm in arms for row in rows_of(arm.name, drawn[arm.name])]
    rows += [row for arm in arms[1:] for row in differences(arm.name, drawn)]
    rows += [time_ratio(arm.name, drawn) for arm in arms[1:]]
    for row in rows:
        print(f"{row.name:34} {row.metric:28} {row.value:8.3f}  {row.low:.3f} to {row.high:.3f}")
    RESULTS.mkdir(exist_ok=True)
    stem = "composition-quick" if quick else "composition"
    text = json.dumps([asdict(row) for row in rows], indent=1)
    (RESULTS / f"{stem}.json").write_text(text + "\n")
    sheet(drawn).save(RESULTS / f"{stem}.png")


def prompts(n: int, seed: int, counted: Sequence[str]) -> list[Task]:
    return [task for task in make_tasks(n, Random(seed)) if task.row in counted]


def draw(model: t2iedit.Model, arm: Arm, tasks: list[Task]) -> list[Drawn]:
    """Prompt k from seed k."""
    compel = CompelForSD(model.pipeline)
    zero = installed().edit("t2i_zero")
    drawn = []
    for seed, task in enumerate(tqdm(tasks, desc=arm.name, leave=False)):
        # Suppression keeps concepts apart, and correction one from another: one alone stays as it is.
        edits = [zero(**arm.zero)] if arm.zero and len(task.wanted.objects) > 1 else []
        begin = time.perf_counter()
        run = t2iedit.start(model, t2iedit.Request(task.prompt, seed=seed, edits=edits, **arm.run))
        (told,) = t2iedit.condition([run])
        if arm.weight != 1:
            told = weighted(compel, told, task, arm.weight)
        ((image, _),) = t2iedit.denoise(run, told)
        drawn.append(Drawn(task, detect(image), time.perf_counter() - begin, image))
    return drawn


def weighted(
    compel: CompelForSD, told: t2iedit.Conditioning, task: Task, weight: float
) -> t2iedit.Conditioning:
    """The prompt with every concept up-weighted, as compel encodes it."""
    text = task.prompt
    for color, shape in task.wanted.objects:
        text = text.replace(f"{color} {shape}", f"({color} {shape}){weight:g}")
    (rows,) = compel(text).embeds
    return replace(told, prompt=(told.prompt[0].with_hidden(rows.to(told.prompt[0].hidden.dtype)),))


def right(drawn: Drawn) -> bool:
    return score(drawn.detection, drawn.task.wanted).right


def rows_of(arm: str, drawn: list[Drawn]) -> list[Row]:
    rows = []
    for name in COUNTED:
        own = [each for each in drawn if each.task.row == name]
        scores = [score(each.detection, each.task.wanted) for each in own]
        objects = sum(len(each.task.wanted.objects) for each in own)
        rows.append(_share(f"{arm}: {name}", "right", sum(s.right for s in scores), len(own)))
        for metric in ("present", "dropped", "leaked"):
            total = min(objects, sum(getattr(s, metric) for s in scores))
            rows.append(_share(f"{arm}: {name}", metric, total, objects))
    return rows


def _share(name: str, metric: str, count: int, n: int) -> Row:
    return Row(name, metric, n, count / n, *wilson(count, n))


def differences(arm: str, drawn: dict[str, list[Drawn]]) -> list[Row]:
    """How many more prompts come out right than plain, in shares of all."""
    rows = []
    for name in COUNTED:
        pairs = zip(drawn[arm], drawn["plain"], strict=True)
        gains = np.array([float(right(a)) - right(b) for a, b in pairs if a.task.row == name])
        random = np.random.default_rng(0)
        means = random.choice(gains, (2000, len(gains))).mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        rows.append(
            Row(f"{arm}: {name}", "right, more than plain", len(gains), float(gains.mean()), float(low), float(high))
        )  # fmt: skip
    return rows


def time_ratio(arm: str, drawn: dict[str, list[Drawn]]) -> Row:
    pairs = zip(drawn[arm], drawn["plain"], strict=True)
    ratios = [a.seconds / b.seconds for a, b in pairs if len(a.task.wanted.objects) > 1]
    low, high = np.quantile(ratios, (0.25, 0.75))
    return Row(
        arm, "time per image over plain's", len(ratios), median(ratios), float(low), float(high)
    )


def sheet(drawn: dict[str, list[Drawn]]) -> Any:
    """The first prompts of two and three objects under every arm."""
    names = list(drawn)
    places = [k for k, each in enumerate(drawn["plain"]) if each.task.row != COUNTED[0]]
    places = places[:: max(1, len(places) // SHOWN)][:SHOWN]
    cells = [[drawn[name][k].image for name in names] for k in places]
    return labelled_grid(cells, names, [drawn["plain"][k].task.prompt for k in places])


if __name__ == "__main__":
    main()
