"""Seconds per image of a model on this machine, with and without DECOR, and what a thousand images come to.

    python benchmarks/throughput.py [-m MODEL] [--steps N] [--size WxH] [--images N] [--quick]

It also reads and plans a file of requests, as a batch does before it paints. Plain and edited images take turns. A figure is the median of the images with the smallest and the largest; opening the
model is timed once and stands apart, since a batch does it once a worker.
"""

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import row, save, show

import t2iedit
from t2iedit import batch
from t2iedit.plugins import installed
from t2iedit.request import parse_size
from t2iedit.request_files import read_lines
from t2iedit.tiny import tiny_pipeline

REQUESTS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default="shapes")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--size")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="a tiny random model, two images")
    args = parser.parse_args()
    begin = time.perf_counter()
    model = t2iedit.open_model(tiny_pipeline("sd1") if args.quick else args.model)
    opening = time.perf_counter() - begin
    size = None if args.size is None else parse_size(args.size, "--size")
    request = t2iedit.Request(
        "a red circle and a blue square", steps=2 if args.quick else args.steps, size=size
    )
    rows = [row(args.model, "opening, s", [opening])]
    for label, taken in measured(model, request, 2 if args.quick else args.images).items():
        rows.append(row(args.model, f"s per image, {label}", taken))
        hours = [1000 * seconds / 3600 for seconds in taken]
        rows.append(row(args.model, f"h per 1000 images, {label}", hours))
    seconds, kilobytes = planning(REQUESTS // 10 if args.quick else REQUESTS)
    rows += [
        row("planning", "ms per request", [1000 * seconds]),
        row("planning", "KB per request", [kilobytes]),
    ]
    show(rows)
    if not args.quick:
        save(
            f"throughput-{args.model.rstrip('/').rpartition('/')[2]}",
            rows,
            settings(model, request),
        )


def measured(
    model: t2iedit.Model, request: t2iedit.Request, count: int
) -> dict[str, Sequence[float]]:
    """Seconds of each image but the first, which warms up."""
    decor = installed().edit("decor")(undesired=["fog"])
    sides = {"plain": (), "decor": (decor,)}
    taken: dict[str, list[float]] = {label: [] for label in sides}
    for seed in range(count + 1):
        for label, edits in sides.items():
            single = request.model_copy(update={"edits": edits, "seeds": (seed,)})
            begin = time.perf_counter()
            t2iedit.generate(model, single)
            taken[label].append(time.perf_counter() - begin)
    return {label: values[1:] for label, values in taken.items()}


def planning(count: int) -> tuple[float, float]:
    """Seconds and kilobytes a request, to read it from a file, name its image and hold it as a task."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.txt"
        path.write_text("".join(f"a red circle and {n} blue squares\n" for n in range(count)))
        begin = time.perf_counter()
        batch.plan(read_lines(path), None)
        seconds = (time.perf_counter() - begin) / count
        tracemalloc.start()
        held = batch.plan(read_lines(path), None)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held.images == count
    return seconds, size / 1000 / count


def settings(model: t2iedit.Model, request: t2iedit.Request) -> dict[str, Any]:
    return {
        "steps": request.steps or model.defaults.steps,
        "size": request.size or model.defaults.size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU",
    }


if __name__ == "__main__":
    main()
