"""Encoding throughput beside compel's on the same encoder and prompts, and what DECOR adds to many prompts.

    python benchmarks/encoding.py [-m MODEL] [--prompts N] [--quick]

Without -m, an encoder of Stable Diffusion 1.5's true size with random weights, which cost as much as trained ones. Each
batch is done by both sides, one right after the other and in turns of who begins; a figure is the median of the batches'
ratios, or for DECOR the whole time's, with a 95 % bootstrap interval over the batches. Passes through the encoder are
counted for both sides, so that a difference in time can be understood.
"""

import argparse
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from common import save, show
from scipy.stats import bootstrap
from transformers import CLIPTextConfig, CLIPTextModel

import t2iedit
from t2iedit.plugins import installed
from t2iedit.tiny import tiny_pipeline

BATCH = 64
WORDS = ("a", "red", "blue", "cat", "dog", "car", "fog", "photo", "of", "and")
Work = Callable[[list[str]], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model")
    parser.add_argument("--batches", type=int, default=9, help=f"of {BATCH}, beside compel")
    parser.add_argument("--prompts", type=int, default=10_000, help="that DECOR edits")
    parser.add_argument(
        "--quick", action="store_true", help="two batches beside compel, two edited"
    )
    args = parser.parse_args()
    batches, count = (2, 2 * BATCH) if args.quick else (args.batches, args.prompts)
    model = t2iedit.open_model(args.model or full_size())
    rows = beside_compel(model, batches) + with_decor(model, count)
    show(rows)
    if not args.quick:
        save(
            "encoding", rows, {"model": args.model or "an encoder of SD 1.5's size", "batch": BATCH}
        )


def full_size() -> Any:
    """A pipeline around an encoder of SD 1.5's size."""
    pipeline: Any = tiny_pipeline("sd1")
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
    return pipeline


def prompts(count: int) -> list[str]:
    """Distinct prompts of 4 to 12 words, in an order that does not sort them by length."""
    rng = random.Random(0)
    chosen = {" ".join(rng.choices(WORDS, k=rng.randint(4, 12))): None for _ in range(2 * count)}
    return list(itertools.islice(chosen, count))


def beside_compel(model: t2iedit.Model, batches: int) -> list[dict[str, Any]]:
    from compel import CompelForSD, CompelForSDXL

    kind = CompelForSDXL if len(model.encoders) == 2 else CompelForSD
    compel = kind(model.pipeline)
    sides: dict[str, Work] = {"t2iedit": lambda texts: ours(model, texts), "compel": compel}
    taken = paired(sides, prompts((batches + 1) * BATCH))
    rows = [figure(name, "prompts/s", BATCH / seconds) for name, seconds in taken.items()]
    rows.append(figure("t2iedit over compel", "times as fast", taken["compel"] / taken["t2iedit"]))
    return rows + [row for name, work in sides.items() for row in counts(model, name, work)]


def with_decor(model: t2iedit.Model, count: int) -> list[dict[str, Any]]:
    decor = installed().edit("decor")(undesired=["fog"])
    sides: dict[str, Work] = {
        "plain": lambda texts: ours(model, texts),
        "decor": lambda texts: ours(model, texts, decor),
    }
    taken = paired(sides, prompts(count + BATCH))
    plain, edited = taken["plain"], taken["decor"]

    def added(plain: np.ndarray, edited: np.ndarray, axis: int = -1) -> Any:
        return 100 * (edited.sum(axis=axis) / plain.sum(axis=axis) - 1)

    low, high = interval((plain, edited), added)
    value = float(added(plain, edited))
    whole = {"name": "DECOR", "metric": "% added", "n": count, "value": value, "low": low, "high": high}  # fmt: skip
    return [whole, *counts(model, "plain + DECOR", sides["decor"])]


def ours(model: t2iedit.Model, texts: list[str], *edits: t2iedit.Edit) -> None:
    """Prompts alone, as compel does them: without guidance there is no negative."""
    requests = [t2iedit.Request(text, guidance_scale=1, edits=edits) for text in texts]
    t2iedit.condition([t2iedit.start(model, request) for request in requests])


def paired(sides: dict[str, Work], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Seconds for each full batch but the first, which warms up; who begins changes from batch to batch."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    starts = range(0, len(texts) - BATCH + 1, BATCH)
    for number, first in enumerate(starts):
        order = list(sides) if number % 2 else list(sides)[::-1]
        for name in order:
            taken[name].append(seconds(sides[name], list(texts[first : first + BATCH])))
    return {name: np.array(values[1:]) for name, values in taken.items()}


def seconds(work: Work, texts: list[str]) -> float:
    begin = time.perf_counter()
    with torch.no_grad():
        work(texts)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def counts(model: t2iedit.Model, name: str, work: Work) -> list[dict[str, Any]]:
    """What a batch costs the first encoder, counted."""
    with counted(model) as found, torch.no_grad():
        work(prompts(BATCH))
    return [
        {"name": name, "metric": metric, "n": BATCH, "value": value, "low": value, "high": value}
        for metric, value in found.items()
    ]


@contextmanager
def counted(model: t2iedit.Model) -> Iterator[dict[str, int]]:
    found = {"passes a batch": 0, "rows a batch": 0}

    def listen(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        found["passes a batch"] += 1
        found["rows a batch"] += len(ids)

    hook = model.encoders[0].transformer.register_forward_pre_hook(listen, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


def figure(name: str, metric: str, values: np.ndarray) -> dict[str, Any]:
    low, high = interval((values,), np.median)
    value = float(np.median(values))
    return {
        "name": name,
        "metric": metric,
        "n": len(values),
        "value": value,
        "low": low,
        "high": high,
    }


def interval(samples: tuple[np.ndarray, ...], statistic: Callable) -> tuple[float, float]:
    """95 %, by the percentile bootstrap over batches; batches stay together."""
    if len(samples[0]) < 2:
        values = [float(statistic(*samples, axis=-1))] * 2
        return values[0], values[1]
    found = bootstrap(
        samples, statistic, paired=True, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


if __name__ == "__main__":
    main()
