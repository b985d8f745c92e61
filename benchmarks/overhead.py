"""What each edit costs per image, against plain, in turns on the same machine.

    python benchmarks/overhead.py                     shapes, and SD 1.5 and SDXL in their true size with random weights
    python benchmarks/overhead.py --only shapes sd15  the others' rows stay as they are
    python benchmarks/overhead.py -m MODEL            any other checkpoint
    python benchmarks/overhead.py --quick             tiny random models

- An edit of embeddings acts once, before the first step: its milliseconds more than plain's encoding, and their share of an
  image of 20 guided steps. In a batch what does not depend on the prompt is known after the first image.
- Suppression acts in steps: a step with it over one without. Its own default acts in the first third of the steps.

Medians, with 95 % intervals bootstrapped over the turns. Speed does not depend on weights, so random ones serve; they are
of 16 bits where the machine computes in them.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bars import bars
from common import RESULTS, in_own_process, median_of, save, show
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from unets import random_unet

import t2iedit
from t2iedit.opening import computes_in_bfloat16
from t2iedit.plugins import installed
from t2iedit.tiny import tiny_pipeline, tiny_tokenizer

STEPS = 20
PROMPTS = ("a red cat and a blue dog", "a red car and a blue cat", "a red dog and a blue car")
CONCEPTS = {prompt: [" ".join(prompt.split()[i : i + 2]) for i in (1, 5)] for prompt in PROMPTS}
EMBEDDINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "decor, one undesired prompt": ("decor", {"undesired": ["fog"]}),
    "decor, four": ("decor", {"undesired": ["fog", "a car", "a photo", "a dog and a cat"]}),
    "t2i_zero, algorithm 1": ("t2i_zero", {}),
}
ACTING: dict[str, Any] = {"alpha": 0.0, "suppression": 1.0, "suppress_until": 1.0}
ATTENTION: dict[str, dict[str, Any]] = {
    "t2i_zero, algorithm 2": ACTING,
    "t2i_zero, algorithm 2 in all maps": ACTING | {"smallest_map": 1},
    "t2i_zero, algorithm 2, each head": ACTING | {"heads": "each"},
}
TEXT_ENCODERS: dict[str, list[tuple[type, dict[str, int]]]] = {
    "sd15": [(CLIPTextModel, {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12})],
    "sdxl": [
        (CLIPTextModel, {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}),
        (CLIPTextModelWithProjection, {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, "projection_dim": 1280}),
    ],
}  # fmt: skip
MODELS = ("shapes", "sd15", "sdxl")
ENCODINGS = 4
"""Times a turn that a prompt is encoded with each edit."""


def measured(
    name: str, model: t2iedit.Model, size: tuple[int, int] | None, turns: int
) -> list[dict]:
    values: dict[str, Any] = {"size": size, "guidance_scale": 5.0}
    # Those of the large ones take long enough to be timed one at a time.
    steps = step_times(model, values, turns, 1 if name in TEXT_ENCODERS else 3)
    image = STEPS * float(np.median(steps["plain"]))
    rows = [median_of(name, "s per guided step, plain", steps["plain"])]
    for label, seconds in encoding_times(model, values, ENCODINGS * turns).items():
        rows.append(median_of(f"{name}: {label}", "encoding, ms more than plain", 1000 * seconds))
        rows.append(median_of(f"{name}: {label}", f"share of {STEPS} steps", seconds / image))
    for label in ATTENTION:
        ratios = steps[label] / steps["plain"]
        rows.append(median_of(f"{name}: {label}", "step over plain's", ratios))
    return rows


def encoding_times(
    model: t2iedit.Model, values: dict[str, Any], turns: int
) -> dict[str, np.ndarray]:
    """Seconds more than plain of starting and conditioning a run, first alone and then in a batch, turn by turn."""

    def once(edits: list[t2iedit.Edit], turn: int, known: dict[Any, Any] | None) -> float:
        request = t2iedit.Request(PROMPTS[turn % len(PROMPTS)], edits=edits, **values)
        begin = time.perf_counter()
        t2iedit.condition([t2iedit.start(model, request)], known)
        return time.perf_counter() - begin

    found: dict[str, np.ndarray] = {}
    for batch in (False, True):
        times: dict[str, list[float]] = {}
        kept: dict[str, dict[Any, Any]] = {label: {} for label in ("plain", *EMBEDDINGS)}
        for turn in range(turns + len(PROMPTS)):
            for label in kept:
                edits = (
                    [installed().edit(n)(**o) for n, o in [EMBEDDINGS[label]]]
                    if label != "plain"
                    else []
                )
                seconds = once(edits, turn, kept[label] if batch else None)
                if turn >= len(PROMPTS):
                    times.setdefault(label, []).append(seconds)
        plain = np.asarray(times.pop("plain"))
        for label, own in times.items():
            found[f"{label}, {'in a batch' if batch else 'one image'}"] = np.asarray(own) - plain
    return found


def step_times(
    model: t2iedit.Model, values: dict[str, Any], turns: int, timed: int
) -> dict[str, np.ndarray]:
    """Seconds of a step, the median of so many after a run's first, turn by turn."""
    times: dict[str, list[float]] = {label: [] for label in ("plain", *ATTENTION)}
    zero = installed().edit("t2i_zero")
    for turn in range(turns):
        for label in times:
            options = ATTENTION.get(label)
            edits = [] if options is None else [zero(concepts=CONCEPTS[PROMPTS[0]], **options)]
            stamps: list[float] = []
            t2iedit.generate(
                model,
                t2iedit.Request(PROMPTS[0], steps=timed + 1, seed=turn, edits=edits, **values),
                on_step=lambda progress, stamps=stamps: stamps.append(now(model)),
            )
            times[label].append(float(np.median(np.diff(stamps))))
    return {label: np.asarray(own) for label, own in times.items()}


def now(model: t2iedit.Model) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def built(name: str, dtype: torch.dtype, device: str) -> t2iedit.Model:
    """A pipeline of the true size with random weights, but for the autoencoder, which no edit touches."""
    pipeline: Any = tiny_pipeline("sdxl" if name == "sdxl" else "sd1")
    tokenizer = tiny_tokenizer()
    encoders = [text_encoder(kind, sizes, tokenizer) for kind, sizes in TEXT_ENCODERS[name]]
    for number, encoder in enumerate(encoders):
        end = "" if number == 0 else f"_{number + 1}"
        pipeline.register_modules(**{f"text_encoder{end}": encoder, f"tokenizer{end}": tokenizer})
    unet = random_unet(name, dtype, device).to(memory_format=torch.channels_last)
    pipeline.register_modules(unet=unet)
    pipeline.to(device=device, dtype=dtype)
    return t2iedit.open_model(pipeline)


def text_encoder(kind: Any, sizes: dict[str, int], tokenizer: Any) -> Any:
    special = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    return kind(CLIPTextConfig(vocab_size=len(tokenizer), **sizes, **special)).eval()


def charts(rows: Sequence[dict[str, Any]]) -> Image.Image:
    """The shares and ratios as bars, one below the other, each with its limit."""
    shares = [(r["name"], r["value"], 0.01) for r in rows if r["metric"].startswith("share")]
    ratios = [
        (r["name"], r["value"] - 1, 0.15) for r in rows if r["metric"].startswith("step over")
    ]
    return bars([*shares, *ratios], "more time than plain, with the limit to stay under")


def rows_of(names: Sequence[str], options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Each model in a process of its own, so that the memory of one is free for the next."""
    passed = ["--turns", str(options.turns), "--device", options.device]
    passed += ["--size", str(options.size)] if options.size else []
    for name in names:
        found = in_own_process(__file__, passed, name, "s per guided step, plain")
        show(found)
        yield found


def others(path: Path, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of other models in the file."""
    own = found[0]["name"].partition(":")[0]
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in kept if row["name"].partition(":")[0] != own]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="*", choices=MODELS, default=MODELS)
    parser.add_argument("-m", "--model", help="a checkpoint instead of those")
    parser.add_argument(
        "--size", type=int, help="of the picture, in pixels; default the model's own, 512 at random"
    )
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny random models, two turns")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def opened(name: str, device: str) -> t2iedit.Model:
    if name in TEXT_ENCODERS:
        return built(name, dtype_of_random(device), device)
    if name.startswith("tiny-"):
        return t2iedit.open_model(tiny_pipeline(name.removeprefix("tiny-")))
    return t2iedit.open_model(name, device=device)


def dtype_of_random(device: str) -> torch.dtype:
    if device == "cuda":
        return torch.float16
    return torch.bfloat16 if computes_in_bfloat16() else torch.float32


def main() -> None:
    options = arguments()
    if options.one:
        side = options.size or (512 if options.one in TEXT_ENCODERS else None)
        size = None if side is None else (side, side)
        model = opened(options.one, options.device)
        print(json.dumps(measured(options.one, model, size, options.turns)))
        return
    names = [options.model] if options.model else list(options.only)
    if options.quick:
        names, options.turns = ["tiny-sd1", "tiny-sdxl"], 2
    stem = "overhead-quick" if options.quick else "overhead"
    dtype = str(dtype_of_random(options.device)).removeprefix("torch.")
    settings = {n: getattr(options, n) for n in ("turns", "size", "device")}
    for found in rows_of(names, options):
        # Each model's as soon as they are there: the large ones take long.
        rows = [*others(RESULTS / f"{stem}.json", found), *found]
        save(stem, rows, settings | {"dtype of random weights": dtype})
        charts(rows).save(RESULTS / f"{stem}.png")


if __name__ == "__main__":
    main()
