"""Files that visitors bring: looked at before anything else reads them."""

import os
from pathlib import Path

from PIL import Image, ImageOps
from t2iedit_context.pictures import LONGEST, SMALLEST

from t2iedit.errors import InvalidRequest

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")


def embedding(path: str, most: int) -> str:
    """The same path, if it is a safetensors file of at most so many bytes. Raises `InvalidRequest`."""
    from safetensors import SafetensorError, safe_open

    _check_size(path, most)
    try:
        with safe_open(path, framework="pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise InvalidRequest(
            f'"{Path(path).name}" is not a safetensors file ({error}); upload one'
        ) from error
    return path


def picture(path: str, most: int, pixels: int) -> Image.Image:
    """The picture, upright and in RGB, what is transparent on white. Raises `InvalidRequest`.

    Its size is read from its head and compared with `pixels` before anything is decoded.
    """
    _check_size(path, most)
    name = Path(path).name
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > pixels:
                raise InvalidRequest(
                    f'"{name}" has {width} x {height} pixels, and {pixels} are the most here; make it smaller'
                )
            if min(width, height) < SMALLEST:
                raise InvalidRequest(
                    f'"{name}" has {width} x {height} pixels; {SMALLEST} a side are the least'
                )
            if max(width, height) > LONGEST * min(width, height):
                raise InvalidRequest(
                    f'"{name}" has {width} x {height} pixels; it may be {LONGEST} times as long as wide at most'
                )
            if image.mode[0] in "IF":
                raise InvalidRequest(
                    f'"{name}" has grey values of more than 8 bits; save it with 8'
                )
            return _on_white(ImageOps.exif_transpose(image))
    except InvalidRequest:
        raise
    except Image.DecompressionBombError as error:
        raise InvalidRequest(
            f'"{name}" has far more pixels than the {pixels} allowed here'
        ) from error
    # A broken picture makes Pillow raise nearly anything.
    except Exception as error:
        raise InvalidRequest(
            f'"{name}" cannot be read as a picture; give {", ".join(FORMATS)}'
        ) from error


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _check_size(path: str, most: int) -> None:
    """Raises `InvalidRequest` for what is too large, or gone; what is still used is kept for another while."""
    try:
        size = Path(path).stat().st_size
        os.utime(path)
    except OSError as error:
        raise InvalidRequest(
            f'"{Path(path).name}" is not kept here any more; upload it again'
        ) from error
    if size > most:
        raise InvalidRequest(f"uploads may be at most {most} bytes here, not {size}")
