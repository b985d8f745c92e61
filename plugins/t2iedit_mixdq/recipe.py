"""Recipes: how many bits each layer's weights and inputs have. Upstream's YAML files are read as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from t2iedit import Model
from t2iedit_mixdq.errors import RecipeNotUsable, said
from t2iedit_mixdq.quantizers import BITS
from t2iedit_mixdq.schemes import WHOLE
from t2iedit_mixdq.wiring import Group, Layer, weights_digest

Bits = dict[str, int]
"""Layer name to 2, 4, 8 or 16; 16 and layers that are not named stay as they are."""
FORMAT = 1
FILE = "mixdq.yaml"
"""A model folder with this file in it holds packed weights."""
LARGEST = 8 * 2**20
"""Bytes; a recipe is some fifty thousand."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Bits of weights and inputs by layer, and how the ranges were found."""

    weights: Bits
    activations: Bits
    bos_aware: bool = True
    search: str = "minmax"
    rounding: str = "nearest"
    """`nearest`, or `flexround` where it was learned."""
    group: int = 0
    """Inputs of a linear layer under 8 bits that share a step; 0 for one step for each output channel."""
    text_encoders: bool = False
    """Whether the text encoders are packed too, in 8 bits."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else is worth knowing: the model, the calibration, the allocation."""

    def of(self, name: str) -> tuple[int, int]:
        """The bits of a layer's weights and of its inputs."""
        return self.weights.get(name, WHOLE), self.activations.get(name, WHOLE)

    def made_of(self, model: Model) -> bool:
        """Whether it is of this model's very weights; also where that cannot be told, as after a change of dtype."""
        made_from = self.facts.get("model")
        known = made_from if isinstance(made_from, dict) else {}
        if known.get("dtype") != str(model.dtype).removeprefix("torch."):
            return True
        return known.get("weights") == weights_digest(model.denoiser, self.weights)


def uniform(layers: Mapping[str, Layer], bits: int) -> Bits:
    """One width for all layers."""
    return dict.fromkeys(layers, bits)


def folder_of(path: Path) -> Path:
    """The folder of a recipe, also where the file in it is given."""
    return path.parent if path.name == FILE else path


def read_bits(path: Path) -> Bits:
    """A YAML mapping of layers to bits, as upstream ships them, with or without `model.` before the names.

    Raises `RecipeNotUsable`.
    """
    data = _load(path)
    if not isinstance(data, dict) or not data:
        raise RecipeNotUsable(
            f'"{path}" is no mapping of layer names to bits; give such a YAML file'
        )
    return _checked({str(name).removeprefix("model."): bits for name, bits in data.items()}, path)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a quantised model's folder. Raises `RecipeNotUsable`."""
    file = path / FILE if path.is_dir() else path
    data = _load(file)
    if not isinstance(data, dict) or not {"format", "weights", "activations"} <= set(data):
        raise RecipeNotUsable(
            f'"{file}" is no recipe of mixdq; give a folder that "t2iedit mixdq quantize" wrote'
        )
    if data["format"] != FORMAT:
        raise RecipeNotUsable(
            f'"{file}" has format {data["format"]!r} and this version reads {FORMAT}; update t2iedit or quantise again'
        )
    facts = data.get("facts")
    return Recipe(
        _checked(data["weights"], file),
        _checked(data["activations"], file),
        bos_aware=bool(data.get("bos_aware", True)),
        search=str(data.get("search", "minmax")),
        rounding=str(data.get("rounding", "nearest")),
        group=data["group"] if type(data.get("group")) is int else 0,
        text_encoders=bool(data.get("text_encoders", False)),
        facts=facts if isinstance(facts, dict) else {},
    )


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the file `FILE` into a folder."""
    data = {
        "format": FORMAT,
        "bos_aware": recipe.bos_aware,
        "search": recipe.search,
        "rounding": recipe.rounding,
        "group": recipe.group,
        "text_encoders": recipe.text_encoders,
        "facts": recipe.facts,
        "weights": recipe.weights,
        "activations": recipe.activations,
    }
    (path / FILE).write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")


def check_fits(bits: Bits, layers: Mapping[str, Layer], source: str) -> None:
    """Raises `RecipeNotUsable` if the bits name layers that the model lacks, with the first of them."""
    foreign = [name for name in bits if name not in layers]
    if foreign:
        raise RecipeNotUsable(
            f"{source} is for another architecture: this model has no layer {_first(foreign)};"
            " quantise this model itself, or open the one the recipe is for"
        )


def check_same_form(theirs: Mapping[str, Layer], ours: Mapping[str, Layer], source: str) -> None:
    """Raises `RecipeNotUsable`, with the first layers that differ, unless a recipe's layers have this model's form."""
    forms = [{name: layer.form for name, layer in layers.items()} for layers in (theirs, ours)]
    differing = [n for n in {**theirs, **ours} if forms[0].get(n) != forms[1].get(n)]
    if differing:
        raise RecipeNotUsable(
            f"{source} is for another architecture: it does not have this model's {_first(differing)};"
            " quantise this model itself, or open the one the recipe is for"
        )


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def mean_bits(
    bits: Bits, layers: Mapping[str, Layer], of: str, group: Group | None = None
) -> float:
    """The true mean over `weights` or `inputs`, layers that stay whole counting 16. With `group`, of that group alone."""
    chosen = [layer for layer in layers.values() if group in (None, layer.group)]
    sizes = {layer.name: getattr(layer, of) for layer in chosen}
    total = sum(sizes.values())
    return sum(bits.get(name, WHOLE) * size for name, size in sizes.items()) / total


def listed_mean(bits: Bits, layers: Mapping[str, Layer], of: str) -> float:
    """The mean over quantised layers alone, which is what papers print: it hides the layers left whole."""
    sizes = {n: getattr(layers[n], of) for n, width in bits.items() if width != WHOLE}
    return sum(bits[n] * size for n, size in sizes.items()) / max(1, sum(sizes.values()))


def _checked(bits: Any, path: Path) -> Bits:
    if not isinstance(bits, dict):
        raise RecipeNotUsable(f'"{path}" has no mapping of layer names to bits where one belongs')
    for name, width in bits.items():
        if not isinstance(name, str):
            raise RecipeNotUsable(f'"{path}" has {name!r} where the name of a layer belongs')
        if type(width) is not int or width not in (*BITS, WHOLE):
            raise RecipeNotUsable(
                f'"{path}" gives {name} {width!r} bits; a layer has 2, 4 or 8, or 16 to be left alone'
            )
    return dict(bits)


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST:
            raise RecipeNotUsable(f'"{path}" is too large for a recipe; give a YAML file of bits')
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise RecipeNotUsable(
            f'"{path}" cannot be read as a recipe ({said(error)}); give a folder that "t2iedit mixdq quantize" wrote,'
            " or a YAML file of layer names and bits"
        ) from error
