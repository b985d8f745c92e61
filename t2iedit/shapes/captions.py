"""Scenes to words: several true captions for each scene."""

from random import Random

from t2iedit.shapes.scenes import Scene, SceneObject

OPENINGS = ("", "", "", "a picture of ", "a photo of ", "a drawing of ", "an image of ")
GENERIC_NOUNS = ("shape", "object")
RELATIONS = {
    "left of": lambda a, b: b.x - a.x,
    "right of": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
}
CLEARLY = 0.2
"""A relation is said only of centres at least this fraction of the side apart along its axis."""


def caption(scene: Scene, rng: Random) -> str:
    """A random true description: sometimes without the background, rarely without a colour or shape."""
    objects = list(scene.objects)
    rng.shuffle(objects)
    background = f" on a {scene.background} background" if rng.random() < 0.5 else ""
    return rng.choice(OPENINGS) + _objects(objects, rng) + background


def plain_caption(scene: Scene, *, background: bool = False) -> str:
    """The shortest full description, objects in the scene's order."""
    words = _listed([f"{article(noun)} {noun}" for noun in map(_full_noun, scene.objects)])
    return f"{words} on a {scene.background} background" if background else words


def article(words: str) -> str:
    """a or an."""
    return "an" if words[0] in "aeiou" else "a"


def _objects(objects: list[SceneObject], rng: Random) -> str:
    phrases = [_phrase(item, rng) for item in objects]
    relations = _true_relations(objects) if len(objects) == 2 else []
    if relations and rng.random() < 0.4:
        return f"{phrases[0]} {rng.choice(relations)} {phrases[1]}"
    return _listed(phrases)


def _true_relations(objects: list[SceneObject]) -> list[str]:
    return [word for word, apart in RELATIONS.items() if apart(*objects) > CLEARLY]


def _listed(phrases: list[str]) -> str:
    if len(phrases) < 3:
        return " and ".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _phrase(item: SceneObject, rng: Random) -> str:
    chance = rng.random()
    if chance < 0.04:
        noun = item.shape
    elif chance < 0.08:
        noun = f"{item.color} {rng.choice(GENERIC_NOUNS)}"
    else:
        noun = _full_noun(item)
    return f"{article(noun)} {noun}"


def _full_noun(item: SceneObject) -> str:
    texture = "" if item.texture == "plain" else f"{item.texture} "
    return f"{texture}{item.color} {item.shape}"
