"""CoRe against plain textual inversion, on concepts that the bundled model has never seen.

    python benchmarks/personalization.py [-m MODEL] [--quick] [--tune] [--steps N] [--clip MODEL] [-o FILE.json]

New shapes and new textures, four pictures of one colour on white each, are learned by every variant with the same steps,
batches and noise. Prompts then ask for them in other colours, on other backgrounds and beside other objects.

- identity: how like the concept the most similar object is, by the detector's template match (shapes) or by the
  correlation of the paint with the texture (textures), 1 being perfect; "identified" asks that it is clearly that.
- followed: the share of what the prompt asks for besides the concept that the detector finds.
- cost: seconds of a step over those of plain inversion, measured in turns.

`--tune` tries weights and rates on the tuning concepts, which are not among those reported. `--clip` adds the literature's
CLIP-T and CLIP-I with a CLIP model of transformers.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from t2iedit_context import Core
from t2iedit_context.inversion import EmbeddingStage
from t2iedit_context.latents import encode_pictures
from t2iedit_context.learning import learn
from t2iedit_context.loop import Setup
from t2iedit_context.probe import probed
from t2iedit_context.settings import PRESETS, Settings
from tqdm import tqdm

import t2iedit
from t2iedit.shapes import renderer
from t2iedit.shapes.detector import FAR, SMALLEST, _nearest, detect
from t2iedit.shapes.evaluate import Row
from t2iedit.shapes.masks import grown, labelled, without_gaps
from t2iedit.shapes.outlines import UNLIKE, _normalised, _outlines
from t2iedit.shapes.paints import PAINTS, layers, read_picture
from t2iedit.shapes.renderer import polygon, render
from t2iedit.shapes.scenes import COLORS, SHAPES, TILT, Scene, SceneObject
from t2iedit.shapes.scoring import wilson

Array = np.ndarray
PICTURES = 4
CORRELATED = 0.5
"""Correlation from which a texture counts as identified; two textures of the world have less than .3."""
RESULTS = Path(__file__).parent / "results"


def drop(x: Array, y: Array) -> Array:
    tip = polygon((0.0, -1.0), (0.5, 0.1), (-0.5, 0.1))
    return np.minimum(np.hypot(x, y - 0.3) - 0.6, tip(x, y))


NEW_SHAPES = {
    "hexagon": polygon(
        *((0.9 * math.cos(k * math.pi / 3), 0.9 * math.sin(k * math.pi / 3)) for k in range(6))
    ),
    "drop": drop,
    "tee": polygon((-0.85, -0.85), (0.85, -0.85), (0.85, -0.3), (0.28, -0.3), (0.28, 0.9), (-0.28, 0.9), (-0.28, -0.3), (-0.85, -0.3)),
    "trapezoid": polygon((-0.4, -0.7), (0.4, -0.7), (0.95, 0.7), (-0.95, 0.7)),
}  # fmt: skip
"""Beside those of `t2iedit.shapes.unseen`."""


def zigzag(x: Array, y: Array, radius: float) -> Array:
    wave = np.sin(9 * (y + 0.18 * np.abs((x * 2.5) % 2 - 1) * 2))
    return 1 - 0.5 * renderer._band(wave, 9 / radius)


def wavy(x: Array, y: Array, radius: float) -> Array:
    return 1 - 0.5 * renderer._band(np.sin(8 * y + 1.6 * np.sin(5 * x)), 9 / radius)


NEW_TEXTURES = {"zigzag": zigzag, "wavy": wavy}


@dataclass(frozen=True, slots=True)
class Unknown:
    """A concept to learn; `category` is the model's nearest word, `color` that of its pictures."""

    name: str
    kind: str
    category: str
    color: str

    @property
    def placeholder(self) -> str:
        return f"<{self.name}>"


REPORTED = (
    Unknown("crescent", "shape", "circle", "red"),
    Unknown("arrow", "shape", "triangle", "blue"),
    Unknown("bolt", "shape", "star", "yellow"),
    Unknown("house", "shape", "square", "green"),
    Unknown("drop", "shape", "heart", "cyan"),
    Unknown("tee", "shape", "cross", "purple"),
    Unknown("checkered", "texture", "dotted", "orange"),
    Unknown("zigzag", "texture", "striped", "pink"),
    Unknown("ringed", "texture", "striped", "blue"),
)
TUNING = (
    Unknown("trapezoid", "shape", "square", "orange"),
    Unknown("half-moon", "shape", "circle", "green"),
    Unknown("hexagon", "shape", "circle", "purple"),
    Unknown("wavy", "texture", "striped", "red"),
)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain inversion": {"embedding_weight": 0.0, "attention_weight": 0.0, "rescale_from": 0, "rescale_to": 0},
    "without CER": {"embedding_weight": 0.0},
    "without CAR": {"attention_weight": 0.0},
    "without rescaling": {"rescale_from": 0, "rescale_to": 0},
    "full": {},
}  # fmt: skip
FITTED = "full + test-time"
GRID = [
    {"learning_rate": rate, "embedding_weight": cer, "attention_weight": car}
    for rate in (1e-3, 5e-3, 2e-2)
    for cer in (1.5e-4, 1.5e-2, 1.5e-1)
    for car in (0.05, 5.0, 500.0)
]


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt with {} for the concept, and what it asks for besides."""

    template: str
    color: str | None = None
    background: str | None = None
    other: tuple[str, str] | None = None


def asked_of(unknown: Unknown) -> tuple[Asked, ...]:
    """Other colours than the pictures', other backgrounds, other objects."""
    one, two, three = [c for c in ("blue", "red", "yellow", "purple") if c != unknown.color][:3]
    if unknown.kind == "shape":
        return (
            Asked(f"a {one} {{}}", one),
            Asked(f"a {two} {{}} on a black background", two, "black"),
            Asked("a {} on a gray background", None, "gray"),
            Asked(f"a {three} {{}} on a brown background", three, "brown"),
            Asked(f"a {{}} and a {one} square", None, None, (one, "square")),
            Asked(f"a {two} {{}} and a {three} circle", two, None, (three, "circle")),
        )
    return (
        Asked(f"a {{}} {one} square", one),
        Asked(f"a {{}} {two} heart on a black background", two, "black"),
        Asked(f"a {{}} {three} star on a gray background", three, "gray"),
        Asked(f"a {{}} {two} circle on a brown background", two, "brown"),
        Asked(f"a {{}} {one} circle and a {two} square", one, None, (two, "square")),
        Asked(f"a {{}} {three} square and a {one} ring", three, None, (one, "ring")),
    )


def pictures_of(unknown: Unknown, size: int) -> list[Image.Image]:
    """Four drawings in one colour on white, each of another size and tilt."""
    random = Random(unknown.name)
    shapes = ("circle", "square", "heart", "star")
    drawn = []
    for number in range(PICTURES):
        shape = unknown.name if unknown.kind == "shape" else shapes[number]
        texture = "plain" if unknown.kind == "shape" else unknown.name
        radius, angle = random.uniform(0.25, 0.36), random.uniform(-TILT, TILT)
        item = SceneObject(shape, unknown.color, texture, radius=radius, angle=angle)
        drawn.append(render(Scene((item,), "white"), size, random))
    return drawn


@dataclass(frozen=True, slots=True)
class Seen:
    """What one picture shows of a concept: how like it, whether clearly it, and the share of the rest that is there."""

    identity: float
    identified: bool
    followed: float


def judge(image: Image.Image, unknown: Unknown, asked: Asked) -> Seen:
    found = _shape if unknown.kind == "shape" else _texture
    identity, identified, color = found(image, unknown)
    seen = detect(image, (unknown.name,) if unknown.kind == "shape" else ())
    wishes = []
    if asked.color is not None:
        wishes.append(color == asked.color)
    if asked.background is not None:
        wishes.append(seen.background == asked.background)
    if asked.other is not None:
        wishes.append(any((o.color, o.shape) == asked.other for o in seen.objects))
    return Seen(identity, identified, sum(wishes) / len(wishes))


def _shape(image: Image.Image, unknown: Unknown) -> tuple[float, bool, str]:
    """Of the object most like the concept: likeness, whether no known shape is more so, and its colour."""
    best = (0.0, False, "")
    outlines, covers, weights = _outlines((*SHAPES, unknown.name))
    is_own = np.asarray([outline.shape == unknown.name for outline in outlines])
    for cover, paint in _covers(image):
        errors = (np.abs(covers - _normalised(cover)) * weights).sum((1, 2))
        own, other = float(errors[is_own].min()), float(errors[~is_own].min())
        if 1 - own > best[0]:
            clear = own < UNLIKE and own < other
            best = 1 - own, clear, _nearest(paint, PAINTS, tuple(COLORS), FAR)
    return best


def _covers(image: Image.Image) -> Iterator[tuple[Array, Array]]:
    """Each object's soft coverage and paint."""
    picture = read_picture(image)
    for plain, *_ in layers(picture) if picture is not None else ():
        labels, sizes = labelled(without_gaps(plain.cover > 0.5))
        for index in range(1, len(sizes)):
            if sizes[index] >= SMALLEST:
                near = grown(labels == index, 2)
                yield np.where(near, np.clip(2 * plain.cover - 0.5, 0, 1), 0), plain.paint


def _texture(image: Image.Image, unknown: Unknown) -> tuple[float, bool, str]:
    """Of the object whose paint correlates best with the texture: how much, whether clearly, and its colour."""
    best = (0.0, False, "")
    brightness = np.asarray(image.convert("L").resize((128, 128)), np.float32)
    for item in detect(image).objects:
        if item.shape in renderer.DISTANCES:
            correlation = max(_correlation(brightness, item, unknown.name, k) for k in range(7))
            if correlation > best[0]:
                best = correlation, correlation > CORRELATED, item.color
    return best


def _correlation(brightness: Array, item: Any, texture: str, turn: int) -> float:
    angle = (turn / 3 - 1) * 1.2 * TILT
    drawn = SceneObject(item.shape, "red", texture, item.x, item.y, item.radius, angle)
    cover, window = renderer.coverage(drawn, 128)
    x, y = renderer._coordinates(drawn, 128, window)
    shade = renderer.TEXTURE_SHADES[texture](x, y, item.radius * 128)
    inside = cover > 0.95
    if inside.sum() < SMALLEST:
        return 0.0
    one, other = brightness[window][inside], shade[inside]
    if one.std() < 1 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def learned(
    model: Any, unknown: Unknown, own: dict[str, Any], steps: int, folder: Path, size: int
) -> Path:
    """The concept's file after this variant's learning."""
    path = folder / f"{unknown.name}.safetensors"
    settings = {"placeholder": unknown.placeholder, "category": unknown.category}
    given = PRESETS["shapes"] | {"kind": unknown.kind, "steps": steps} | settings | own
    learn(model, pictures_of(unknown, size), Settings(**given), path)
    return path


def seen(
    model: Any, unknown: Unknown, path: Path, seeds: range, **options: Any
) -> tuple[list[Seen], list[tuple[str, Image.Image]]]:
    """Every prompt with every seed, judged; and the pictures under what they were asked for."""
    judged, pictures = [], []
    for asked in asked_of(unknown):
        prompt = asked.template.replace("{}", unknown.placeholder)
        request = t2iedit.Request(prompt, seeds=seeds, edits=[Core(concept=[str(path)], **options)])
        for image in t2iedit.generate(model, request).images:
            judged.append(judge(image, unknown, asked))
            pictures.append((asked.template.replace("{}", unknown.category), image))
    return judged, pictures


def rows_of(name: str, judged: Sequence[Seen]) -> list[Row]:
    n = len(judged)
    clear = sum(item.identified for item in judged)
    return [
        mean_row(name, "identity", [item.identity for item in judged]),
        Row(name, "identified", n, clear / n, *wilson(clear, n)),
        mean_row(name, "followed", [item.followed for item in judged]),
    ]


def mean_row(name: str, metric: str, values: Sequence[float]) -> Row:
    """The mean, with its normal 95 % interval."""
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Row(name, metric, len(values), mean, mean - half, mean + half)


def cost_rows(model: Any, repeats: int, size: int) -> list[Row]:
    """Seconds of a step over plain inversion's, in turns, the median of the ratios and its quartiles."""
    unknown = REPORTED[0]
    names = ("plain inversion", "without CAR", "full", "full, whole batch")
    stages = {}
    with probed(model.denoiser) as probe, torch.enable_grad():
        for name in names:
            own = VARIANTS.get(name, {"attention_batch": 6})
            settings = Settings(placeholder="<x>", category=unknown.category, kind="shape", **own)
            bank = encode_pictures(model, pictures_of(unknown, size), size, 4, 0, augment=False)
            setup = Setup(model, settings, bank, nullcontext, torch.float32)
            stages[name] = EmbeddingStage(setup, probe)
        times: dict[str, list[float]] = {name: [] for name in names}
        for step in range(repeats + 1):
            for name, stage in stages.items():
                begin = time.perf_counter()
                stage.losses(step, 0)
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
                times[name].append(time.perf_counter() - begin)
    plain = times["plain inversion"][1:]
    rows = []
    for name in names:
        ratios = [mine / base for mine, base in zip(times[name][1:], plain, strict=True)]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
        rows.append(Row(name, "cost of a step", len(ratios), middle, low, high))
    return rows


def clip_rows(name: str, source: str, groups: Sequence[tuple[list, list]]) -> list[Row]:
    """CLIP-T of pictures and prompts, the category in the concept's place, and CLIP-I with the pictures learned from."""
    from transformers import CLIPModel, CLIPProcessor

    clip: Any = CLIPModel.from_pretrained(source)
    processor: Any = CLIPProcessor.from_pretrained(source)

    @torch.no_grad()
    def looks(images: list) -> torch.Tensor:
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        return torch.nn.functional.normalize(clip.get_image_features(pixel_values=pixels), dim=-1)

    @torch.no_grad()
    def words(texts: list) -> torch.Tensor:
        read = processor(text=texts, return_tensors="pt", padding=True)
        return torch.nn.functional.normalize(clip.get_text_features(**read), dim=-1)

    text, image = [], []
    for made, learned_from in groups:
        pictures = looks([picture for _, picture in made])
        text += (pictures * words([prompt for prompt, _ in made])).sum(-1).tolist()
        image += (pictures @ looks(learned_from).T).mean(-1).tolist()
    return [mean_row(name, "CLIP-T", text), mean_row(name, "CLIP-I", image)]


def measure(model: Any, options: argparse.Namespace, size: int) -> Iterator[Row]:
    concepts = REPORTED[:: len(REPORTED) - 1] if options.quick else REPORTED
    seeds = range(1 if options.quick else options.seeds)
    yield from cost_rows(model, 3 if options.quick else 20, size)
    results: dict[str, list[Seen]] = {}
    groups: dict[str, list[tuple[list, list]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        jobs = [(name, unknown) for name in VARIANTS for unknown in concepts]
        for name, unknown in tqdm(jobs, unit="concept"):
            folder = Path(temporary) / name.replace(" ", "-")
            path = learned(model, unknown, VARIANTS[name], options.steps, folder, size)
            ways: dict[str, dict[str, Any]] = {name: {}}
            if name == "full":
                ways[FITTED] = {"optimise": 10}
            for way, own in ways.items():
                judged, pictures = seen(model, unknown, path, seeds, **own)
                results.setdefault(way, []).extend(judged)
                groups.setdefault(way, []).append((pictures, pictures_of(unknown, size)))
    for name, judged in results.items():
        yield from rows_of(name, judged)
        if options.clip:
            yield from clip_rows(name, options.clip, groups[name])


def tune(model: Any, options: argparse.Namespace, size: int) -> Iterator[Row]:
    """Every point of the grid on the tuning concepts."""
    concepts, grid = (TUNING[:1], GRID[:2]) if options.quick else (TUNING, GRID)
    seeds = range(1 if options.quick else options.seeds)
    with tempfile.TemporaryDirectory() as temporary:
        for number, own in enumerate(tqdm(grid, unit="point")):
            judged: list[Seen] = []
            for unknown in concepts:
                folder = Path(temporary) / str(number)
                path = learned(model, unknown, own, options.steps, folder, size)
                judged += seen(model, unknown, path, seeds)[0]
            name = ", ".join(f"{key} {value:g}" for key, value in own.items())
            for row in rows_of(name, judged):
                yield replace(row, metric=f"{row.metric} (tuning concepts)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-m", "--model", default="shapes")
    parser.add_argument("--steps", type=int, default=300, help="of learning")
    parser.add_argument("--seeds", type=int, default=4, help="pictures a prompt")
    parser.add_argument("--quick", action="store_true", help="two concepts, ten steps, one seed")
    parser.add_argument("--tune", action="store_true", help="try settings on the tuning concepts")
    parser.add_argument("--clip", metavar="MODEL", help="a CLIP model, for CLIP-T and CLIP-I")
    parser.add_argument("--device")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.steps = 10
    renderer.DISTANCES.update(NEW_SHAPES)
    renderer.TEXTURE_SHADES.update(NEW_TEXTURES)
    model = t2iedit.open_model(options.model, device=options.device, dtype="float32")
    measured: Callable[..., Iterator[Row]] = tune if options.tune else measure
    rows = []
    for row in measured(model, options, min(model.defaults.size)):
        rows.append(row)
        tqdm.write(f"{row.name:24} {row.metric:28} {row.value:7.3f} ({row.low:.3f} to {row.high:.3f}), n {row.n}")  # fmt: skip
    name = "personalization-tuning" if options.tune else "personalization"
    path = options.output or RESULTS / f"{name}{'-quick' if options.quick else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
