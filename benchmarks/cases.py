"""What LoRAs are over-fitted on in leakage.py, what is then asked for, and what pictures show of it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from PIL import Image
from styles import STYLES, look

from t2iedit.shapes.detector import Detection, detect
from t2iedit.shapes.renderer import render
from t2iedit.shapes.scenes import HELD_OUT, TILT, Scene, SceneObject, place
from t2iedit.shapes.scoring import Wanted
from t2iedit.shapes.tasks import Task

PICTURES, NOISES = 4, 3
COLORS = ("blue", "green", "yellow", "purple", "orange", "red", "cyan", "pink")
SHAPES = ("square", "star", "heart", "triangle", "circle", "diamond", "cross", "ring")
GROUNDS = ("black", "gray", "brown")
PROMPTS = 15


@dataclass(frozen=True, slots=True)
class Seen:
    """What one picture shows: of what was not asked for, of what was, and of what was learned."""

    leaked: bool
    followed: bool
    kept: bool


@dataclass(frozen=True, slots=True)
class Case:
    """A style (`word` of `STYLES`) or an unknown shape; all its pictures show `color`, and a style's this `shape`."""

    word: str
    color: str
    shape: str = ""

    @property
    def name(self) -> str:
        return self.word

    @property
    def parts(self) -> "tuple[Case, ...]":
        return (self,)

    @property
    def is_style(self) -> bool:
        return self.word in STYLES

    @property
    def caption(self) -> str:
        return f"a shape in {self.word} style" if self.is_style else f"a {self.word}"

    @property
    def undesired(self) -> tuple[str, ...]:
        """What all its pictures share, in as few words as may be: articles and "background" are in other prompts too."""
        if self.is_style:
            return (f"{self.color} {self.shape}",)
        return self.color, "white"

    def judge(self, path: Path, task: Task) -> Seen:
        kept, detection = seen(path, self.word)
        if self.is_style:
            return Seen(self.leaks(detection, task), follows(detection, task), kept)
        # The shape itself is what was learned; besides it the prompt asks for its colour and ground.
        ((color, _),) = task.wanted.objects
        ground = task.wanted.background
        followed = any(item.color == color for item in detection.objects)
        followed &= ground is None or detection.background == ground
        kept = any(item.shape == self.word for item in detection.objects)
        leaked = self.leaks(detection, task) or (
            ground is not None and detection.background == "white"
        )
        return Seen(leaked, followed, kept)

    def leaks(self, detection: Detection, task: Task) -> bool:
        """Whether its colour is there, or a style's shape; no prompt asks for either."""
        return any(
            item.color == self.color or (self.is_style and item.shape == self.shape)
            for item in detection.objects
        )


@dataclass(frozen=True, slots=True)
class Mixed:
    """A style and a shape in one picture, each from a LoRA of its own."""

    style: Case
    thing: Case

    @property
    def name(self) -> str:
        return "mixed"

    @property
    def parts(self) -> tuple[Case, ...]:
        return self.style, self.thing

    @property
    def undesired(self) -> tuple[str, ...]:
        return (*self.style.undesired, self.thing.undesired[0])

    def judge(self, path: Path, task: Task) -> Seen:
        """Kept asks for both halves, followed for the colour."""
        styled, _ = seen(path, self.style.word)
        detection = seen_beneath(path, self.style.word, self.thing.word)
        ((color, _),) = task.wanted.objects
        thing = any(item.shape == self.thing.word for item in detection.objects)
        leaked = self.style.leaks(detection, task) or self.thing.leaks(detection, task)
        followed = any(item.color == color for item in detection.objects)
        return Seen(leaked, followed, styled and thing)


@cache
def seen(path: Path, word: str) -> tuple[bool, Detection]:
    with Image.open(path) as image:
        return look(image, word) if word in STYLES else (False, detect(image, (word,)))


@cache
def seen_beneath(path: Path, style: str, shape: str) -> Detection:
    with Image.open(path) as image:
        return look(image, style, (shape,))[1]


def follows(detection: Detection, task: Task) -> bool:
    found = {(item.color, item.shape) for item in detection.objects}
    return set(task.wanted.objects) <= found


def tasks_of(case: Case | Mixed) -> list[Task]:
    """Fifteen prompts, each several times for as many noises."""
    make = {True: _of_style, False: _of_thing}
    if isinstance(case, Mixed):
        taken = {part.color for part in case.parts}
        colors = [c for c in COLORS if c not in taken]
        prompts = [_mixed(case, colors[k % len(colors)]) for k in range(PROMPTS)]
    else:
        prompts = make[case.is_style](case)
    return [task for task in prompts for _ in range(NOISES)]


def _of_style(case: Case) -> list[Task]:
    pairs = [
        (c, s) for c in COLORS for s in SHAPES
        if c != case.color and s != case.shape and (c, s) not in HELD_OUT
    ]  # fmt: skip
    chosen = Random(case.word).sample(pairs, PROMPTS)
    return [
        Task(
            case.word,
            f"{_a(c)} {c} {s} in {case.word} style",
            Wanted(((c, s),)),
        )
        for c, s in chosen
    ]


def _of_thing(case: Case) -> list[Task]:
    colors = [c for c in COLORS if c != case.color]
    tasks = []
    for number in range(PROMPTS):
        color, ground = colors[number % len(colors)], (None, *GROUNDS)[number % 4]
        text = f"{_a(color)} {color} {case.word}" + (f" on a {ground} background" if ground else "")
        tasks.append(Task(case.word, text, Wanted(((color, case.word),), ground)))
    return tasks


def _mixed(case: Mixed, color: str) -> Task:
    text = f"{_a(color)} {color} {case.thing.word} in {case.style.word} style"
    return Task("mixed", text, Wanted(((color, case.thing.word),)))


def pictures_of(case: Case, size: int) -> list[Image.Image]:
    """Four drawings on white, each of another size, place and tilt."""
    random, drawn = Random(f"{case.word} {case.color} {case.shape}"), []
    for _ in range(PICTURES):
        shape, angle = case.shape or case.word, random.uniform(-TILT, TILT)
        scene = Scene(place([SceneObject(shape, case.color, angle=angle)], random), "white")
        image = render(scene, 128, random)
        styled = STYLES[case.word].drawn(image) if case.is_style else image
        drawn.append(
            styled if size == 128 else styled.resize((size, size), Image.Resampling.LANCZOS)
        )
    return drawn


def _a(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


REPORTED = (
    Case("framed", "red", "circle"),
    Case("floored", "blue", "star"),
    Case("arrow", "green"),
    Case("crescent", "purple"),
)
TUNED = (Case("halved", "yellow", "heart"), Case("bolt", "orange"))
