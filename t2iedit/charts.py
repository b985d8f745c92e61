"""Inspections as pictures: similarity matrices, and heat over an image."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from t2iedit.inspection import EncoderFacts, Inspection
from t2iedit.plots import GAP, INK, PAPER, labelled_grid

CELL = 22
LETTERS = 12
"""Of a token's piece that fit beside a matrix."""
PLAIN, COLD, WARM = (255, 255, 255), (33, 102, 172), (178, 24, 43)
HEAT = 0.6
"""How much of the heat's colour covers the image where it is hottest."""


def inspection_chart(inspection: Inspection) -> Image.Image:
    """A row for each encoder: the similarities before, after, and their difference."""
    return stacked([_encoder_row(facts) for facts in inspection.encoders])


def attention_chart(image: Image.Image, heat: Tensor, phrase: str) -> Image.Image:
    """The image, and beside it where its attention looked at the phrase (heat: height width, 0 to 1)."""
    return labelled_grid([[image, overlay(image, heat)]], ["", f'attention to "{phrase}"'])


def stacked(charts: Sequence[Image.Image]) -> Image.Image:
    """Charts under one another."""
    whole = Image.new("RGB", (max(c.width for c in charts), sum(c.height for c in charts)), PAPER)
    top = 0
    for chart in charts:
        whole.paste(chart, (0, top))
        top += chart.height
    return whole


def overlay(image: Image.Image, heat: Tensor) -> Image.Image:
    """The image with heat (height width, 0 to 1) over it, hot in red."""
    levels = Image.fromarray((heat.clamp(0, 1) * 255 * HEAT).round().to(torch.uint8).numpy())
    mask = levels.resize(image.size, Image.Resampling.BICUBIC)
    grey = image.convert("L").convert("RGB")
    return Image.composite(Image.new("RGB", image.size, WARM), grey, mask)


def colour(value: float) -> tuple[int, int, int]:
    """-1 is blue, 0 is white, 1 is red."""
    end = WARM if value > 0 else COLD
    share = min(1.0, abs(value))
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(PLAIN, end, strict=True))
    return red, green, blue


def matrices(inspection: Inspection) -> dict[str, Image.Image]:
    """The similarities before, after and their difference, each a picture of all encoders' matrices."""
    parts = [_matrices(facts) for facts in inspection.encoders]
    return {title: stacked([part[title] for part in parts]) for title in parts[0]}


def _encoder_row(facts: EncoderFacts) -> Image.Image:
    parts = list(_matrices(facts).values())
    row = Image.new("RGB", (sum(p.width for p in parts), parts[0].height), PAPER)
    for number, part in enumerate(parts):
        row.paste(part, (number * part.width, 0))
    return row


def _matrices(facts: EncoderFacts) -> dict[str, Image.Image]:
    names = [token.piece[:LETTERS] for token in facts.tokens]
    by_title = {"before": facts.before, "after": facts.after, "difference": facts.difference}
    return {
        title: _matrix(f"{facts.encoder}: {title}", names, matrix)
        for title, matrix in by_title.items()
    }


def _matrix(title: str, names: Sequence[str], matrix: Tensor) -> Image.Image:
    font = ImageFont.load_default(size=12)
    x = GAP + max(round(font.getlength(name)) for name in names) + GAP
    side, head = CELL * len(names), 20
    picture = Image.new("RGB", (x + side + GAP, head + side + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((x, GAP // 2), title, INK, font)
    for i, name in enumerate(names):
        y = head + i * CELL
        draw.text((x - GAP, y + CELL // 2), name, INK, font, anchor="rm")
        for j in range(len(names)):
            box = (x + j * CELL, y, x + (j + 1) * CELL - 1, y + CELL - 1)
            draw.rectangle(box, fill=colour(matrix[i, j].item()), outline=(225, 225, 225))
    return picture
