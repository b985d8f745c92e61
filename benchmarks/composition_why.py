"""Why T2I-Zero's algorithms help a model or not: how alike its concepts' rows are, and where its attention looks for them.

    python benchmarks/composition_why.py [-m MODEL] [--n 96] [--quick]

On prompts of two objects from the set on which options are chosen, with the options chosen there:

- rows: the cosine between the two concepts' mean rows, and how far Algorithm 1 moves a concept's rows.
- overlap: what the two concepts' attention maps, each brought to a sum of 1, have in common; 1 is the same map.
- dominance: the share of the map where the stronger concept wins; .5 is balance, 1 is a concept that wins nowhere.
- and whether plain's pictures with little overlap or dominance are right more often than those with much: if not, what
  Algorithm 2 mends is not what is wrong.

Maps are those of the largest size, the mean over heads and layers, in the first third of the denoising.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, mean, save, share, show
from composition import choice_file
from PIL import Image
from readings import SEED
from referees import Detector, of_detection
from studio import BATCH, Arm
from together import paint
from torch import Tensor

import t2iedit
from t2iedit.attention import Probabilities, Site, opened
from t2iedit.charts import overlay
from t2iedit.cli.terminal import silence_libraries
from t2iedit.errors import UserError
from t2iedit.plots import labelled_grid
from t2iedit.shapes.detector import detect
from t2iedit.shapes.tasks import Task

EARLY = 1 / 3
SHOWN = 4
ARMS = ("plain", "algorithm 1", "algorithm 2")


class Maps:
    """What a batch's concepts are looked for by, gathered while it is painted (image, concept, height, width)."""

    def __init__(self, columns: Sequence[Sequence[Sequence[int]]], side: int) -> None:
        self.columns, self.side = columns, side
        self.sums: dict[int, Tensor] = defaultdict(lambda: torch.zeros(()))

    def __call__(self, site: Site) -> Callable[[Probabilities], Probabilities] | None:
        if site.fraction >= EARLY or site.height < self.side:
            return None

        def keep(probs: Probabilities) -> Probabilities:
            size = site.height, site.width
            for index, concepts in enumerate(self.columns):
                maps = [
                    probs[index, :, :, list(c)].mean(dim=(0, 2)).unflatten(0, size)
                    for c in concepts
                ]
                self.sums[index] = self.sums[index] + torch.stack(maps).cpu()
            return probs

        return keep

    def found(self) -> list[Tensor]:
        return [self.sums[index] for index in range(len(self.columns))]


def painted(
    model: t2iedit.Model, arm: Arm, tasks: Sequence[Task]
) -> tuple[list[Image.Image], list[Tensor]]:
    """Every task's picture, and its concepts' maps."""
    images: list[Image.Image] = []
    maps: list[Tensor] = []
    sample: Any = model.pipeline
    for first in range(0, len(tasks), BATCH["cpu"]):
        batch = list(enumerate(tasks))[first : first + BATCH["cpu"]]
        gathered = Maps([columns(model, task) for _, task in batch], sample.unet.config.sample_size)
        requests = [arm.request(task, 1000 * SEED + index) for index, task in batch]
        with opened(model.denoiser, sample.scheduler, gathered, guided=True):
            images += paint(model, requests)[0]
        maps += gathered.found()
    return images, maps


def columns(model: t2iedit.Model, task: Task) -> list[list[int]]:
    tokens = model.encoders[0].tokenize(task.prompt)
    return [tokens.indices(t2iedit.locate(task.prompt, f"{c} {s}")) for c, s in task.wanted.objects]


def overlap(maps: Tensor) -> float:
    shares = maps.flatten(1) / maps.flatten(1).sum(dim=1, keepdim=True)
    return float(torch.minimum(shares[0], shares[1]).sum())


def dominance(maps: Tensor) -> float:
    first = float((maps[0] > maps[1]).float().mean())
    return max(first, 1 - first)


def similarity(model: t2iedit.Model, arm: Arm, task: Task) -> tuple[float, float]:
    """The cosine between the concepts' mean rows, and the relative change of the rows by the arm's edits."""
    edited, plain = (
        t2iedit.encode(model, request).prompt[0].hidden.float()
        for request in (arm.request(task, 0), Arm("plain", run=arm.run).request(task, 0))
    )
    first, second = columns(model, task)
    means = [edited[rows].mean(dim=0) for rows in (first, second)]
    both = first + second
    change = (edited[both] - plain[both]).norm() / plain[both].norm()
    return float(torch.cosine_similarity(*means, dim=0)), float(change)


def rows_of(model: t2iedit.Model, arm: Arm, tasks: Sequence[Task], maps: Sequence[Tensor]) -> list:
    cosines, changes = zip(*(similarity(model, arm, task) for task in tasks), strict=True)
    return [
        mean(arm.name, "cosine of the two concepts' rows", cosines),
        mean(arm.name, "change of the concepts' rows", changes),
        mean(arm.name, "overlap of their maps", [overlap(each) for each in maps]),
        mean(arm.name, "dominance of one", [dominance(each) for each in maps]),
    ]


def halves(right: Sequence[bool], measure: Sequence[float], name: str) -> list[dict[str, Any]]:
    """How often pictures are right whose maps have less, and more, of something than the median."""
    order, middle = np.argsort(measure, kind="stable"), len(right) // 2
    parts = {"less": order[:middle], "more": order[middle:]}
    return [
        share(
            "plain",
            f"right, {name} {part} than the median",
            sum(right[k] for k in which),
            len(which),
        )
        for part, which in parts.items()
    ]


def sheet(
    tasks: Sequence[Task],
    images: dict[str, list[Image.Image]],
    maps: dict[str, list[Tensor]],
) -> Image.Image:
    """Pictures beside where each concept was looked for."""
    heads = [head for name in ARMS for head in (name, "first concept", "second concept")]
    cells = []
    for index in range(min(SHOWN, len(tasks))):
        row = []
        for name in ARMS:
            image, heat = images[name][index], maps[name][index]
            row += [image, *(overlay(image, concept / heat.max()) for concept in heat)]
        cells.append(row)
    return labelled_grid(cells, heads, [task.prompt for task in tasks[: len(cells)]])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-m", "--model", default="shapes")
    parser.add_argument("--n", type=int, default=96, help="prompts of two objects")
    parser.add_argument("--quick", action="store_true", help="eight prompts")
    options = parser.parse_args()
    silence_libraries()
    choice: Path = choice_file(quick=options.quick)
    if not choice.exists():
        raise UserError(f'no options are chosen in "{choice}" yet; run composition.py choose first')
    held = json.loads(choice.read_text())["chosen"]
    model = t2iedit.open_model(options.model)
    tasks = Detector().tasks({"two objects": 8 if options.quick else options.n}, SEED)
    images, maps, rows = {}, {}, []
    for name in ARMS:
        arm = Arm(**held[name])
        images[name], maps[name] = painted(model, arm, tasks)
        rows += rows_of(model, arm, tasks, maps[name])
    right = [
        of_detection(detect(image), task.wanted).right
        for image, task in zip(images["plain"], tasks, strict=True)
    ]
    rows += halves(right, [overlap(each) for each in maps["plain"]], "overlap")
    rows += halves(right, [dominance(each) for each in maps["plain"]], "dominance")
    show(rows)
    stem = "composition-why" + "-quick" * options.quick
    save(stem, rows, {"model": model.name, "n": len(tasks)})
    sheet(tasks, images, maps).save(RESULTS / f"{stem}.png")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"composition_why: {error}")
