"""What a text encoder's rows know, read by linear probes, and how like neighbouring rows are."""

# transformers annotates less than it takes.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from collections.abc import Iterator
from random import Random

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from t2iedit.plots import labelled_grid
from t2iedit.shapes.captions import plain_caption
from t2iedit.shapes.scenes import COLORS, HELD_OUT, SHAPES, Scene, SceneObject

PROMPTS, TESTED = 2000, 500
RIDGE = 1e-2
ROWS = {
    "first colour": 2,
    "first shape": 3,
    "second colour": 6,
    "second shape": 7,
    "EOT": 8,
    "PAD": 9,
}
"""Positions in "a red circle and a blue square"."""
CELL = 24

Labels = dict[str, Tensor]


def probe(
    text: CLIPTextModel, tokenizer: CLIPTokenizer, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Accuracy on unseen two-object prompts of each attribute, read from each row by ridge regression.

    Which colour belongs to which shape is in it: colour 1 read from the second row tells them apart.
    """
    scenes = list(_pairs(Random(seed), PROMPTS))
    rows = _rows(text, tokenizer, [plain_caption(scene) for scene in scenes])
    labels = _labels(scenes)
    return {
        name: {key: _accuracy(rows[:, place], wanted) for key, wanted in labels.items()}
        for name, place in ROWS.items()
    }


def cosines(text: CLIPTextModel, tokenizer: CLIPTokenizer, prompt: str) -> tuple[list[str], Tensor]:
    """The prompt's tokens with EOT and two of padding, and the cosines between their rows."""
    count = len(tokenizer.tokenize(prompt)) + 3
    rows = functional.normalize(_rows(text, tokenizer, [prompt])[0, 1 : count + 1], dim=-1)
    names = [piece.removesuffix("</w>") for piece in tokenizer.tokenize(prompt)]
    return [*names, "EOT", "PAD", "PAD"], rows @ rows.T


def cosine_picture(names: list[str], values: Tensor) -> Image.Image:
    """The cosines as blue (-1) over white (0) to red (1), under the tokens' names."""
    heat = values.clamp(-1, 1)
    red, blue = (1 + heat.clamp(max=0)), (1 - heat.clamp(min=0))
    pixels = (torch.stack([red, torch.minimum(red, blue), blue], dim=-1) * 255).round().byte()
    cells = [
        [Image.new("RGB", (2 * CELL, CELL), tuple(pixel.tolist())) for pixel in row]
        for row in pixels
    ]
    return labelled_grid(cells, names, names)


def table(found: dict[str, dict[str, float]]) -> str:
    columns = list(next(iter(found.values())))
    lines = [" " * 14 + "".join(f"{column:>10}" for column in columns)]
    for name, row in found.items():
        lines.append(f"{name:14}" + "".join(f"{row[column]:10.2f}" for column in columns))
    return "\n".join(lines)


def _pairs(random: Random, count: int) -> Iterator[Scene]:
    known = [(s, c) for s in SHAPES for c in COLORS if (c, s) not in HELD_OUT]
    for _ in range(count):
        first, second = random.sample(known, 2)
        yield Scene((SceneObject(*first), SceneObject(*second)))


def _labels(scenes: list[Scene]) -> Labels:
    shapes, colors = list(SHAPES), list(COLORS)
    return {
        "colour 1": torch.tensor([colors.index(s.objects[0].color) for s in scenes]),
        "shape 1": torch.tensor([shapes.index(s.objects[0].shape) for s in scenes]),
        "colour 2": torch.tensor([colors.index(s.objects[1].color) for s in scenes]),
        "shape 2": torch.tensor([shapes.index(s.objects[1].shape) for s in scenes]),
    }


@torch.no_grad()
def _rows(text: CLIPTextModel, tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    encoded = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt")
    ids = encoded.input_ids.to(text.device).split(250)
    return torch.cat([text(part).last_hidden_state.float().cpu()[:, :16] for part in ids])


def _accuracy(rows: Tensor, labels: Tensor) -> float:
    features = functional.pad(rows.double(), (0, 1), value=1.0)
    seen, wanted = features[TESTED:], functional.one_hot(labels[TESTED:]).double()
    ridge = RIDGE * len(seen) * torch.eye(features.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(seen.T @ seen + ridge, seen.T @ wanted)
    right = (features[:TESTED] @ weights).argmax(-1) == labels[:TESTED]
    return float(right.float().mean())
