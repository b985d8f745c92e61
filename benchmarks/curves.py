"""Curves of shares against shares, as a picture."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from t2iedit.plots import Font

SIDE, MARGIN = 420, 60
INK, GRID, PAPER = (30, 30, 30), (225, 225, 225), (255, 255, 255)
COLORS = ((33, 102, 172), (178, 24, 43), (27, 120, 55), (118, 42, 131), (191, 129, 45))

Point = tuple[float, float, str]
"""A share along, a share up, both 0 to 1, and what to write beside them."""


def curves(named: Mapping[str, Sequence[Point]], along: str, up: str, title: str) -> Image.Image:
    """Each name's points joined in their order; better is further right and further up."""
    width = SIDE + 2 * MARGIN
    picture = Image.new("RGB", (width, width), PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=12)
    _axes(draw, font, along, up, title)
    for number, (name, points) in enumerate(named.items()):
        color = COLORS[number % len(COLORS)]
        places = [_place(x, y) for x, y, _ in points]
        if len(places) > 1:
            draw.line(places, fill=color, width=2)
        for (x, y), (*_, label) in zip(places, points, strict=True):
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
            draw.text((x + 6, y - 6), label, color, font)
        corner = MARGIN + 8, MARGIN + SIDE - 20 - 16 * number
        draw.text(corner, name, color, font)
    return picture


def _axes(draw: ImageDraw.ImageDraw, font: Font, along: str, up: str, title: str) -> None:
    for tenth in range(0, 11, 2):
        share = tenth / 10
        (x, y), (right, top) = _place(share, share), _place(1, 1)
        left, bottom = _place(0, 0)
        draw.line((x, bottom, x, top), fill=GRID)
        draw.line((left, y, right, y), fill=GRID)
        draw.text((x, bottom + 6), f"{share:.0%}", INK, font, anchor="ma")
        draw.text((left - 6, y), f"{share:.0%}", INK, font, anchor="rm")
    draw.text((MARGIN + SIDE // 2, MARGIN + SIDE + 26), along, INK, font, anchor="ma")
    draw.text((MARGIN - 40, MARGIN - 20), up, INK, font)
    draw.text((MARGIN + SIDE // 2, 12), title, INK, font, anchor="ma")


def _place(x: float, y: float) -> tuple[int, int]:
    return round(MARGIN + x * SIDE), round(MARGIN + (1 - y) * SIDE)
