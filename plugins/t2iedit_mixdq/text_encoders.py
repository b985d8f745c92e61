"""Text encoders in eight bits. Their BOS row is a constant at every layer, so the UNet's rule for it holds throughout.

CLIP is causal: what its first position holds depends on nothing that is typed. That row is also where CLIP keeps values
some fifty times as large as all others, in each of its layers. So each layer takes what the original weights make of
it from a table, as the UNet's text layers do, and quantises the rest.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import t2iedit
from t2iedit import EditNotSupported, Model, Request
from t2iedit_mixdq.bos import BosLookup, BosRows
from t2iedit_mixdq.calibration import Observer, Ranges, make_scheme
from t2iedit_mixdq.checkpoint import (
    grid_tensors,
    is_packed,
    load_layer,
    load_rest,
    packed_layer,
    read_config,
    stored_scheme,
    weight_shape,
)
from t2iedit_mixdq.errors import QuantisedModelNotUsable
from t2iedit_mixdq.execution import one_at_a_time, workshop
from t2iedit_mixdq.prompts import default_prompts
from t2iedit_mixdq.schemes import WHOLE, Scheme
from t2iedit_mixdq.shards import Shards, write_shards
from t2iedit_mixdq.simulation import simulate
from t2iedit_mixdq.wiring import TOWER, Layer

BITS = 8
"""Of weights and inputs alike."""
ROW = "bos_row"


def text_layers(transformer: nn.Module) -> dict[str, Layer]:
    """The linear layers of a CLIP text encoder's tower, by name."""
    return {
        name: Layer(name, "linear", module.weight.numel(), module.in_features)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and TOWER in name
    }


def clip_encoders(model: Model) -> dict[str, Any]:
    """The pipeline's text encoders by component. Raises `EditNotSupported` for what is not CLIP."""
    found = {n: c for n, c in model.pipeline.components.items() if n.startswith("text_encoder")}
    for name, transformer in found.items():
        kind = type(transformer).__name__
        if transformer is not None and not kind.startswith("CLIPText"):
            raise EditNotSupported(
                f"the {name} of this model is a {kind}, and only CLIP's can be quantised; leave out --text-encoders"
            )
    return {name: transformer for name, transformer in found.items() if transformer is not None}


@dataclass
class Reading:
    """What the layers of one encoder read: their ranges without BOS rows, and the BOS rows themselves."""

    observer: Observer = field(default_factory=Observer)
    rows: dict[str, Tensor] = field(default_factory=dict)

    def note_row(self, name: str, x: Tensor) -> None:
        self.rows.setdefault(name, x[:1, 0].float().clone())

    @property
    def ranges(self) -> Ranges:
        return self.observer.ranges


@torch.no_grad()
def read(model: Model) -> dict[str, Reading]:
    """Every encoder's reading of the prompts that suit the model."""
    readings, undos, handles = {}, [], []
    prompts = default_prompts(model.name)
    try:
        for name, transformer in clip_encoders(model).items():
            layers, reading = text_layers(transformer), Reading()
            handles += [_watch(transformer, layer, reading) for layer in layers]
            whole = dict.fromkeys(layers, Scheme(WHOLE, WHOLE))
            observer = reading.observer
            undos.append(simulate(transformer, layers, whole, bos=BosRows(), observer=observer))
            readings[name] = reading
        runs = [t2iedit.start(model, Request(prompt)) for prompt in prompts]
        t2iedit.condition(runs)
    finally:
        for handle in handles:
            handle.remove()
        for undo in reversed(undos):
            undo()
    for reading in readings.values():
        reading.observer.end_batch()
    return readings


def _watch(transformer: nn.Module, name: str, reading: Reading) -> Any:
    module = transformer.get_submodule(name)
    return module.register_forward_pre_hook(
        lambda module, args: reading.note_row(name, args[0])  # the simulated layer calls it
    )


def write_text_encoders(model: Model, folder: Path) -> set[str]:
    """Pack every encoder into its folder; their names."""
    readings = read(model)
    for name, transformer in clip_encoders(model).items():
        write_shards(encoder_tensors(transformer, readings[name]), folder / name)
        config = copy.deepcopy(transformer.config)
        config.architectures = [type(transformer).__name__]
        config.save_pretrained(folder / name)
    return set(readings)


@torch.no_grad()
def encoder_tensors(transformer: nn.Module, reading: Reading) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one encoder: packed layers, then what stays as it is."""
    layers = text_layers(transformer)
    for name, scheme in encoder_schemes(transformer, reading).items():
        module, row = transformer.get_submodule(name), reading.rows[name]
        yield from packed_layer(module, layers[name], scheme, row)
        yield from grid_tensors(name, scheme)
        yield f"{name}.{ROW}", row
    for key, value in transformer.state_dict().items():
        if key.rpartition(".")[0] not in layers:
            yield key, value


def encoder_schemes(transformer: nn.Module, reading: Reading) -> Mapping[str, Scheme]:
    """Eight bits for every layer."""
    return {
        name: make_scheme(
            transformer.get_parameter(f"{name}.weight"),
            layer,
            BITS,
            BITS,
            ranges=reading.ranges[name],
        )
        for name, layer in text_layers(transformer).items()
    }


def load_text_encoders(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The packed encoders of a folder by component; those that are not packed are left to diffusers."""
    names = sorted(path.name for path in folder.glob("text_encoder*") if is_packed(path))
    return {name: load_text_encoder(folder, name, device, dtype) for name in names}


@torch.no_grad()
def load_text_encoder(folder: Path, name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """One encoder on packed weights. Raises `QuantisedModelNotUsable`."""
    transformer = _hollow(folder, name)
    shards, tools = Shards(folder / name), workshop(device, large=False)
    for layer in text_layers(transformer).values():
        shape = weight_shape(transformer, layer.name)
        scheme = stored_scheme(layer, shape, (BITS, BITS), shards)
        lookup = BosLookup(shards.numbers(f"{layer.name}.{ROW}", (-1, -1)).to(device))
        load_layer(transformer, layer, scheme, shards, tools, lookup)
    load_rest(transformer, shards, device, dtype)
    for key, buffer in list(transformer.named_buffers()):
        if buffer.is_meta:
            _number_positions(transformer, key, buffer.shape[-1], device)
    if device.type == "cpu":
        one_at_a_time(transformer)
    return transformer.eval().requires_grad_(False)


def _hollow(folder: Path, name: str) -> Any:
    config = read_config(folder, name)
    kinds = {
        "CLIPTextModel": transformers.CLIPTextModel,
        "CLIPTextModelWithProjection": transformers.CLIPTextModelWithProjection,
    }
    kind = next(iter(config.get("architectures") or ["CLIPTextModel"]))
    if kind not in kinds:
        raise QuantisedModelNotUsable(
            f'"{folder / name}" is a {kind} and not one of {", ".join(kinds)}; quantise the model again'
        )
    with torch.device("meta"):
        return kinds[kind](transformers.CLIPTextConfig.from_dict(config))


def _number_positions(network: nn.Module, key: str, count: int, device: torch.device) -> None:
    """CLIP's one buffer that no checkpoint holds: the numbers of its positions."""
    parent, _, leaf = key.rpartition(".")
    assert leaf == "position_ids", key
    numbers = torch.arange(count, device=device)[None]
    network.get_submodule(parent).register_buffer(leaf, numbers, persistent=False)
