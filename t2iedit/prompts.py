"""Sets of prompts for real models, each with what it asks for in the words of GenEval, which scores pictures of them.

Things and colours are such as GenEval's and T2I-CompBench's detectors know. Wordings are GenEval's; without the opening
"a photo of" they are T2I-CompBench's (arXiv 2310.11513 and 2307.06350).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from t2iedit.errors import InvalidRequest
from t2iedit.provenance import write_whole

OPENING = "a photo of "
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SHAPES = ("round", "square", "rectangular", "oval", "triangular", "cubic", "cylindrical", "conical")
PLURALS = {
    "airplane": "airplanes", "apple": "apples", "backpack": "backpacks", "banana": "bananas", "bear": "bears",
    "bicycle": "bicycles", "bird": "birds", "boat": "boats", "book": "books", "bottle": "bottles", "bowl": "bowls",
    "cake": "cakes", "car": "cars", "cat": "cats", "chair": "chairs", "clock": "clocks", "couch": "couches",
    "cow": "cows", "cup": "cups", "dog": "dogs", "giraffe": "giraffes", "horse": "horses", "kite": "kites",
    "knife": "knives", "sheep": "sheep", "suitcase": "suitcases", "train": "trains", "truck": "trucks", "vase": "vases",
}  # fmt: skip
SHAPED = ("backpack", "book", "bottle", "bowl", "cake", "chair", "clock", "cup", "suitcase", "vase")
NUMBERS = {2: "two", 3: "three", 4: "four"}
IN_VAIN = 2000
"""Draws without a new prompt after which a set is taken to have no more."""

Item = dict[str, Any]
"""One of GenEval's clauses: a `class`, a `count`, and perhaps a `color`."""


@dataclass(frozen=True)
class Asked:
    """A prompt and what it asks for; `tag` names its kind, and GenEval's summary has a line for each.

    All of `include` must be there, none of `exclude`. A prompt of which nothing is known has neither, and no tag.
    """

    prompt: str
    tag: str = ""
    include: tuple[Item, ...] = ()
    exclude: tuple[Item, ...] = ()

    @property
    def metadata(self) -> dict[str, Any]:
        """The line of GenEval's `evaluation_metadata.jsonl`."""
        exclude = {"exclude": list(self.exclude)} if self.exclude else {}
        return {"tag": self.tag, "include": list(self.include), **exclude, "prompt": self.prompt}


def prompt_set(name: str, n: int, seed: int = 0, *, opening: str = OPENING) -> list[Asked]:
    """`n` different prompts of one of the `SETS`, the same for equal seeds. Raises `InvalidRequest`."""
    if name not in SETS:
        raise InvalidRequest(f'there is no set of prompts "{name}"; there are {", ".join(SETS)}')
    if n < 1:
        raise InvalidRequest(f"{n} prompts were asked for; at least 1 is needed")
    random, found = Random(f"{name} {seed}"), dict[str, Asked]()
    in_vain = 0
    while len(found) < n:
        asked = SETS[name](random, opening)
        in_vain = in_vain + 1 if asked.prompt in found else 0
        found[asked.prompt] = asked
        if in_vain == IN_VAIN:
            raise InvalidRequest(f'the set "{name}" has no more than {len(found)} prompts, not {n}')
    return list(found.values())


def write_prompts(asked: Sequence[Asked], path: str | Path) -> tuple[Path, Path]:
    """NAME.txt, a prompt a line for `t2iedit batch`, and NAME.jsonl, what each asks for. Raises `OutputNotWritable`."""
    texts, metadata = Path(path).with_suffix(".txt"), Path(path).with_suffix(".jsonl")
    write_whole(texts, "".join(f"{each.prompt}\n" for each in asked).encode())
    write_whole(metadata, "".join(json.dumps(each.metadata) + "\n" for each in asked).encode())
    return texts, metadata


def read_prompts(path: str | Path) -> list[Asked]:
    """A `.jsonl` file as GenEval has it, or a text file of prompts as T2I-CompBench has it. Raises `InvalidRequest`."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f'"{path}" cannot be read as prompts ({error})') from error
    held = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not held:
        raise InvalidRequest(f'"{path}" holds no prompts')
    if path.suffix != ".jsonl":
        return [Asked(line.strip()) for _, line in held]
    return [_parsed(line, f'line {number} of "{path}"') for number, line in held]


def _parsed(line: str, where: str) -> Asked:
    try:
        found = json.loads(line)
        exclude = tuple(found.get("exclude", ()))
        return Asked(str(found["prompt"]), str(found["tag"]), tuple(found["include"]), exclude)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidRequest(
            f'{where} is not GenEval\'s: an object with "tag", "include" and "prompt" is expected'
        ) from error


def coloured(count: int) -> Callable[[Random, str], Asked]:
    """Draws prompts of so many things, each in a colour of its own."""

    def draw(random: Random, opening: str) -> Asked:
        things, colors = random.sample(list(PLURALS), count), random.sample(COLORS, count)
        include = [
            {"class": thing, "count": 1, "color": color}
            for thing, color in zip(things, colors, strict=True)
        ]
        texts = [f"{color} {thing}" for thing, color in zip(things, colors, strict=True)]
        return Asked(opening + _listed(texts), COLOUR_TAGS[count], tuple(include))

    return draw


COLOUR_TAGS = {1: "colors", 2: "color_attr", 3: "color_attr_3"}
"""GenEval's own tags, and one of ours for three things."""


def _things(count: int, tag: str) -> Callable[[Random, str], Asked]:
    def draw(random: Random, opening: str) -> Asked:
        things = random.sample(list(PLURALS), count)
        include = tuple({"class": thing, "count": 1} for thing in things)
        return Asked(opening + _listed(things), tag, include)

    return draw


def _counted(random: Random, opening: str) -> Asked:
    thing, number = random.choice(list(PLURALS)), random.choice(list(NUMBERS))
    return Asked(
        f"{opening}{NUMBERS[number]} {PLURALS[thing]}",
        "counting",
        include=({"class": thing, "count": number},),
        exclude=({"class": thing, "count": number + 1},),
    )


def _shaped(random: Random, opening: str) -> Asked:
    things, shapes = random.sample(SHAPED, 2), random.sample(SHAPES, 2)
    texts = [f"{shape} {thing}" for thing, shape in zip(things, shapes, strict=True)]
    include = tuple({"class": thing, "count": 1} for thing in things)
    return Asked(opening + _listed(texts), "shape", include)


def _listed(things: Sequence[str]) -> str:
    named = [f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}" for thing in things]
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)


SETS: dict[str, Callable[[Random, str], Asked]] = {
    "objects": _things(1, "single_object"),
    "two-objects": _things(2, "two_object"),
    "counts": _counted,
    "colours": coloured(1),
    "colour-pairs": coloured(2),
    "colour-triples": coloured(3),
    "shapes": _shaped,
}
"""GenEval's kinds but for positions, and T2I-CompBench's shapes; of those GenEval checks that the things are there."""
