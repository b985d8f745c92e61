"""How often a model draws what its prompt asks, beside what the detector can see at best.

    python -m t2iedit.shapes.evaluate [-m MODEL] [--n N] [--scheduler NAME] [--jobs N] [--quick] [-o FILE.json] [--sheet FILE.png]

The ceiling of a number is that of as many drawn scenes passed through the model's autoencoder.
"""

import argparse
import json
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from t2iedit.errors import UserError
from t2iedit.schedulers import build
from t2iedit.shapes.captions import RELATIONS
from t2iedit.shapes.detector import Detection, detect
from t2iedit.shapes.renderer import render
from t2iedit.shapes.scoring import score, wilson
from t2iedit.shapes.tasks import Task, drawn, make_tasks

SETTINGS = ("steps", "guidance_scale")
BATCH = {"cpu": 16, "cuda": 125}
FULL, QUICK = 500, 64
TURBO, FEW = "shapes-turbo", (1, 2, 4)
"""The sibling, and the numbers of steps that it is measured at beside the bundled model."""
SHEET, COLUMNS, CELL, LINE = 24, 6, 192, 11

Item = TypeVar("Item")
Pair = tuple[str, str]
Seen = list[tuple[Task, Detection]]
Detecting = Callable[[Iterable[Image.Image]], Iterable[Detection]]


@dataclass(frozen=True, slots=True)
class Row:
    """One measured share; `low` and `high` are its 95 % Wilson interval."""

    name: str
    metric: str
    n: int
    value: float
    low: float
    high: float


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    pipeline, settings = open_model(options.model)
    if options.scheduler is not None:
        pipeline.scheduler = build(pipeline.scheduler, options.scheduler)
    settings |= {key: value for key in SETTINGS if (value := getattr(options, key)) is not None}
    tasks = make_tasks(QUICK if options.quick else options.n, Random(options.seed))
    prompts = [task.prompt for task in tasks]
    with detecting(options.jobs) as detected:
        seen, pictures = _seen(tasks, generated(pipeline, prompts, settings), detected)
        possible, _ = _seen(tasks, rebuilt(pipeline, tasks, Random(options.seed)), detected)
        rows, ceilings = rows_of(seen), rows_of(possible, suffix=" ceiling")
        print(table(rows, ceilings))
        for steps in FEW if options.model == "shapes" and _has_sibling() else ():
            few = few_steps(tasks, steps, detected)
            print(f"\n{TURBO}, {steps} steps\n{table(few, ceilings)}")
            rows += [replace(row, metric=f"{row.metric}, turbo {steps} steps") for row in few]
    options.output.write_text(json.dumps([asdict(row) for row in rows + ceilings], indent=1) + "\n")
    if options.sheet:
        sheet(seen, pictures).save(options.sheet)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m t2iedit.shapes.evaluate")
    parser.add_argument("-m", "--model", default="shapes", help="shapes, shapes-turbo, or a folder")
    parser.add_argument("--n", type=int, default=FULL, help="prompts a row")
    parser.add_argument("--seed", type=int, default=0, help="chooses the prompts")
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument(
        "--guidance", type=float, dest="guidance_scale", help="default: the model's own"
    )
    parser.add_argument("--scheduler", metavar="NAME", help="default: the model's own")
    parser.add_argument("--jobs", type=int, default=1, help="processes that look at pictures")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} prompts a row")
    parser.add_argument("-o", "--output", type=Path, default="benchmarks/results/shapes.json")
    parser.add_argument("--sheet", type=Path, help=f"also draw {SHEET} results into this file")
    return parser.parse_args(arguments)


def open_model(name: str) -> tuple[Any, dict[str, Any]]:
    """The model's pipeline, and the steps and guidance it asks for. Raises `ModelNotUsable`."""
    from t2iedit.opening import open_model

    model = open_model(name)
    model.pipeline.set_progress_bar_config(disable=True)
    defaults = model.defaults
    return model.pipeline, {"steps": defaults.steps, "guidance_scale": defaults.guidance_scale}


def _has_sibling() -> bool:
    from t2iedit.opening import BUNDLED

    return TURBO in BUNDLED


def few_steps(tasks: list[Task], steps: int, detected: Detecting) -> list[Row]:
    """The sibling's shares of the same prompts from the same noise."""
    pipeline, settings = open_model(TURBO)
    prompts = [task.prompt for task in tasks]
    images = generated(pipeline, prompts, settings | {"steps": steps})
    return rows_of(_seen(tasks, images, detected)[0])


@contextmanager
def detecting(jobs: int) -> Iterator[Detecting]:
    """The detector over pictures as they come, in so many processes beside this one, or in this one."""
    if jobs <= 1:
        yield lambda images: map(detect, images)
        return
    # Not forked, since this process may hold a GPU.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield lambda images: pool.map(detect, images)


def generated(pipeline: Any, prompts: list[str], settings: dict[str, Any]) -> Iterator[Image.Image]:
    """A picture for each prompt; prompt k starts from the noise of seed k, whatever the batch."""
    import torch

    with tqdm(total=len(prompts), desc="generating", unit="image") as progress:
        for batch in _batches(enumerate(prompts), pipeline.device):
            yield from pipeline(
                [prompt for _, prompt in batch],
                num_inference_steps=settings["steps"],
                guidance_scale=settings["guidance_scale"],
                generator=[torch.Generator().manual_seed(k) for k, _ in batch],
            ).images
            progress.update(len(batch))


def _batches(items: Iterable[Item], device: Any) -> Iterator[list[Item]]:
    rest = iter(items)
    while batch := list(islice(rest, BATCH.get(device.type, BATCH["cpu"]))):
        yield batch


def rebuilt(pipeline: Any, tasks: list[Task], random: Random) -> Iterator[Image.Image]:
    """For each task a scene that fulfils it, drawn, encoded and decoded."""
    import torch

    vae, size = pipeline.vae, pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    with torch.no_grad(), tqdm(total=len(tasks), desc="ceiling", unit="image") as progress:
        for batch in _batches(tasks, vae.device):
            scenes = [render(drawn(task, random), size, random) for task in batch]
            pixels = pipeline.image_processor.preprocess(scenes).to(vae.device, vae.dtype)
            decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
            yield from pipeline.image_processor.postprocess(decoded)
            progress.update(len(batch))


def _seen(
    tasks: list[Task], images: Iterator[Image.Image], detected: Detecting
) -> tuple[Seen, dict[int, Image.Image]]:
    """What each picture shows, and the few pictures, of all kinds of task, that go on the sheet."""
    kept = set(np.linspace(0, len(tasks) - 1, SHEET).astype(int).tolist())
    pictures = {}

    def watched() -> Iterator[Image.Image]:
        for index, image in enumerate(images):
            if index in kept:
                pictures[index] = image
            yield image

    return list(zip(tasks, detected(watched()), strict=True)), pictures


def rows_of(seen: Seen, *, suffix: str = "") -> list[Row]:
    """Shares of pictures, or for "present", "dropped" and "leaked" of the objects asked for."""
    totals: defaultdict[Pair, list[int]] = defaultdict(lambda: [0, 0])
    for task, detection in seen:
        for key, (successes, trials) in _measured(task, detection).items():
            totals[key][0] += successes
            totals[key][1] += trials
    return [
        Row(name, metric + suffix, n, k / n, *wilson(k, n))
        for (name, metric), (k, n) in totals.items()
    ]


def _measured(task: Task, detection: Detection) -> dict[Pair, tuple[int, int]]:
    """Successes and trials under row and metric."""
    result, count = score(detection, task.wanted), len(task.wanted.objects)
    metrics = {
        "right": (int(result.right), 1),
        "shapes right": (int(result.shapes_right), 1),
        "colours right": (int(result.colors_right), 1),
    }
    if count > 1:
        metrics["present"] = (result.present, count)
        metrics["dropped"] = (result.dropped, count)
        metrics["leaked"] = (min(result.leaked, count), count)
    if task.relation is not None:
        metrics["placed"] = (int(is_placed(detection, task)), 1)
    if result.background_right is not None:
        metrics["background right"] = (int(result.background_right), 1)
    rows = [task.row, *([f"on {task.wanted.background}"] if task.wanted.background else [])]
    return {(row, metric): value for row in rows for metric, value in metrics.items()}


def is_placed(detection: Detection, task: Task) -> bool:
    """Whether the two objects asked for are there and lie as asked."""
    found = {(item.color, item.shape): item for item in detection.objects}
    first, second = (found.get(pair) for pair in task.wanted.objects)
    relation: Callable[[Any, Any], float] = RELATIONS[task.relation or ""]
    return first is not None and second is not None and relation(first, second) > 0


def table(rows: list[Row], ceilings: list[Row]) -> str:
    """Rows and their ceilings side by side, in per cent."""
    lines = [f"{'':14} {'':16} {'n':>5}  {'model':>6} {'95 %':>13}  {'ceiling':>7} {'95 %':>13}"]
    for row, top in zip(rows, ceilings, strict=True):
        lines.append(f"{row.name:14} {row.metric:16} {row.n:5}  {_share(row)}   {_share(top)}")
    return "\n".join(lines)


def _share(row: Row) -> str:
    return f"{row.value:6.1%} {row.low:6.1%}-{row.high:6.1%}"


def sheet(seen: Seen, pictures: dict[int, Image.Image]) -> Image.Image:
    """Pictures under their prompts, over what was detected in them."""
    height = CELL + 6 * LINE
    page = Image.new("RGB", (COLUMNS * CELL, -(-len(pictures) // COLUMNS) * height), "white")
    draw = ImageDraw.Draw(page)
    for place_, (index, image) in enumerate(pictures.items()):
        task, detection = seen[index]
        x, y = place_ % COLUMNS * CELL, place_ // COLUMNS * height
        draw.text((x + 2, y), textwrap.fill(task.prompt, 31), "black", font_size=10)
        page.paste(image.resize((CELL - 4, CELL - 4)), (x + 2, y + 3 * LINE))
        color = "green" if score(detection, task.wanted).right else "red"
        found = textwrap.fill(_described(detection), 31)
        draw.text((x + 2, y + 3 * LINE + CELL - 2), found, color, font_size=10)
    return page


def _described(detection: Detection) -> str:
    objects = ", ".join(f"{item.color} {item.shape}" for item in detection.objects)
    return f"{objects or 'nothing'} on {detection.background}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
