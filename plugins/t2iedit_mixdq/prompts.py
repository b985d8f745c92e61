"""What models are calibrated on unless prompts are given: everyday captions, and those of the bundled world."""

from collections.abc import Sequence
from pathlib import Path

from t2iedit import UserError

EVERYDAY = (
    "a man riding a bicycle down a wet street at night",
    "two dogs playing with a ball on the beach",
    "a bowl of fruit on a wooden table next to a window",
    "a red train crossing a stone bridge over a river",
    "a woman in a blue coat holding an umbrella",
    "a close-up of a cat asleep on a pile of books",
    "an empty kitchen with white cupboards and a gas stove",
    "children flying kites in a green field under clouds",
    "a plate with grilled fish, rice and vegetables",
    "an old wooden boat tied to a pier in the fog",
    "a giraffe standing between tall trees",
    "a city skyline at sunset seen from the harbour",
    "a snowboarder jumping over a ramp of snow",
    "a yellow taxi waiting at a traffic light",
    "a bedroom with a large bed and two lamps",
    "a market stall full of oranges and lemons",
    "an aeroplane landing on a runway in the rain",
    "a small bird perched on a branch with red berries",
    "a person working at a desk with a laptop and a cup of coffee",
    "a herd of sheep on a hillside above the sea",
    "a birthday cake with candles on a checked tablecloth",
    "a tennis player hitting the ball with a backhand",
    "a stop sign in front of a brick building",
    "a vase of tulips on a window sill",
    "a black motorcycle parked in front of a café",
    "a group of people skiing down a mountain",
    "a clock tower rising above the roofs of an old town",
    "a slice of pizza with olives on a paper plate",
    "an elephant splashing water in a muddy river",
    "a street musician playing the violin beside a fountain",
    "a teddy bear sitting on a leather armchair",
    "a lighthouse on a cliff in a storm, oil painting",
)
SHAPES = tuple(
    f"a {first} and a {second} on a {ground} background"
    for first, second, ground in (
        ("red circle", "blue square", "white"),
        ("green triangle", "yellow star", "black"),
        ("purple heart", "orange diamond", "gray"),
        ("pink ring", "cyan cross", "brown"),
        ("blue circle", "red star", "white"),
        ("yellow square", "green heart", "black"),
        ("orange triangle", "purple ring", "gray"),
        ("cyan diamond", "pink circle", "brown"),
    )
) + tuple(
    f"a {thing} on a {ground} background"
    for thing, ground in (
        ("striped red square", "white"),
        ("dotted blue circle", "black"),
        ("green star", "gray"),
        ("yellow heart", "brown"),
        ("purple triangle", "white"),
        ("orange ring", "black"),
        ("pink diamond", "gray"),
        ("cyan square", "brown"),
    )
)


def default_prompts(model_name: str) -> tuple[str, ...]:
    """The captions that suit a model."""
    return SHAPES if model_name.startswith("shapes") else EVERYDAY


def read_prompts(path: Path) -> tuple[str, ...]:
    """One prompt a line, empty lines left out. Raises `UserError`."""
    try:
        lines: Sequence[str] = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f'"{path}" cannot be read as prompts ({error}); give a text file with one prompt a line'
        ) from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise UserError(f'"{path}" has no prompts; write one on each line')
    return prompts
