"""Bars with limits, as a picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

ROW, GAP, LONGEST = 24, 10, 320
INK, PAPER, UNDER, OVER, LIMIT = (30, 30, 30), (255, 255, 255), (33, 102, 172), (178, 24, 43), (90, 90, 90)  # fmt: skip


def bars(values: Sequence[tuple[str, float, float]], title: str) -> Image.Image:
    """A line for each name: its value as a bar, blue under its limit and red over it, the limit as a stroke at half its length."""
    font = ImageFont.load_default(size=12)
    left = 2 * GAP + max(round(font.getlength(name)) for name, *_ in values)
    size = left + LONGEST + 130, (len(values) + 1) * ROW + 2 * GAP
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, GAP), title, INK, font)
    for number, (name, value, limit) in enumerate(values, start=1):
        top = GAP + number * ROW
        stroke = left + LONGEST // 2
        reach = left + max(1, min(LONGEST, round(LONGEST / 2 * value / limit)))
        draw.text((left - GAP, top + ROW // 2), name, INK, font, anchor="rm")
        draw.rectangle((left, top + 4, reach, top + ROW - 4), fill=UNDER if value < limit else OVER)
        draw.line((stroke, top + 1, stroke, top + ROW - 1), fill=LIMIT, width=2)
        text = f"{value:.2%} of {limit:.0%}"
        draw.text((left + LONGEST + 6, top + ROW // 2), text, INK, font, anchor="lm")
    return picture
