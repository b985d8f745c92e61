"""A quantised model as a folder in diffusers layout: packed weights in shards, written whole or not at all.

The folder is a pipeline like any other but for its UNet, whose weights lie in `unet/mixdq-*.safetensors`, and for its
text encoders where these are packed too.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from t2iedit import EditNotSupported, Model, OutputNotWritable
from t2iedit_mixdq.architectures import hollow
from t2iedit_mixdq.bos import BosLookup, BosRows, BosTable
from t2iedit_mixdq.calibration import Ranges, make_scheme, text_rows
from t2iedit_mixdq.errors import QuantisedModelNotUsable, said
from t2iedit_mixdq.execution import Executed, Workshop, execute_layer, one_at_a_time, workshop
from t2iedit_mixdq.kernels.base import geometry_of, lying_last
from t2iedit_mixdq.packing import pack, packed_size, unpack
from t2iedit_mixdq.quantizers import top
from t2iedit_mixdq.recipe import FILE, Recipe, check_fits, read_recipe, write_recipe
from t2iedit_mixdq.saturation import watch, widest
from t2iedit_mixdq.schemes import WHOLE, Scheme, integer_weight
from t2iedit_mixdq.shards import INDEX, LIMIT, Shards, write_shards
from t2iedit_mixdq.simulation import Simulated, copy_form
from t2iedit_mixdq.surroundings import shorten
from t2iedit_mixdq.wiring import Layer, replace_layer, survey

BOS = "bos_rows"
LARGE = 200_000_000
"""Weights from which on compiling the passes in C is worth its seconds."""

Round = Callable[[str, Scheme], Scheme]
"""A layer's scheme with its learned rounding, by the layer's name; the same scheme where none was learned."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found out about a model: what its layers read, and how to round where that was learned."""

    ranges: Ranges
    rounding: Round = lambda name, scheme: scheme


def write_model(
    model: Model, recipe: Recipe, found: Found, folder: Path, *, limit: int = LIMIT
) -> None:
    """The whole model with its UNet packed; `folder` must not exist. Layers are quantised one by one as they are written.

    A BOS-aware recipe's text layers carry what they make of the model's own BOS row.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        with model.lock:
            # Patches stay on after a run until the next one wants others.
            model.patch([])
            _write_components(model, part, recipe)
            rows = text_rows(model) if recipe.bos_aware else None
            write_unet(model.denoiser, recipe, found, rows, part, limit=limit)
        part.replace(folder)
    except OSError as error:
        raise OutputNotWritable(
            f'"{folder}" cannot be written ({said(error)}); free some space, or give another folder'
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@torch.no_grad()
def write_unet(
    unet: Any,
    recipe: Recipe,
    found: Found,
    rows: Tensor | None,
    folder: Path,
    *,
    limit: int = LIMIT,
) -> None:
    """The recipe and the packed UNet alone; `rows` are the BOS rows of a BOS-aware recipe."""
    write_shards(unet_tensors(unet, recipe, found, rows), folder / "unet", limit=limit)
    unet.save_config(folder / "unet")
    write_recipe(recipe, folder)


def unet_tensors(
    unet: Any, recipe: Recipe, found: Found, rows: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the folder one by one: packed layers, then what stays as it is."""
    layers = survey(unet)
    if any(".lora_" in name for name, _ in unet.named_modules()):
        raise EditNotSupported(
            "a LoRA is loaded onto this model; fuse it with pipeline.fuse_lora() and unload it, or take it off,"
            " before the model is quantised"
        )
    packed = set()
    if rows is not None:
        yield BOS, rows
    for name, layer in layers.items():
        module = unet.get_submodule(name)
        scheme = recipe_scheme(recipe, layer, module.weight, found.ranges.get(name))
        scheme = found.rounding(name, scheme)
        if scheme.delta is not None and geometry_of(module) is not None:
            packed.add(name)
            yield from packed_layer(module, layer, scheme, rows if layer.text else None)
        yield from grid_tensors(name, scheme)
    for key, value in unet.state_dict().items():
        if key.rpartition(".")[0] not in packed:
            yield key, value


def recipe_scheme(recipe: Recipe, layer: Layer, weight: Tensor, ranges: Tensor | None) -> Scheme:
    """What a recipe makes of a layer."""
    bits = recipe.of(layer.name)
    how = {"ranges": ranges, "search": recipe.search, "group": recipe.group}
    return make_scheme(weight, layer, *bits, **how)


def packed_layer(
    module: Any, layer: Layer, scheme: Scheme, rows: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    """One layer's tensors; `rows` are the BOS rows that its original weights multiply."""
    assert scheme.delta is not None
    integers = integer_weight(module.weight, scheme, layer.split)
    # Channels last, as the kernels want them.
    lying = integers.permute(0, 2, 3, 1) if integers.ndim == 4 else integers
    flat, bits = lying.contiguous().flatten().cpu(), scheme.weight_bits
    yield f"{layer.name}.packed", flat.view(torch.uint8) if bits == 8 else pack(flat, bits)
    yield f"{layer.name}.delta", scheme.delta
    if scheme.multipliers is not None:
        yield f"{layer.name}.multipliers", scheme.multipliers
    if module.bias is not None:
        yield f"{layer.name}.bias", module.bias.float()
    if rows is not None:
        made = rows.to(module.weight.device) @ module.weight.float().T
        yield f"{layer.name}.bos_outputs", made.to(module.weight.dtype)


def grid_tensors(name: str, scheme: Scheme) -> Iterator[tuple[str, Tensor]]:
    """The grids of a layer's inputs, if it has any."""
    if scheme.grids:
        yield f"{name}.grids", torch.tensor([[grid.delta, grid.zero] for grid in scheme.grids])


def _write_components(model: Model, folder: Path, recipe: Recipe) -> None:
    from t2iedit_mixdq.text_encoders import write_text_encoders

    pipeline = model.pipeline
    pipeline.save_config(folder)
    apart = {"unet"} | (write_text_encoders(model, folder) if recipe.text_encoders else set())
    for name, component in pipeline.components.items():
        if name not in apart and hasattr(component, "save_pretrained"):
            component.save_pretrained(folder / name)
    defaults = model.defaults
    settings = {"steps": defaults.steps, "guidance_scale": defaults.guidance_scale}
    (folder / "t2iedit.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Packed:
    """What a packed UNet carries as `mixdq`, by which it is known."""

    recipe: Recipe
    tools: Workshop


def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline with its UNet on packed weights, which are never anything else on the way.

    Raises `RecipeNotUsable` and `QuantisedModelNotUsable`.
    """
    from t2iedit_mixdq.text_encoders import load_text_encoders

    unet = load_unet(folder, device, dtype)
    encoders = load_text_encoders(folder, device, dtype)
    pipeline = DiffusionPipeline.from_pretrained(
        folder, unet=unet, **encoders, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return pipeline.to(device)


@torch.no_grad()
def load_unet(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The packed UNet alone."""
    recipe = read_recipe(folder)
    unet = hollow_unet(folder)
    layers = survey(unet)
    check_fits(recipe.weights, layers, f'"{folder / FILE}"')
    check_fits(recipe.activations, layers, f'"{folder / FILE}"')
    shards = Shards(folder / "unet")
    large = sum(layer.weights for layer in layers.values()) > LARGE
    tools = workshop(device, large=large)
    lookup = BosLookup(shards.numbers(BOS, (-1, -1)).to(device)) if recipe.bos_aware else None
    for name, layer in layers.items():
        if f"{name}.packed" in shards:
            scheme = stored_scheme(layer, weight_shape(unet, name), recipe.of(name), shards)
            known = lookup if layer.text else None
            load_layer(unet, layer, scheme, shards, tools, known)
    tools.scratch.forms.clear()
    load_rest(unet, shards, device, dtype)
    for name, layer in layers.items():
        if f"{name}.packed" not in shards and f"{name}.grids" in shards:
            _wrap_inputs(unet, layer, recipe, shards)
    shorten(unet, tools.passes.passes)
    _watch_text(unet, layers)
    if device.type == "cpu":
        one_at_a_time(unet)
    unet.mixdq, unet.notes = Packed(recipe, tools), tuple(tools.notes)
    return unet.requires_grad_(False)


def read_schemes(folder: Path, recipe: Recipe, layers: Mapping[str, Layer]) -> dict[str, Scheme]:
    """Every layer's scheme as it was packed; learned integers with it, others are found by rounding again."""
    shards = Shards(folder / "unet")
    unet = hollow_unet(folder)
    schemes = {}
    for name, layer in layers.items():
        shape = weight_shape(unet, name)
        scheme = stored_scheme(layer, shape, recipe.of(name), shards)
        if recipe.rounding != "nearest" and scheme.delta is not None:
            scheme = replace(scheme, integers=stored_integers(layer, scheme, shape, shards))
        schemes[name] = scheme
    return schemes


def weight_shape(network: nn.Module, name: str) -> tuple[int, ...]:
    """The shape of a layer's weights."""
    return tuple(network.get_parameter(f"{name}.weight").shape)


def stored_scheme(
    layer: Layer, shape: tuple[int, ...], bits: tuple[int, int], shards: Shards
) -> Scheme:
    """A layer's scheme without its integers, whose shape is `shape`. Raises `QuantisedModelNotUsable`."""
    name, (weight_bits, act_bits) = layer.name, bits
    grids = () if act_bits == WHOLE else shards.grids(name, layer.parts, act_bits)
    if f"{name}.delta" not in shards:
        return Scheme(WHOLE, act_bits, grids=grids)
    delta = shards.numbers(f"{name}.delta", (layer.parts, shape[0]), positive=True).float()
    multipliers = _stored_multipliers(f"{name}.multipliers", shape, weight_bits, shards)
    return Scheme(weight_bits, act_bits, delta, grids, multipliers)


def _stored_multipliers(
    name: str, shape: tuple[int, ...], bits: int, shards: Shards
) -> Tensor | None:
    if name not in shards:
        return None
    found = shards.take(name)
    fits = found.dtype == torch.uint8 and found.ndim == 2 and found.numel() > 0
    if not fits or len(found) != shape[0] or shape[1] % found.shape[1]:
        raise shards.unusable(name, found, f"multipliers for {shape[0]} outputs")
    if int(found.max()) * (top(bits) + 1) > 128:
        raise shards.unusable(name, found, "multipliers that fit eight bits")
    return found


def stored_integers(layer: Layer, scheme: Scheme, shape: tuple[int, ...], shards: Shards) -> Tensor:
    """A layer's integers, one a byte."""
    bits = scheme.weight_bits
    stored = shards.take(f"{layer.name}.packed", size=packed_size(layer.weights, bits))
    flat = stored.view(torch.int8) if bits == 8 else unpack(stored, bits, layer.weights)
    return lying_last(flat, shape)


def load_layer(
    network: Any,
    layer: Layer,
    scheme: Scheme,
    shards: Shards,
    tools: Workshop,
    lookup: BosLookup | None,
) -> Executed:
    """Put the packed layer into the place of the hollow one; with `lookup` its BOS rows come from a table."""
    name = layer.name
    original = network.get_submodule(name)
    geometry = geometry_of(original)
    assert geometry is not None
    integers = stored_integers(layer, scheme, geometry.shape, shards)
    table = None
    if lookup is not None:
        table = _stored_table(name, lookup, geometry.shape, shards)
    key = f"{name}.bias"
    bias = shards.numbers(key, geometry.shape[:1]) if key in shards else None
    bos = BosRows() if table is not None else None
    made = execute_layer(layer, scheme, integers, geometry, tools, bias=bias, table=table, bos=bos)
    copy_form(original, made)
    replace_layer(network, name, made)
    return made


def _stored_table(name: str, lookup: BosLookup, shape: tuple[int, ...], shards: Shards) -> BosTable:
    known = lookup.rows[1:]
    if known.shape[1] != shape[1]:
        raise shards.unusable("BOS row", known, f"rows of {shape[1]} numbers for {name}")
    outputs = shards.numbers(f"{name}.bos_outputs", (len(known), shape[0]))
    return BosTable(lookup, outputs.to(known.device))


def load_rest(network: nn.Module, shards: Shards, device: torch.device, dtype: torch.dtype) -> None:
    """What is not packed, in place of what is hollow. Raises `QuantisedModelNotUsable`."""
    wanted = [key for key, value in network.state_dict().items() if value.is_meta]
    state = {key: shards.take(key).to(device, dtype) for key in wanted}
    for key, value in state.items():
        expected = network.get_parameter(key).shape
        if value.shape != expected:
            raise QuantisedModelNotUsable(
                f'"{shards.folder}" gives {key} the shape {list(value.shape)} where {list(expected)} belongs;'
                " quantise the model again"
            )
    network.load_state_dict(state, strict=False, assign=True)


def _watch_text(unet: Any, layers: Mapping[str, Layer]) -> None:
    executed = [unet.get_submodule(name) for name, layer in layers.items() if layer.text]
    grid = widest(
        grid for module in executed if isinstance(module, Executed) for grid in module.scheme.grids
    )
    if grid is not None:
        watch(unet, grid)


def _wrap_inputs(unet: Any, layer: Layer, recipe: Recipe, shards: Shards) -> None:
    shape = weight_shape(unet, layer.name)
    scheme = stored_scheme(layer, shape, recipe.of(layer.name), shards)
    bos = BosRows() if recipe.bos_aware else None
    module = Simulated(unet.get_submodule(layer.name), layer, scheme, bos=bos)
    replace_layer(unet, layer.name, module.eval())


def read_config(folder: Path, component: str = "unet") -> dict[str, Any]:
    """The configuration of the UNet, or of another component. Raises `QuantisedModelNotUsable`."""
    path = folder / component / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise QuantisedModelNotUsable(
            f'"{path}" cannot be read ({said(error)}); quantise the model again'
        ) from error
    if not isinstance(config, dict):
        raise QuantisedModelNotUsable(f'"{path}" is no configuration; quantise the model again')
    return config


def hollow_unet(folder: Path) -> Any:
    """The folder's UNet without a single weight. Raises `QuantisedModelNotUsable`."""
    config = read_config(folder)
    try:
        return hollow(config)
    except Exception as error:
        raise QuantisedModelNotUsable(
            f'"{folder / "unet" / "config.json"}" describes no UNet that can be built ({said(error)});'
            " quantise the model again"
        ) from error


def verify(folder: Path) -> None:
    """Compare every packed component with its checksums. Raises `QuantisedModelNotUsable`."""
    for path in sorted(folder.iterdir()):
        if is_packed(path):
            Shards(path).verify()


def is_packed(folder: Path) -> bool:
    """Whether a component's folder holds packed weights."""
    return (folder / INDEX).is_file()
