"""A quantised model as a folder in diffusers layout: packed weights in shards, written whole or not at all.

The folder is a pipeline like any other but for its UNet, whose weights lie in `unet/mixdq-*.safetensors`.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from t2iedit import EditNotSupported, Model
from t2iedit_mixdq.architectures import hollow
from t2iedit_mixdq.bos import BosLookup, BosRows, BosTable
from t2iedit_mixdq.calibration import Ranges, make_scheme, text_rows
from t2iedit_mixdq.errors import QuantisedModelNotUsable
from t2iedit_mixdq.execution import Workshop, execute_layer, workshop
from t2iedit_mixdq.kernels.base import geometry_of
from t2iedit_mixdq.packing import pack, packed_size, unpack
from t2iedit_mixdq.quantizers import Affine
from t2iedit_mixdq.recipe import FILE, Recipe, check_fits, read_recipe, write_recipe
from t2iedit_mixdq.schemes import WHOLE, Scheme, integer_weight
from t2iedit_mixdq.simulation import Simulated, copy_form
from t2iedit_mixdq.wiring import Layer, replace_layer, survey

INDEX = "mixdq.safetensors.index.json"
SHARD = 2 * 2**30
"""Bytes after which a new shard begins."""
BOS = "bos_rows"
FUSED = 200_000_000
"""Weights from which on compiling a fused quantisation pass is worth its seconds."""


def write_model(
    model: Model, recipe: Recipe, ranges: Ranges, folder: Path, *, shard: int = SHARD
) -> None:
    """The whole model with its UNet packed; `folder` must not exist. Layers are quantised one by one as they are written.

    A BOS-aware recipe's text layers carry what they make of the model's own BOS row.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _write_components(model, part)
        with model.lock:
            # Patches stay on after a run until the next one wants others.
            model.patch([])
            rows = text_rows(model) if recipe.bos_aware else None
            write_unet(model.denoiser, recipe, ranges, rows, part, shard=shard)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@torch.no_grad()
def write_unet(
    unet: Any,
    recipe: Recipe,
    ranges: Ranges,
    rows: Tensor | None,
    folder: Path,
    *,
    shard: int = SHARD,
) -> None:
    """The recipe and the packed UNet alone; `rows` are the BOS rows of a BOS-aware recipe."""
    _write_shards(unet_tensors(unet, recipe, ranges, rows), folder / "unet", shard)
    unet.save_config(folder / "unet")
    write_recipe(recipe, folder)


def unet_tensors(
    unet: Any, recipe: Recipe, ranges: Ranges, rows: Tensor | None
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
        bits = recipe.of(name)
        scheme = make_scheme(
            module.weight, layer, *bits, ranges=ranges.get(name), search=recipe.search
        )
        if scheme.delta is not None and geometry_of(module) is not None:
            packed.add(name)
            yield from _packed_layer(module, layer, scheme, rows)
        if scheme.grids:
            grids = [[grid.delta, grid.zero] for grid in scheme.grids]
            yield f"{name}.grids", torch.tensor(grids)
    for key, value in unet.state_dict().items():
        if key.rpartition(".")[0] not in packed:
            yield key, value


def _packed_layer(
    module: Any, layer: Layer, scheme: Scheme, rows: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    assert scheme.delta is not None
    integers = integer_weight(module.weight, scheme.weight_bits, scheme.delta, layer.split)
    flat = integers.contiguous().flatten().cpu()
    yield (
        f"{layer.name}.packed",
        flat.view(torch.uint8) if scheme.weight_bits == 8 else pack(flat, scheme.weight_bits),
    )
    yield f"{layer.name}.delta", scheme.delta
    if module.bias is not None:
        yield f"{layer.name}.bias", module.bias.float()
    if layer.text and rows is not None:
        made = rows.to(module.weight.device) @ module.weight.float().T
        yield f"{layer.name}.bos_outputs", made.to(module.weight.dtype)


def _write_components(model: Model, folder: Path) -> None:
    pipeline = model.pipeline
    pipeline.save_config(folder)
    for name, component in pipeline.components.items():
        if name != "unet" and hasattr(component, "save_pretrained"):
            component.save_pretrained(folder / name)
    defaults = model.defaults
    settings = {"steps": defaults.steps, "guidance_scale": defaults.guidance_scale}
    (folder / "t2iedit.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _write_shards(tensors: Iterator[tuple[str, Tensor]], folder: Path, limit: int) -> None:
    folder.mkdir()
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}

    def flush() -> None:
        shards.append(list(held))
        save_file(held, folder / f"{len(shards)}.part")
        held.clear()

    for name, tensor in tensors:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > limit:
            flush()
        # A copy of its own: weights may share memory, which safetensors refuses.
        held[name] = tensor.detach().cpu().contiguous().clone()
    flush()
    place: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"mixdq-{number:05}-of-{len(shards):05}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        place |= dict.fromkeys(names, file)
    index = json.dumps({"weight_map": place}, indent=2)
    (folder / INDEX).write_text(index + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Packed:
    """What a packed UNet carries as `mixdq`, by which it is known."""

    recipe: Recipe
    tools: Workshop


def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline with its UNet on packed weights, which are never anything else on the way.

    Raises `RecipeNotUsable` and `QuantisedModelNotUsable`.
    """
    unet = load_unet(folder, device, dtype)
    pipeline = DiffusionPipeline.from_pretrained(
        folder, unet=unet, dtype=dtype, local_files_only=True, use_safetensors=True
    )
    return pipeline.to(device)


@torch.no_grad()
def load_unet(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The packed UNet alone."""
    recipe = read_recipe(folder)
    unet: Any = hollow(read_config(folder))
    layers = survey(unet)
    check_fits(recipe.weights, layers, f'"{folder / FILE}"')
    check_fits(recipe.activations, layers, f'"{folder / FILE}"')
    shards = Shards(folder / "unet")
    large = sum(layer.weights for layer in layers.values()) > FUSED
    tools = workshop(device, large=large)
    lookup = BosLookup(shards.take(BOS).to(device)) if recipe.bos_aware else None
    for name, layer in layers.items():
        if f"{name}.packed" in shards:
            replace_layer(unet, name, _executed(unet, layer, recipe, shards, tools, lookup))
    tools.scratch.forms.clear()
    _load_rest(unet, shards, device, dtype)
    for name, layer in layers.items():
        if f"{name}.packed" not in shards and f"{name}.grids" in shards:
            _wrap_inputs(unet, layer, recipe, shards)
    unet.mixdq, unet.notes = Packed(recipe, tools), tuple(tools.notes)
    return unet.requires_grad_(False)


def read_schemes(folder: Path, recipe: Recipe, layers: Mapping[str, Layer]) -> dict[str, Scheme]:
    """Every layer's scheme as it was packed, without the packed weights."""
    shards = Shards(folder / "unet")
    return {name: _scheme(layer, recipe, shards) for name, layer in layers.items()}


def _scheme(layer: Layer, recipe: Recipe, shards: "Shards") -> Scheme:
    bits, act_bits = recipe.of(layer.name)
    delta = shards.take(f"{layer.name}.delta") if f"{layer.name}.delta" in shards else None
    if delta is None:
        bits = WHOLE
    if act_bits == WHOLE:
        return Scheme(bits, WHOLE, delta)
    pairs = shards.take(f"{layer.name}.grids").tolist()
    grids = tuple(Affine(step, int(zero), act_bits) for step, zero in pairs)
    return Scheme(bits, act_bits, delta, grids)


def _executed(
    unet: Any,
    layer: Layer,
    recipe: Recipe,
    shards: "Shards",
    tools: Workshop,
    lookup: BosLookup | None,
) -> nn.Module:
    scheme = _scheme(layer, recipe, shards)
    name = layer.name
    geometry = geometry_of(unet.get_submodule(name))
    assert geometry is not None
    stored = shards.take(f"{name}.packed", size=packed_size(layer.weights, scheme.weight_bits))
    if scheme.weight_bits == 8:
        integers = stored.view(torch.int8).view(geometry.shape)
    else:
        integers = unpack(stored, scheme.weight_bits, layer.weights).view(geometry.shape)
    table = None
    if layer.text and lookup is not None:
        table = BosTable(lookup, shards.take(f"{name}.bos_outputs").to(tools.device))
    bias = shards.take(f"{name}.bias") if f"{name}.bias" in shards else None
    bos = BosRows() if table is not None else None
    made = execute_layer(layer, scheme, integers, geometry, tools, bias=bias, table=table, bos=bos)
    copy_form(unet.get_submodule(name), made)
    return made


def _load_rest(unet: Any, shards: "Shards", device: torch.device, dtype: torch.dtype) -> None:
    wanted = [key for key, value in unet.state_dict().items() if value.is_meta]
    state = {key: shards.take(key).to(device, dtype) for key in wanted}
    for key, value in state.items():
        expected = unet.get_parameter(key).shape
        if value.shape != expected:
            raise QuantisedModelNotUsable(
                f'"{shards.folder}" gives {key} the shape {list(value.shape)} where {list(expected)} belongs;'
                " quantise the model again"
            )
    unet.load_state_dict(state, strict=False, assign=True)


def _wrap_inputs(unet: Any, layer: Layer, recipe: Recipe, shards: "Shards") -> None:
    scheme = _scheme(layer, recipe, shards)
    bos = BosRows() if recipe.bos_aware else None
    module = Simulated(unet.get_submodule(layer.name), layer, scheme, bos=bos)
    replace_layer(unet, layer.name, module.eval())


def read_config(folder: Path) -> dict[str, Any]:
    """The UNet's configuration. Raises `QuantisedModelNotUsable`."""
    path = folder / "unet" / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QuantisedModelNotUsable(
            f'"{path}" cannot be read ({error}); quantise the model again'
        ) from error


class Shards:
    """The tensors of a folder of shards, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._place = self._read_index()
        self._open: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def take(self, name: str, *, size: int | None = None) -> Tensor:
        """A tensor, `size` bytes long if given. Raises `QuantisedModelNotUsable`."""
        if name not in self._place:
            raise QuantisedModelNotUsable(
                f'"{self.folder}" lacks the tensor {name}; quantise the model again'
            )
        try:
            tensor = self._shard(self._place[name]).get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise QuantisedModelNotUsable(
                f'the shard "{self._place[name]}" in "{self.folder}" is missing or damaged ({error});'
                " copy it again, or quantise the model again"
            ) from error
        if size is not None and (tensor.dtype != torch.uint8 or tensor.nbytes != size):
            raise QuantisedModelNotUsable(
                f'"{self.folder}" has {tensor.nbytes} bytes of {tensor.dtype} for {name} where {size} of uint8'
                " belong; quantise the model again"
            )
        return tensor

    def _shard(self, file: str) -> Any:
        if file not in self._open:
            # One at a time, so that no more than one shard stays mapped.
            self._open = {file: safe_open(self.folder / file, "pt")}
        return self._open[file]

    def _read_index(self) -> dict[str, str]:
        path = self.folder / INDEX
        try:
            place = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise QuantisedModelNotUsable(
                f'"{path}" cannot be read ({error}); copy the folder again, or quantise the model again'
            ) from error
        if not isinstance(place, dict) or not all(
            isinstance(file, str) and Path(file).name == file for file in place.values()
        ):
            raise QuantisedModelNotUsable(
                f'"{path}" is no index of shards; quantise the model again'
            )
        for file in sorted(set(place.values())):
            if not (self.folder / file).is_file():
                raise QuantisedModelNotUsable(
                    f'"{self.folder}" lacks its shard "{file}"; copy it again, or quantise the model again'
                )
        return place
