"""How often the referee is right: on drawn scenes, and on scenes passed through the bundled autoencoder.

    python benchmarks/detector.py [--quick] [--n N] [-o FILE.json] [--picture FILE.png]

A scene counts as right if all its objects, shape and colour, and its background are, and nothing else is found.
"""

# diffusers annotates less than it takes.
# pyright: reportAttributeAccessIssue=false

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from t2iedit.opening import SHAPES as WEIGHTS
from t2iedit.shapes.detector import UNKNOWN, Detection, detect
from t2iedit.shapes.evaluate import Row
from t2iedit.shapes.renderer import render
from t2iedit.shapes.scenes import COLORS, SHAPES, Scene, random_scene
from t2iedit.shapes.scoring import Wanted, score, wilson
from t2iedit.shapes.training.scenes_by_step import to_tensor

BATCH, SIDE = 25, 128
FULL, QUICK = 1000, 100
FIRST = 77_000_000

Seen = list[tuple[Scene, Detection]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=FULL, help="scenes for each number of objects")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} scenes instead")
    parser.add_argument("-o", "--output", type=Path, default="benchmarks/results/detector.json")
    parser.add_argument("--picture", type=Path, default="benchmarks/results/detector.png")
    options = parser.parse_args(arguments)
    n = QUICK if options.quick else options.n
    vae = AutoencoderKL.from_pretrained(WEIGHTS, subfolder="vae")
    rows, rebuilt_scenes = [], []
    for count in (1, 2, 3):
        scenes = [random_scene(Random(FIRST + k), count, textured=0.12) for k in range(n)]
        pictures = [render(scene, SIDE, Random(k)) for k, scene in enumerate(scenes)]
        drawn = [(s, detect(p)) for s, p in zip(scenes, pictures, strict=True)]
        rebuilt = [(s, detect(p)) for s, p in zip(scenes, decoded(vae, pictures), strict=True)]
        rows += [row(f"{count} drawn", drawn), row(f"{count} through the autoencoder", rebuilt)]
        rebuilt_scenes += rebuilt
    for each in rows:
        print(f"{each.name:26} {each.value:7.2%}  ({each.low:.2%} to {each.high:.2%}, n={each.n})")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps([asdict(each) for each in rows], indent=1) + "\n")
    confusions(rebuilt_scenes).save(options.picture)


@torch.no_grad()
def decoded(vae: AutoencoderKL, pictures: list[Image.Image]) -> Iterator[Image.Image]:
    """Each picture encoded and decoded."""
    for first in tqdm(range(0, len(pictures), BATCH), desc="autoencoder", leave=False):
        batch = pictures[first : first + BATCH]
        pixels = to_tensor([np.array(picture) for picture in batch])
        result = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        levels = ((result.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
        yield from (Image.fromarray(each.numpy()) for each in levels)


def row(name: str, seen: Seen) -> Row:
    right = sum(is_right(scene, detection) for scene, detection in seen)
    return Row(name, "right", len(seen), right / len(seen), *wilson(right, len(seen)))


def is_right(scene: Scene, detection: Detection) -> bool:
    pairs = tuple((item.color, item.shape) for item in scene.objects)
    result = score(detection, Wanted(pairs, scene.background))
    return result.right and bool(result.background_right)


def confusions(seen: Seen) -> Image.Image:
    """Two tables, shapes and colours: rows are what was drawn, columns what was found in its place."""
    shapes, colors = Counter(), Counter()
    for scene, detection in seen:
        for item in scene.objects:
            near = min(
                detection.objects,
                key=lambda o: (o.x - item.x) ** 2 + (o.y - item.y) ** 2,
                default=None,
            )
            shapes[item.shape, near.shape if near else UNKNOWN] += 1
            colors[item.color, near.color if near else UNKNOWN] += 1
    tables = [_table(shapes, list(SHAPES)), _table(colors, list(COLORS))]
    page = Image.new("RGB", (sum(t.width for t in tables), tables[0].height), "white")
    for index, each in enumerate(tables):
        page.paste(each, (index * tables[0].width, 0))
    return page


def _table(counts: Counter, names: list[str], cell: int = 46) -> Image.Image:
    page = Image.new("RGB", (cell * (len(names) + 3), cell * (len(names) + 2)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    columns = [*names, UNKNOWN]
    for x, name in enumerate(columns):
        draw.text((cell * (x + 2), cell // 2), name, "black", font)
    for y, drawn in enumerate(names):
        draw.text((4, cell * (y + 1) + cell // 3), drawn, "black", font)
        total = sum(counts[drawn, found] for found in columns)
        for x, found in enumerate(columns):
            share = counts[drawn, found] / max(1, total)
            left, top = cell * (x + 2), cell * (y + 1)
            level = round(255 * (1 - share))
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), (level, 255, level))
            if share:
                draw.text((left + 4, top + cell // 3), f"{share:.1%}", "black", font)
    return page


if __name__ == "__main__":
    main()
