"""Encoding throughput beside compel's on the same encoder and prompts, and what DECOR adds to many prompts.

    python benchmarks/encoding.py [-m MODEL] [--quick]

Without -m, an encoder of Stable Diffusion 1.5's true size with random weights, which cost as much as trained ones. Both
sides take turns, and the ratio is of the same run. An interval is the smallest and largest of the repeats.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel

import t2iedit
from t2iedit.tiny import tiny_pipeline

HERE = Path(__file__).parent
WORDS = ("a", "red", "blue", "cat", "dog", "car", "fog", "photo", "of", "and")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("-o", "--output", default=HERE / "results" / "encoding.json", type=Path)
    args = parser.parse_args()
    model = t2iedit.open_model(args.model) if args.model else full_size(quick=args.quick)
    rows = beside_compel(model, batch=64, repeats=2 if args.quick else 7)
    rows += with_decor(model, count=64 if args.quick else 10_000)
    for row in rows:
        print(
            f"{row['name']:<28} {row['metric']:<18} {row['value']:>10} ({row['low']} to {row['high']})"
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(rows, indent=1) + "\n")


def full_size(*, quick: bool) -> t2iedit.Model:
    """A pipeline around an encoder of SD 1.5's size; small under --quick."""
    pipeline: Any = tiny_pipeline("sd1")
    if not quick:
        small = pipeline.text_encoder.config
        config = CLIPTextConfig(
            vocab_size=49408,
            projection_dim=768,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            bos_token_id=small.bos_token_id,
            eos_token_id=small.eos_token_id,
            pad_token_id=small.pad_token_id,
        )
        pipeline.text_encoder = CLIPTextModel(config)
    return t2iedit.open_model(pipeline)


def prompts(count: int) -> list[str]:
    """Distinct prompts of a few words."""
    chosen = itertools.product(WORDS, repeat=4)
    return [" ".join(words) for words in itertools.islice(chosen, count)]


def beside_compel(model: t2iedit.Model, batch: int, repeats: int) -> list[dict[str, Any]]:
    from compel import CompelForSD, CompelForSDXL

    kind = CompelForSDXL if len(model.encoders) == 2 else CompelForSD
    compel = kind(model.pipeline)
    texts = prompts(batch)
    times: dict[str, list[float]] = {"t2iedit": [], "compel": []}
    for _ in range(repeats + 1):
        times["t2iedit"].append(seconds(lambda: ours(model, texts)))
        times["compel"].append(seconds(lambda: compel(texts)))
    # The first of each is warm-up.
    kept = {name: values[1:] for name, values in times.items()}
    ratios = [b / a for a, b in zip(kept["t2iedit"], kept["compel"], strict=True)]
    rows = [
        row(name, "prompts/s", batch, [batch / t for t in taken]) for name, taken in kept.items()
    ]
    return [*rows, row("t2iedit over compel", "times as fast", batch, ratios)]


def ours(model: t2iedit.Model, texts: list[str], *edits: t2iedit.Edit) -> None:
    requests = [t2iedit.Request(text, guidance_scale=1, edits=edits) for text in texts]
    t2iedit.condition([t2iedit.start(model, request) for request in requests])


def with_decor(model: t2iedit.Model, count: int, batch: int = 64) -> list[dict[str, Any]]:
    from t2iedit.plugins import installed

    decor = installed().edit("decor")(undesired=["fog"])
    texts = prompts(count)
    added = []
    for first in range(0, count, batch):
        chunk = texts[first : first + batch]
        plain = seconds(lambda chunk=chunk: ours(model, chunk))
        edited = seconds(lambda chunk=chunk: ours(model, chunk, decor))
        added.append((plain, edited))
    whole = [100 * (edited / plain - 1) for plain, edited in added]
    total = 100 * (sum(e for _, e in added) / sum(p for p, _ in added) - 1)
    return [row("DECOR", "% added", count, whole, total)]


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    with torch.no_grad():
        work()
    return time.perf_counter() - begin


def row(
    name: str, metric: str, n: int, values: list[float], value: float | None = None
) -> dict[str, Any]:
    middle = statistics.median(values) if value is None else value
    figures = {"value": middle, "low": min(values), "high": max(values)}
    return {"name": name, "metric": metric, "n": n} | {k: round(v, 3) for k, v in figures.items()}


if __name__ == "__main__":
    main()
