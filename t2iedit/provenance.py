"""What made an image, inside the image: A1111's `parameters` for people, the whole request as JSON for repeating."""

import io
import json
import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from t2iedit.errors import OutputNotWritable, RecipeNotUsable
from t2iedit.hookspecs import hookimpl

RECIPE = "t2iedit"
PARAMETERS = "parameters"
SETTINGS = ("model", "steps", "guidance_scale", "size", "dtype")
COMPARED = "compared"
"""What the columns and rows of a grid are; no single run repeats it."""
LIBRARIES = ("torch", "diffusers", "transformers")
MAX_PIXELS = 64_000_000


@hookimpl
def image_ready(image: Any, request: Any, report: dict[str, Any]) -> None:
    """Record the request, complete with the defaults that held, and the circumstances."""
    record(image, request, report)


def record(image: Any, request: Any, report: dict[str, Any], **more: Any) -> None:
    """The request and the circumstances, and `more` JSON values beside the request's."""
    run = report["run"]
    recipe = request.to_json() | {key: run[key] for key in SETTINGS if run[key]}
    recipe |= {"seeds": list(request.seeds), "guidance_scale": run["guidance_scale"]}
    recipe["prompt"] = recipe.get("prompt") or run.get("conditioning", {}).get("prompt", "")
    made_with = {key: value for key, value in run.items() if key not in SETTINGS}
    made_with |= {"edits": report["edits"]}
    image.info[RECIPE] = json.dumps(recipe | more | {"made_with": made_with}, ensure_ascii=False)
    image.info[PARAMETERS] = parameters(recipe, run)


def environment() -> dict[str, str]:
    """The versions that pictures depend on."""
    return {"python": platform.python_version()} | {
        name: installed_version(name) or "?" for name in (RECIPE, *LIBRARIES)
    }


def parameters(recipe: dict[str, Any], run: dict[str, Any]) -> str:
    """The recipe as A1111 writes it and other programs read it."""
    width, height = recipe["size"]
    facts = {
        "Steps": recipe["steps"],
        "Sampler": run["scheduler"].removesuffix("Scheduler"),
        "CFG scale": f"{recipe['guidance_scale']:g}",
        "Seed": recipe["seeds"][0],
        "Size": f"{width}x{height}",
        "Model hash": run["fingerprint"],
        "Model": Path(recipe.get("model", "")).name,
        "Version": f"t2iedit {run['versions'][RECIPE]}",
    }
    edits = ", ".join(_edit_text(edit) for edit in recipe.get("edits", []))
    if recipe.get("clip_skip"):
        # A1111 counts the last layer as 1.
        facts["Clip skip"] = recipe["clip_skip"] + 1
    if edits:
        facts["t2iedit"] = json.dumps(edits, ensure_ascii=False)
    lines = [recipe["prompt"]]
    if recipe.get("negative"):
        lines.append(f"Negative prompt: {recipe['negative']}")
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in facts.items())])


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The recipe inside a PNG, its circumstances under `made_with`. Raises `RecipeNotUsable`."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise RecipeNotUsable(f'"{path}" is larger than {MAX_PIXELS} pixels')
            image.load()
            text = image.info.get(RECIPE)
    except FileNotFoundError as error:
        raise RecipeNotUsable(f'there is no file "{path}"; give a PNG that t2iedit made') from error
    except RecipeNotUsable:
        raise
    # Whatever a damaged file makes Pillow raise means the same to the user.
    except Exception as error:
        raise RecipeNotUsable(
            f'"{path}" cannot be read as a PNG ({error}); give a PNG that t2iedit made'
        ) from error
    return _parse(text, path)


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write a PNG with its text chunks, whole or not at all. Raises `OutputNotWritable`."""
    path, data = Path(path), io.BytesIO()
    try:
        image.save(data, format="PNG", pnginfo=png_chunks(image))
    except OSError as error:
        raise unwritable(path, error) from error
    write_whole(path, data.getbuffer())


def png_chunks(image: Image.Image) -> PngInfo:
    """What the image carries as text."""
    chunks = PngInfo()
    for key, value in image.info.items():
        if isinstance(key, str) and isinstance(value, str):
            chunks.add_itxt(key, value)
    return chunks


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Write a file under another name and rename it, so that it is whole or absent. Raises `OutputNotWritable`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.parent / f".{uuid4().hex}.part"
        try:
            with unfinished.open("xb") as file:
                file.write(data)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> OutputNotWritable:
    return OutputNotWritable(
        f'cannot write "{path}" ({error.strerror or error}); choose a place you may write to with -o'
    )


def _parse(text: str | None, path: str | Path) -> dict[str, Any]:
    if text is None:
        raise RecipeNotUsable(
            f'"{path}" holds no t2iedit recipe; only images made by t2iedit and saved unchanged can be repeated'
        )
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeNotUsable(f'the recipe in "{path}" is not valid JSON ({error})') from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("prompt", ""), str):
        raise RecipeNotUsable(f'the recipe in "{path}" has no prompt')
    if COMPARED in recipe:
        raise RecipeNotUsable(
            f'"{path}" compares several images; make it again with t2iedit compare, or repeat one of them'
        )
    return recipe


def _edit_text(edit: dict[str, Any]) -> str:
    options = ", ".join(f"{key}={value}" for key, value in edit["options"].items())
    return f"{edit['name']}({options})"


@cache
def installed_version(distribution: str) -> str | None:
    """None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
