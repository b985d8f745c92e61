"""Seconds per image of a model on this machine, with and without DECOR, and how long opening it takes.

python benchmarks/throughput.py [-m MODEL] [--steps N] [--size WxH] [--images N] [--quick]
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import t2iedit
from t2iedit.plugins import installed
from t2iedit.request import parse_size
from t2iedit.tiny import tiny_pipeline

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default="shapes")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--size")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="a tiny random model, two images")
    parser.add_argument("-o", "--output", default=HERE / "results" / "throughput.json", type=Path)
    args = parser.parse_args()
    begin = time.perf_counter()
    model = t2iedit.open_model(tiny_pipeline("sd1") if args.quick else args.model)
    opening = time.perf_counter() - begin
    size = None if args.size is None else parse_size(args.size, "--size")
    values: dict[str, Any] = {"steps": 2 if args.quick else args.steps, "size": size}
    count = 2 if args.quick else args.images
    decor = installed().edit("decor")(undesired=["fog"])
    name = f"{args.model} on {device(model)}"
    rows = [{"name": name, "metric": "opening, s", "n": 1, "value": round(opening, 3)}]
    for label, edits in (("plain", ()), ("decor", (decor,))):
        request = t2iedit.Request("a red circle and a blue square", edits=edits, **values)
        taken = [once(model, request.for_seed(seed)) for seed in range(count + 1)][1:]
        low, high = min(taken), max(taken)
        figures = {"value": statistics.median(taken), "low": low, "high": high}
        rounded = {key: round(value, 4) for key, value in figures.items()}
        rows.append({"name": name, "metric": f"s per image, {label}", "n": count} | rounded)
    for row in rows:
        print(row)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(rows, indent=1) + "\n")


def once(model: t2iedit.Model, request: t2iedit.Request) -> float:
    begin = time.perf_counter()
    t2iedit.generate(model, request)
    return time.perf_counter() - begin


def device(model: t2iedit.Model) -> str:
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
