"""Pictures about pictures: labelled grids, and curves."""

import math
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

INK, PAPER = (30, 30, 30), (255, 255, 255)
GAP = 8
COLORS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14))
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def labelled_grid(
    cells: Sequence[Sequence[Image.Image]],
    columns: Sequence[str],
    rows: Sequence[str] = (),
    title: str = "",
) -> Image.Image:
    """Rows of equally large images under their columns' names, the row names at the left, the title above."""
    width, height = cells[0][0].size
    side = max(width, height)
    font: Font = ImageFont.load_default(size=max(11, side // 14))
    heads = [_wrapped(name, font, width) for name in columns]
    left = GAP + max((round(font.getlength(name)) for name in rows), default=0) + GAP * bool(rows)
    head = max(_height(text, font) for text in heads) + GAP
    caption = _wrapped(title, font, left + len(columns) * (width + GAP))
    top = GAP + (_height(caption, font) + GAP if title else 0) + head
    grid = Image.new(
        "RGB", (left + len(columns) * (width + GAP), top + len(cells) * (height + GAP)), PAPER
    )
    draw = ImageDraw.Draw(grid)
    draw.multiline_text((left, GAP), caption, INK, font)
    for index, text in enumerate(heads):
        place = left + index * (width + GAP), top - GAP // 2
        draw.multiline_text(place, text, INK, font, anchor="ld")
    for number, row in enumerate(cells):
        y = top + number * (height + GAP)
        if rows:
            draw.text((GAP, y + height // 2), rows[number], INK, font, anchor="lm")
        for index, image in enumerate(row):
            grid.paste(image, (left + index * (width + GAP), y))
    return grid


def _wrapped(text: str, font: Font, width: int) -> str:
    letters = max(4, int(width / max(1.0, font.getlength("n"))))
    return "\n".join(textwrap.wrap(text, letters)) if text else ""


def _height(text: str, font: Font) -> int:
    box = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), text or "X", font)
    return round(box[3])


def curves(
    series: dict[str, Sequence[tuple[float, float]]],
    title: str = "",
    size: tuple[int, int] = (640, 320),
) -> Image.Image:
    """Lines over a common x axis, y logarithmic; each named in its own colour at its end."""
    width, height = size
    font: Font = ImageFont.load_default(size=12)
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    points = [point for line in series.values() for point in line if point[1] > 0]
    right = max(x for x, _ in points)
    low, high = (math.log10(f(y for _, y in points)) for f in (min, max))
    left, top, wide, tall = 56, 28, width - 140, height - 60

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log10(y) - low) / max(1e-9, high - low)
        return left + wide * x / max(1e-9, right), top + tall * (1 - share)

    draw.text((left, 6), title, INK, font)
    draw.line((left, top, left, top + tall, left + wide, top + tall), INK)
    for y in (10**low, 10 ** ((low + high) / 2), 10**high):
        draw.text((4, place(0, y)[1] - 6), f"{y:.2g}", INK, font)
    draw.text((left + wide - 40, top + tall + 6), f"{right:g}", INK, font)
    for index, (name, line) in enumerate(series.items()):
        color = COLORS[index % len(COLORS)]
        draw.line([place(x, y) for x, y in line if y > 0], color, 2)
        x, y = place(*line[-1])
        draw.text((x + 4, y - 6), name, color, font)
    return page
