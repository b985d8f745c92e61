"""Do T2I-Zero's two algorithms draw more of what prompts of several objects ask for? Against plain and up-weighting.

    python benchmarks/composition.py choose [--quick]     options, on prompts of their own; half an hour
    python benchmarks/composition.py report [--quick]     with the options chosen, on prompts looked at once; half an hour

Plain's guidance and steps are chosen first and hold for all; then compel's weight, the baseline that people use today,
and the readings of both algorithms, first one at a time, then the best of them together. Candidates drop out as more
prompts are painted. Every arm paints prompt k from the same noise, so differences are paired: their 95 % intervals are
bootstrapped over prompts. What is painted is kept under --folder, and a stopped run goes on there.

    python benchmarks/composition.py report -m MODEL      any other checkpoint, on things and colours that GenEval knows

Of other models than `shapes` GenEval's own program judges the pictures: the command says how to call it, and once its
results are there, the same command goes on.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from common import RESULTS, median_of, paired, save, share, show
from PIL import Image
from readings import ROUNDS, Search, chosen, told
from readings import SEED as CHOOSING
from referees import Detector, GenEval, Referee, Sizes, Verdict, of_detection, picture
from studio import Arm, Studio, judged

import t2iedit
from t2iedit.cli.terminal import silence_libraries
from t2iedit.errors import UserError
from t2iedit.plots import labelled_grid
from t2iedit.shapes.detector import detect
from t2iedit.shapes.evaluate import rebuilt
from t2iedit.shapes.tasks import Task

CHOICE = RESULTS / "composition-choice.json"
REPORTING = CHOOSING + 1
"""The seed of the prompts that are reported on."""
SEVERAL = ("two objects", "three objects")
CHOOSING_SIZES: Sizes = {"two objects": 150, "three objects": 150}
REPORTING_SIZES: Sizes = {"two objects": 300, "three objects": 300, "one object": 150}
SHOWN, REBUILT = 8, 150
"""Prompts on the sheet, and drawn scenes for the ceiling."""


def choose(studio: Studio, referee: Referee, *, quick: bool) -> None:
    tasks = referee.tasks({row: 6 for row in SEVERAL} if quick else CHOOSING_SIZES, CHOOSING)
    search = Search(studio, referee, tasks, (4, 8, 12) if quick else ROUNDS)
    arms = chosen(search, quick=quick)
    values = {name: asdict(arm) for name, arm in arms.items()}
    path = choice_file(quick=quick)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"chosen": values, "tried": search.tried}, indent=1) + "\n")
    print(f"written to {path}", *map(told, arms.values()), sep="\n")


def choice_file(*, quick: bool) -> Path:
    return CHOICE.with_stem(f"{CHOICE.stem}-quick") if quick else CHOICE


def report(studio: Studio, referee: Referee, sizes: Sizes, choice: Path, stem: str) -> None:
    if not choice.exists():
        raise UserError(f'no options are chosen in "{choice}" yet; run the phase choose first')
    arms = [Arm(**values) for values in json.loads(choice.read_text())["chosen"].values()]
    seen_before = {task.prompt for task in referee.tasks(CHOOSING_SIZES, CHOOSING)}
    more = {row: 2 * n if row in SEVERAL else n for row, n in sizes.items()}
    fresh = [t for t in referee.tasks(more, REPORTING) if t.prompt not in seen_before]
    tasks = [task for row, n in sizes.items() for task in [t for t in fresh if t.row == row][:n]]
    verdicts = judged(studio, referee, arms, tasks, REPORTING)
    rows = [
        row
        for arm, each in zip(arms, verdicts, strict=True)
        for row in shares(arm.name, tasks, each)
    ]
    for arm, each in zip(arms[1:], verdicts[1:], strict=True):
        rows += differences(arm, tasks, each, verdicts[0])
    several = sum(task.row in SEVERAL for task in tasks)
    plain, *others = [studio.seconds(arm, REPORTING) for arm in arms]
    rows += [slowdown(arm, own, plain, several) for arm, own in zip(arms[1:], others, strict=True)]
    if isinstance(referee, Detector):
        rows += ceiling(studio.model, tasks[:: max(1, len(tasks) // REBUILT)])
    show(rows)
    save(stem, rows, {"model": studio.model.name, "arms": [asdict(arm) for arm in arms]})
    sheet(studio, arms, tasks).save(RESULTS / f"{stem}.png")


METRICS = {
    "all present": lambda v: v.present == v.objects,
    "bound right": lambda v: v.bound == v.objects,
    "right": lambda v: v.right,
}
"""Of prompts: every object there in some colour, every one in its own, and nothing else besides."""


def ceiling(model: t2iedit.Model, tasks: Sequence[Task]) -> Iterator[dict]:
    """What the detector sees in drawn scenes that fulfil the prompts, passed through the model's autoencoder."""
    pictures = rebuilt(model.pipeline, list(tasks), Random(REPORTING))
    verdicts = [of_detection(detect(i), t.wanted) for i, t in zip(pictures, tasks, strict=True)]
    return shares("ceiling", tasks, verdicts)


def shares(name: str, tasks: Sequence[Task], verdicts: Sequence[Verdict]) -> Iterator[dict]:
    for row in dict.fromkeys(task.row for task in tasks):
        own = [v for task, v in zip(tasks, verdicts, strict=True) if task.row == row]
        objects = sum(v.objects for v in own)
        for metric, holds in METRICS.items():
            yield share(f"{name}: {row}", metric, sum(map(holds, own)), len(own))
        dropped = objects - sum(v.present for v in own)
        yield share(f"{name}: {row}", "dropped", dropped, objects)
        yield share(f"{name}: {row}", "leaked", sum(v.leaked for v in own), objects)


def differences(
    arm: Arm, tasks: Sequence[Task], verdicts: Sequence[Verdict], plain: Sequence[Verdict]
) -> Iterator[dict]:
    """How many more prompts hold than under plain, in shares of all."""
    for row in dict.fromkeys(task.row for task in tasks):
        pairs = [
            pair[1:] for pair in zip(tasks, verdicts, plain, strict=True) if pair[0].row == row
        ]
        for metric, holds in METRICS.items():
            gains = [float(holds(one)) - float(holds(other)) for one, other in pairs]
            yield paired(f"{arm.name}: {row}", f"{metric}, more than plain", gains)


def slowdown(
    arm: Arm, own: dict[int, float], plain: dict[int, float], several: int
) -> dict[str, Any]:
    """Batches of the same prompts, those of several objects."""
    ratios = [own[k] / plain[k] for k in own if k in plain and k < several]
    return median_of(arm.name, "time per image over plain's", ratios)


def sheet(studio: Studio, arms: Sequence[Arm], tasks: Sequence[Task]) -> Image.Image:
    """Some prompts of several objects under every arm."""
    several = [index for index, task in enumerate(tasks) if task.row in SEVERAL]
    places = several[:: max(1, len(several) // SHOWN)][:SHOWN]
    cells = [
        [Image.open(picture(studio.place(arm, REPORTING), index)) for arm in arms]
        for index in places
    ]
    return labelled_grid(cells, [arm.name for arm in arms], [tasks[k].prompt for k in places])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("phase", choices=("choose", "report"))
    parser.add_argument("-m", "--model", default="shapes")
    parser.add_argument("--referee", choices=("detector", "geneval"), help="default: by the model")
    parser.add_argument("--folder", type=Path, default=Path("out/composition"))
    parser.add_argument("--jobs", type=int, default=1, help="processes that look at pictures")
    parser.add_argument("--quick", action="store_true", help="a dozen prompts, few candidates")
    options = parser.parse_args(arguments)
    silence_libraries()
    world = options.model.startswith("shapes")
    name = options.referee or ("detector" if world else "geneval")
    referee: Referee = Detector(options.jobs) if name == "detector" else GenEval()
    studio = Studio(t2iedit.open_model(options.model), options.folder)
    if options.phase == "choose":
        choose(studio, referee, quick=options.quick)
        return
    sizes = {row: 4 for row in REPORTING_SIZES} if options.quick else REPORTING_SIZES
    stem = "composition" if world else f"composition-{Path(options.model).name}"
    report(
        studio, referee, sizes, choice_file(quick=options.quick), stem + "-quick" * options.quick
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"composition: {error}")
