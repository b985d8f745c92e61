"""What quantisation does to pictures whose content a detector can tell: MixDQ's ablation, and lower widths.

    python benchmarks/quantization.py -m shapes
    python benchmarks/quantization.py -m shapes-turbo --steps 4
    python benchmarks/quantization.py -m shapes --outlier
    python benchmarks/quantization.py --quick

Rows are saved as they come, and with --folder the same command goes on where it was stopped.

Each row is quantised into a folder, opened packed and run on the same prompts and seeds: similarity (SSIM) and signal to
noise (SQNR) to the floating-point model, the share of prompts that the detector finds fulfilled and how it differs from
that model's on the same prompts, true bits, bytes, and seconds a picture, taken in turn with that model. Then the rows
that go beyond the paper, and what the edits do on the packed model. With `--outlier` the text embedding gets channels that are 800 in BOS rows and 0 elsewhere, which the
widened `to_k` and `to_v` multiply by zero: the floating-point model is unchanged, and rows are simulated.
"""

import argparse
import json
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from common import RESULTS, paired, row, save, share, show
from diffusers import UNet2DConditionModel
from PIL.Image import Image
from t2iedit_decor import Decor
from t2iedit_mixdq.calibration import Settings
from t2iedit_mixdq.checkpoint import load_unet, read_schemes, write_model
from t2iedit_mixdq.prompts import SHAPES
from t2iedit_mixdq.quantising import Quantising, Wish
from t2iedit_mixdq.recipe import mean_bits
from t2iedit_mixdq.report import float_bytes, static_bytes
from t2iedit_mixdq.saturation import TextClipped
from t2iedit_mixdq.sensitivity import Bench, sqnr, ssim
from t2iedit_mixdq.wiring import survey
from t2iedit_zero import T2IZero
from together import paint

import t2iedit
from t2iedit.shapes.detector import detect
from t2iedit.shapes.scoring import score
from t2iedit.shapes.tasks import Task, make_tasks
from t2iedit.testing import tiny_pipeline

ROWS: dict[str, tuple[Wish, bool]] = {
    "naive W8A8": (Wish(8, 8), False),
    "+ BOS-aware": (Wish(8, 8), True),
    "+ mixed, one metric": (Wish(8, 7.77, decoupled=False), True),
    "+ mixed, decoupled": (Wish(8, 7.77), True),
    "W5A8": (Wish(5, 8), True),
    "W4A8": (Wish(4, 8), True),
    "W4A16": (Wish(4, 16), True),
    "W3.66A16": (Wish(3.66, 16), True),
    "W4A8, second derivatives": (Wish(4, 8, hessian=True), True),
    "W4A8, FlexRound": (Wish(4, 8, flexround=True), True),
    "W4A8, groups of 64": (Wish(4, 8, group=64), True),
    "W4A8, FlexRound, groups": (Wish(4, 8, flexround=True, group=64), True),
    "W8A8, text encoders too": (Wish(8, 8, text_encoders=True), True),
}
"""Each row's wish, and whether BOS rows are left alone; the last five go beyond the paper."""
ABLATION = tuple(ROWS)[:4]
"""The rows of the paper's ablation, which is what outliers are for."""
EDITS = {
    "decor": Decor(undesired=["a red circle"], alpha=0.5),
    "t2i_zero": T2IZero(concepts=["circle"]),
}
"""Edits that are tried on a packed model, with prompts that have a circle."""
EDITED = [f"W8A8 with {name}" for name in EDITS]
BATCH = 16
TIMED = 8
"""Pictures that are timed in turn."""
QUICK = [
    "naive W8A8",
    "+ BOS-aware",
    "W4A16",
    "W4A8, second derivatives",
    "W8A8, text encoders too",
]
OUTLIERS = 4
"""Channels appended to the text embedding with `--outlier`."""


@dataclass
class Work:
    """The model, its settings, and what it paints unquantised."""

    args: argparse.Namespace
    model: t2iedit.Model
    settings: Settings
    tasks: list[Task]
    folder: Path
    references: list[Image]
    right: list[bool]
    bench: Bench


def main() -> None:
    args = arguments()
    model = opened(args)
    tasks = make_tasks(args.n, Random(0))
    settings = Settings(SHAPES[: args.calibration], steps=args.steps)
    with ExitStack() as stack:
        scratch = args.folder or stack.enter_context(tempfile.TemporaryDirectory())
        references = pictures(model, tasks, args.steps)
        judged = replace(settings, prompts=settings.prompts[: args.judges])
        bench = Bench(model, judged, {})
        right = fulfilled(tasks, references)
        work = Work(args, model, settings, tasks, Path(scratch), references, right, bench)
        rows = measured_before(args)
        if not rows:
            layers = survey(model.denoiser)
            whole = float_bytes(layers, model.denoiser)
            rows = [accuracy("floating point", right), row("floating point", "bytes", [whole])]
            show(rows)
        for name in args.only or (ABLATION if args.outlier else ROWS):
            if not any(made["name"] == name for made in rows):
                rows = kept(args, [*rows, *measure(work, name)], name)
        if not args.outlier and not any(made["name"] in EDITED for made in rows):
            kept(args, [*rows, *edited(work)], *EDITED)


def stem(args: argparse.Namespace) -> str:
    return f"quantization-{Path(args.model).name}{'-outlier' if args.outlier else ''}"


def told(args: argparse.Namespace) -> dict[str, Any]:
    """What rows depend on."""
    return {key: value for key, value in vars(args).items() if key not in ("only", "folder")}


def measured_before(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a run with the same settings that was stopped."""
    path = RESULTS / f"{stem(args)}.json"
    if args.quick or not args.folder or not path.exists():
        return []
    stored = json.loads(path.read_text())
    rows = stored["rows"] if stored["settings"] == told(args) else []
    print(f"{len(rows)} rows are there already, in {path}")
    return rows


def kept(args: argparse.Namespace, rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """The rows, those of these names shown, and all of them saved: a run takes long."""
    show([made for made in rows if made["name"] in names])
    if not args.quick:
        save(stem(args), rows, told(args))
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-m", "--model", default="shapes")
    parser.add_argument("--n", type=int, default=32, help="prompts of each of seven kinds")
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--judges", type=int, default=2, help="prompts that judge sensitivity")
    parser.add_argument("--calibration", type=int, default=16, help="calibration prompts")
    parser.add_argument("--only", nargs="*", choices=ROWS)
    parser.add_argument("--outlier", action="store_true", help="with BOS outliers, simulated")
    parser.add_argument(
        "--folder", help="where calibration and sensitivity are kept; a run goes on"
    )
    parser.add_argument("--quick", action="store_true", help="an untrained tiny model, few rows")
    args = parser.parse_args()
    if args.quick:
        args.n, args.steps, args.judges, args.calibration = 1, 1, 1, 2
        args.only = args.only or QUICK[: 2 if args.outlier else None]
    return args


def opened(args: argparse.Namespace) -> t2iedit.Model:
    model = t2iedit.open_model(tiny_pipeline("sd1") if args.quick else args.model)
    if args.outlier:
        add_outliers(model)
    return model


def add_outliers(model: t2iedit.Model) -> None:
    """Widen the text axis by channels that are loud in BOS rows and that nothing listens to."""
    before: Any = model.denoiser
    config = dict(before.config) | {
        "cross_attention_dim": before.config.cross_attention_dim + OUTLIERS
    }
    widened: Any = UNet2DConditionModel.from_config(config)
    widened = widened.to(model.device, model.dtype)
    state = before.state_dict()
    for key, value in state.items():
        if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            state[key] = torch.nn.functional.pad(value, (0, OUTLIERS))
    widened.load_state_dict(state)

    def append(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        rows = kwargs["encoder_hidden_states"]
        if rows.shape[-1] == before.config.cross_attention_dim:
            loud = torch.zeros(*rows.shape[:-1], OUTLIERS, dtype=rows.dtype, device=rows.device)
            loud[:, 0] = 800
            kwargs = kwargs | {"encoder_hidden_states": torch.cat([rows, loud], dim=-1)}
        return args, kwargs

    widened.register_forward_pre_hook(append, with_kwargs=True)
    model.pipeline.unet = widened.eval().requires_grad_(False)


def measure(work: Work, name: str) -> list[dict[str, Any]]:
    """All columns of one row."""
    wish, bos_aware = ROWS[name]
    settings = replace(work.settings, bos_aware=bos_aware)
    # One working folder for all rows: calibration and sensitivity are kept and taken over.
    job = Quantising(
        work.model, replace(wish, judges=work.args.judges), settings, work.folder / "work"
    )
    recipe = job.recipe()
    layers = survey(work.model.denoiser)
    rows = [
        row(name, "bits of weights", [mean_bits(recipe.weights, layers, "weights")]),
        row(name, "bits of inputs", [mean_bits(recipe.activations, layers, "inputs")]),
    ]
    if work.args.outlier:
        judged = replace(settings, prompts=work.bench.settings.prompts)
        bench = Bench(work.model, judged, job.ranges, wish.group)
        schemes = {n: bench.scheme(n, *recipe.of(n)) for n in layers}
        with bench.quantised(schemes):
            images = pictures(work.model, work.tasks, work.args.steps)
            rows += [row(name, "SQNR in dB", [bench.signal()])]
        return rows + compared(name, work, images)
    folder = emptied(work.folder / name.replace(" ", "-").replace(",", ""))
    write_model(work.model, recipe, job.found(recipe), folder)
    packed = t2iedit.open_model(folder, dtype=work.model.dtype)
    images = pictures(packed, work.tasks, work.args.steps)
    with swapped(work.model, packed.denoiser):
        rows += [row(name, "SQNR in dB", [work.bench.signal()])]
    rows += [
        row(name, "agreement with simulation in dB", [agreement(work, folder, recipe, layers)])
    ]
    rows += [row(name, "bytes", [static_bytes(packed.denoiser)]), *seconds(name, work, packed)]
    return [*rows, *compared(name, work, images)]


def emptied(folder: Path) -> Path:
    """Not there, though a run that was stopped may have left it."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def seconds(name: str, work: Work, packed: t2iedit.Model) -> list[dict[str, Any]]:
    """Both models paint the same pictures in turn, after one each that is not counted."""
    pairs = []
    for index in range(-1, min(TIMED, len(work.tasks))):
        task = work.tasks[max(index, 0)]
        pair = [timed(model, task, work.args.steps) for model in (work.model, packed)]
        if index >= 0:
            pairs.append(pair)
    return [
        row(name, "seconds a picture", [quantised for _, quantised in pairs]),
        row(name, "seconds a picture, floating point", [whole for whole, _ in pairs]),
        row(name, "times as fast", [whole / quantised for whole, quantised in pairs]),
    ]


def timed(model: t2iedit.Model, task: Task, steps: int | None) -> float:
    begin = time.perf_counter()
    pictures(model, [task], steps)
    return time.perf_counter() - begin


def compared(name: str, work: Work, images: list[Image]) -> list[dict[str, Any]]:
    pairs = zip(work.references, images, strict=True)
    right = fulfilled(work.tasks, images)
    return [
        row(name, "SSIM", [ssim(reference, image) for reference, image in pairs]),
        accuracy(name, right),
        paired(
            name,
            "prompts right, less whole",
            [int(b) - int(a) for a, b in zip(work.right, right, strict=True)],
        ),
    ]


def edited(work: Work) -> list[dict[str, Any]]:
    """What each edit does to pictures on the whole model, and how near the packed model comes to that."""
    job = Quantising(work.model, Wish(8, 8), work.settings, work.folder / "work")
    recipe = job.recipe()
    folder = emptied(work.folder / "edited")
    write_model(work.model, recipe, job.found(recipe), folder)
    packed = t2iedit.open_model(folder, dtype=work.model.dtype)
    tasks = [task for task in work.tasks if "circle" in task.prompt][:TIMED] or work.tasks[:1]
    rows = []
    for name, edit in EDITS.items():
        edits = [edit] if "circle" in tasks[0].prompt else []
        plain = pictures(work.model, tasks, work.args.steps)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            whole, small = (
                pictures(model, tasks, work.args.steps, edits) for model in (work.model, packed)
            )
        clipped = [w for w in told if issubclass(w.category, TextClipped)]
        for metric, other in (("SSIM to unedited", plain), ("SSIM packed to whole", small)):
            values = [ssim(a, b) for a, b in zip(whole, other, strict=True)]
            rows.append(row(f"W8A8 with {name}", metric, values))
        rows.append(row(f"W8A8 with {name}", "prompts out of range", [len(clipped)]))
    return rows


@torch.no_grad()
def agreement(work: Work, folder: Path, recipe: Any, layers: Any) -> float:
    """SQNR of the executed UNet's outputs to the simulated one's, over the recorded inputs."""
    schemes = read_schemes(folder, recipe, layers)
    packed = load_unet(folder, work.model.device, work.model.dtype)
    values = []
    for args, kwargs, _ in work.bench.calls:
        executed = packed(*args, **kwargs)[0]
        bench = replace_bos(work.bench, recipe.bos_aware)
        with bench.quantised(schemes):
            values.append(sqnr(work.model.denoiser(*args, **kwargs)[0], executed))
    return math.fsum(values) / len(values)


def replace_bos(bench: Bench, bos_aware: bool) -> Bench:
    bench.settings = replace(bench.settings, bos_aware=bos_aware)
    return bench


@contextmanager
def swapped(model: t2iedit.Model, unet: Any) -> Iterator[None]:
    """While this holds, the model denoises with another UNet."""
    before = model.pipeline.unet
    model.pipeline.unet = unet
    try:
        yield
    finally:
        model.pipeline.unet = before


def pictures(
    model: t2iedit.Model,
    tasks: list[Task],
    steps: int | None,
    edits: Sequence[t2iedit.Edit] = (),
) -> list[Image]:
    """One for each task, from the seed of its place."""
    requests = [
        t2iedit.Request(task.prompt, seeds=(index,), steps=steps, edits=edits)
        for index, task in enumerate(tasks)
    ]
    batches = [requests[first : first + BATCH] for first in range(0, len(requests), BATCH)]
    return [image for batch in batches for image in paint(model, batch)[0]]


def fulfilled(tasks: list[Task], images: list[Image]) -> list[bool]:
    """Whether the detector finds what each prompt asks for."""
    pairs = zip(tasks, images, strict=True)
    return [score(detect(image), task.wanted).right for task, image in pairs]


def accuracy(name: str, right: list[bool]) -> dict[str, Any]:
    """The share of prompts fulfilled, with Wilson's interval."""
    return share(name, "prompts right", sum(right), len(right))


if __name__ == "__main__":
    main()
