"""The prompts a concept is tried in while it is learned; `{}` is its place.

These are ours: the authors' files are one list each for animate and inanimate concepts, made of backgrounds, colours,
styles and mixtures of styles, and for the animate also of actions and outfits, and so are these.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Literal

from t2iedit import UserError

Kind = Literal["animate", "inanimate", "style", "shape", "texture"]
MOST = 10_000

PLACES = (
    "on a beach",
    "in a forest",
    "in the snow",
    "in a jungle",
    "on a city street",
    "in a kitchen",
    "on a wooden table",
    "in a meadow full of flowers",
    "in front of the Eiffel tower",
    "on top of a mountain",
    "under a starry sky",
    "next to a lake",
    "inside a library",
    "on a red carpet",
    "with a city in the background",
    "floating on water",
)
COLOURS = (
    "red",
    "blue",
    "green",
    "yellow",
    "purple",
    "white",
    "black",
    "golden",
    "pink",
    "silver",
)
STYLES = (
    "an oil painting of a {}",
    "a watercolour of a {}",
    "a pencil sketch of a {}",
    "a {} in the style of Van Gogh",
    "a {} in the style of a comic book",
    "a cubist painting of a {}",
    "a pixel art {}",
    "a stained glass window of a {}",
    "a mosaic of a {}",
    "a woodcut of a {}",
    "a line drawing of a {}",
    "an origami {}",
    "a marble statue of a {}",
    "a low poly render of a {}",
    "a cartoon of a {}",
    "a graffiti of a {} on a wall",
)
MEDIA = ("an oil painting", "a watercolour", "a pencil sketch", "a cartoon", "a poster")
SCENES = ("in the rain", "at sunset", "on the moon", "in an old town")
VIEWS = (
    "a close-up photo of a {}",
    "a photo of a {} from above",
    "a black and white photo of a {}",
    "a blurry photo of a {}",
    "a photo of a small {}",
    "a photo of a large {}",
    "a photo of one {} among many books",
    "a photo of a {} and a cup",
    "a photo of a {} beside a tree",
    "two people looking at a {}",
)
ACTIONS = (
    "a {} running",
    "a {} sleeping",
    "a {} eating from a bowl",
    "a {} jumping over a fence",
    "a {} swimming in a pool",
    "a {} playing with a ball",
    "a {} riding a bicycle",
    "a {} reading a book",
    "a {} driving a car",
    "a {} playing a guitar",
    "a {} looking out of a window",
    "a {} sitting on a chair",
)
OUTFITS = (
    "a {} wearing a hat",
    "a {} wearing sunglasses",
    "a {} in a police uniform",
    "a {} wearing a red scarf",
    "a {} in a space suit",
    "a {} wearing a crown",
    "a {} in a chef's outfit",
    "a {} wearing a bow tie",
    "a {} in a superhero costume",
    "a {} wearing headphones",
)
USES = (
    "a {} on a shelf",
    "a {} in a box",
    "a {} on a plate",
    "a {} made of glass",
    "a {} made of wood",
    "a {} made of gold",
    "a {} made of wool",
    "a {} held in a hand",
    "a {} hanging from a ceiling",
    "a {} with a bow on top",
    "a {} covered in moss",
    "a {} in a shop window",
    "an advertisement for a {}",
    "a {} on a stack of books",
    "a {} next to a lamp",
    "a {} in the grass",
    "a {} with a label",
    "a broken {}",
    "a shiny {}",
    "a {} on a white background",
    "a {} under a blanket",
    "a {} on a bench",
)
SUBJECTS = (
    "cat",
    "dog",
    "horse",
    "bird",
    "fish",
    "house",
    "castle",
    "bridge",
    "boat",
    "car",
    "bicycle",
    "tree",
    "flower",
    "mountain",
    "river",
    "city street",
    "village",
    "woman",
    "man",
    "child",
    "robot",
    "apple",
    "guitar",
    "teapot",
    "lighthouse",
)
MANNERS = (
    "{} in {{}} style",
    "a painting of {} in {{}} style",
    "{} in the style of {{}}",
    "a {{}} picture of {}",
)
SHAPE_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "cyan")
SHAPE_GROUNDS = ("white", "black", "gray", "brown")
SHAPE_OTHERS = ("circle", "square", "triangle", "cross", "ring", "diamond", "heart")
PATTERNED = ("circle", "square", "triangle", "cross", "diamond", "heart", "star")


def regularisation_prompts(kind: Kind) -> tuple[str, ...]:
    """The templates for a kind of concept: for the first three about a hundred each."""
    return {
        "animate": _everyday() + ACTIONS + OUTFITS,
        "inanimate": _everyday() + USES,
        "style": _styles(),
        "shape": _shapes(),
        "texture": _textures(),
    }[kind]


def instance_prompt(kind: Kind) -> str:
    """What the pictures to learn from are said to show."""
    return {
        "animate": "a photo of a {}",
        "inanimate": "a photo of a {}",
        "style": "a picture in the style of {}",
        "shape": "a photo of a {}",
        "texture": "a {} shape",
    }[kind]


def preview_prompts(kind: Kind) -> tuple[str, ...]:
    """What previews show: as in the pictures, elsewhere, otherwise."""
    chosen = regularisation_prompts(kind)
    return (
        instance_prompt(kind),
        chosen[0],
        chosen[len(chosen) // 3],
        chosen[2 * len(chosen) // 3],
    )


def filled(template: str, words: str, spoken: str = "") -> str:
    """The template with words in its place, and "an" before them if they, or what is `spoken` for them, begin with a vowel."""
    if (spoken or words)[:1].lower() in tuple("aeiou"):
        template = template.replace(" a {}", " an {}")
        template = "an {}" + template[4:] if template.startswith("a {}") else template
    return template.replace("{}", words)


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """A file of templates, one a line with one `{}`; blank lines and those from # are passed over. Raises `UserError`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(
            f'cannot read the prompts "{path}" ({error}); give a UTF-8 text file with one prompt a line'
        ) from error
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            found.append(_checked(line.strip(), f'"{path}", line {number}'))
    if not found or len(found) > MOST:
        raise UserError(f'"{path}" has {len(found)} prompts; 1 to {MOST} are needed')
    return tuple(found)


def check_templates(templates: Sequence[str]) -> None:
    """Raises `UserError` for the first without exactly one place for the concept."""
    for template in templates:
        _checked(template, "a prompt")


def _checked(template: str, where: str) -> str:
    if template.count("{}") != 1 or template.strip() == "":
        raise UserError(
            f'{where} is "{template}"; write {{}} exactly once, where the concept should stand'
        )
    return template


def _everyday() -> tuple[str, ...]:
    backgrounds = tuple(f"a photo of a {{}} {place}" for place in PLACES)
    colours = tuple(f"a photo of a {colour} {{}}" for colour in COLOURS)
    mixed = tuple(f"{medium} of a {{}} {scene}" for medium, scene in product(MEDIA, SCENES))
    return backgrounds + colours + VIEWS + STYLES + mixed


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _styles() -> tuple[str, ...]:
    return tuple(manner.format(_a(subject)) for subject, manner in product(SUBJECTS, MANNERS))


def _shapes() -> tuple[str, ...]:
    """The bundled world's own ways of speaking, the concept in a shape's place."""
    plain = tuple(f"{_a(colour)} {{}}" for colour in SHAPE_COLOURS)
    grounds = tuple(f"a {{}} on a {ground} background" for ground in SHAPE_GROUNDS)
    both = tuple(
        f"{_a(c)} {{}} on a {g} background" for c, g in product(SHAPE_COLOURS, SHAPE_GROUNDS)
    )
    pairs = tuple(
        f"{_a(c)} {{}} and {_a(other)} {shape}"
        for c, other, shape in zip(
            SHAPE_COLOURS,
            SHAPE_COLOURS[3:] + SHAPE_COLOURS[:3],
            SHAPE_OTHERS * 2,
            strict=False,
        )
    )
    turned = tuple(
        f"{_a(c)} {shape} and a {{}}" for c, shape in zip(SHAPE_COLOURS, SHAPE_OTHERS, strict=False)
    )
    return plain + grounds + both + pairs + turned


def _textures() -> tuple[str, ...]:
    """The bundled world's own ways of speaking, the concept in a texture's place."""
    plain = tuple(f"a {{}} {c} {s}" for c, s in product(SHAPE_COLOURS, PATTERNED))
    grounds = tuple(
        f"a {{}} {shape} on a {ground} background"
        for shape, ground in product(PATTERNED, SHAPE_GROUNDS)
    )
    return plain + grounds
