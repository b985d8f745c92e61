"""Pictures laid out as the scorers of GenEval and T2I-CompBench expect them, so that those run as they are.

GenEval (github.com/djghosh13/geneval): a folder a prompt, `00000/metadata.jsonl` and `00000/samples/0000.png`.
T2I-CompBench (github.com/Karine-Huang/T2I-CompBench): `samples/PROMPT_000000.png`, numbered through, one folder a category.
"""

import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from t2iedit.errors import InvalidRequest, RecipeNotUsable
from t2iedit.prompts import Asked
from t2iedit.provenance import read_recipe, unwritable

LONGEST_NAME = 240
"""Bytes of a prompt that fit into a file's name beside its number."""

Painted = Mapping[str, Sequence[Path]]
"""The pictures of each prompt, in the order of their seeds."""


def painted(folder: str | Path) -> dict[str, list[Path]]:
    """The pictures in a folder by their prompts, read from the recipes inside them.

    Raises `InvalidRequest` if there are none, or if they were not all made in one way, and `RecipeNotUsable`.
    """
    paths = sorted(Path(folder).glob("*.png"))
    if not paths:
        raise InvalidRequest(
            f'there are no pictures in "{folder}"; paint them with t2iedit batch PROMPTS.txt -o FOLDER'
        )
    found: dict[str, list[tuple[int, Path]]] = defaultdict(list)
    ways: dict[str, Path] = {}
    for path in paths:
        recipe = read_recipe(path)
        seeds = recipe.get("seeds", [0])
        if not isinstance(seeds, list) or not seeds or type(seeds[0]) is not int:
            raise RecipeNotUsable(f'the recipe in "{path}" is damaged: its seeds are no numbers')
        found[recipe.get("prompt", "")].append((seeds[0], path))
        apart = {"prompt", "seeds", "made_with"}
        way = json.dumps({k: v for k, v in recipe.items() if k not in apart}, sort_keys=True)
        ways.setdefault(way, path)
    if len(ways) > 1:
        first, second = list(ways.values())[:2]
        raise InvalidRequest(
            f'"{first.name}" and "{second.name}" in "{folder}" were made with different models, settings or edits;'
            " give each way a folder of its own"
        )
    return {prompt: [path for _, path in sorted(pairs)] for prompt, pairs in found.items()}


def lay_out(pictures: Painted, asked: Sequence[Asked], folder: str | Path, scorer: str) -> Path:
    """Copies of the prompts' pictures in a new folder, as this one of the `SCORERS` reads them; there whole or not at all.

    Raises `InvalidRequest` and `OutputNotWritable`.
    """
    if scorer not in SCORERS:
        raise InvalidRequest(f'there is no scorer "{scorer}"; there are {", ".join(SCORERS)}')
    folder = Path(folder)
    if folder.exists():
        raise InvalidRequest(f'"{folder}" is there already; name a new folder')
    missing = [each.prompt for each in asked if not pictures.get(each.prompt)]
    if missing:
        raise InvalidRequest(
            f'{len(missing)} of {len(asked)} prompts have no picture, the first is "{missing[0]}"; paint them all'
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=folder.parent))
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        SCORERS[scorer](pictures, asked, unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _geneval(pictures: Painted, asked: Sequence[Asked], folder: Path) -> None:
    for number, each in enumerate(asked):
        if not each.include:
            raise InvalidRequest(
                f'what "{each.prompt}" asks for is not known; give the .jsonl file of the prompts'
            )
        place = folder / f"{number:05}"
        (place / "samples").mkdir(parents=True)
        (place / "metadata.jsonl").write_text(json.dumps(each.metadata), encoding="utf-8")
        for sample, path in enumerate(pictures[each.prompt]):
            shutil.copyfile(path, place / "samples" / f"{sample:04}.png")


def _compbench(pictures: Painted, asked: Sequence[Asked], folder: Path) -> None:
    """The scorers read the prompt from the name, up to its first underscore, and the number after its last."""
    (folder / "samples").mkdir()
    number = 0
    for each in asked:
        if set(each.prompt) & set("_/\\\0") or len(each.prompt.encode()) > LONGEST_NAME:
            raise InvalidRequest(
                f'"{each.prompt[:80]}" cannot be part of a file\'s name, where T2I-CompBench looks for it; prompts have'
                f" no underscore or slash there, and at most {LONGEST_NAME} bytes"
            )
        for path in pictures[each.prompt]:
            shutil.copyfile(path, folder / "samples" / f"{each.prompt}_{number:06}.png")
            number += 1


SCORERS: dict[str, Callable[[Painted, Sequence[Asked], Path], None]] = {
    "geneval": _geneval,
    "compbench": _compbench,
}
