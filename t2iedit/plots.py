"""Pictures about pictures: labelled grids."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

INK, PAPER = (30, 30, 30), (255, 255, 255)
GAP = 8
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
