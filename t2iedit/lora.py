"""LoRA files as a reversible patch: loaded through diffusers, unloaded so that every weight is as it was."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from t2iedit import digests
from t2iedit.errors import LoraNotUsable, said
from t2iedit.model import Key, Model, Undo, freeze

KOHYA = ("lora_unet_", "lora_te")
KOHYA_PROJECTIONS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


class Lora(BaseModel):
    """A LoRA file and the scale of its effect; 0 is none, 1 what it was trained for."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    file: str
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Lora":
        """`FILE` or `FILE:SCALE`."""
        file, colon, scale = text.rpartition(":")
        try:
            return cls(file=file, scale=float(scale)) if colon else cls(file=text)
        except ValueError:
            return cls(file=text)


def digest(lora: Lora) -> str:
    """Twelve hexadecimal digits of the file's SHA-256. Raises `LoraNotUsable`."""
    try:
        return digests.of_file(lora.file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LoraNotUsable(
            f'the LoRA "{lora.file}" cannot be read ({reason}); give a .safetensors file'
        ) from error


def patch(loras: Sequence[Lora]) -> tuple[Key, Any]:
    """What `Model.patch` takes: a key that tells files apart by content, and the function that loads them all."""
    content = ",".join(f"{digest(lora)}:{lora.scale}" for lora in loras)
    return ("lora", content), lambda model: load(model, loras)


def load(model: Model, loras: Sequence[Lora]) -> Undo:
    """Load the files beside whatever the pipeline has loaded; returns what takes them off again.

    Raises `LoraNotUsable`; the model is then as it was.
    """
    pipeline = model.pipeline
    if not hasattr(pipeline, "load_lora_weights"):
        raise LoraNotUsable(f"a {type(pipeline).__name__} takes no LoRA")
    before = pipeline.get_active_adapters() if _adapters(pipeline) else []
    strengths = [(layer.scaling, dict(layer.scaling)) for layer in _adapted(pipeline)]
    names = [f"t2iedit_{number}" for number in range(len(loras))]

    def undo() -> None:
        if set(names) >= _adapters(pipeline):
            pipeline.unload_lora_weights()
        else:
            pipeline.delete_adapters([name for name in names if name in _adapters(pipeline)])
            pipeline.set_adapters(before)
        _restore(strengths)

    try:
        for lora, name in zip(loras, names, strict=True):
            _load_one(pipeline, lora, name)
        pipeline.set_adapters([*before, *names], [1.0] * len(before) + [x.scale for x in loras])
        _restore(strengths)
    except BaseException:
        undo()
        raise
    freeze(pipeline)
    return undo


def _adapted(pipeline: Any) -> list[Any]:
    """The layers that have adapters already."""
    modules = [c for c in pipeline.components.values() if isinstance(c, nn.Module)]
    parts = [part for module in modules for part in module.modules()]
    return [part for part in parts if isinstance(getattr(part, "scaling", None), dict)]


def _restore(strengths: Sequence[tuple[dict[str, float], dict[str, float]]]) -> None:
    """Strengths that the pipeline's owner gave his adapters: naming which ones are active sets them all to 1."""
    for live, kept in strengths:
        live |= kept


def _load_one(pipeline: Any, lora: Lora, name: str) -> None:
    keys = _keys(lora)
    kohya = any(key.startswith(KOHYA) for key in keys)
    path = Path(lora.file)
    try:
        with warnings.catch_warnings():
            # peft warns of every adapter after the first, as if nobody could mean it.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            pipeline.load_lora_weights(
                _from_kohya(pipeline, path) if kohya else str(path.parent),
                weight_name=path.name,
                adapter_name=name,
                local_files_only=True,
            )
    # Whatever a foreign file makes the libraries raise means the same to the user.
    except Exception as error:
        raise LoraNotUsable(
            f'the LoRA "{lora.file}" does not fit this model ({said(error)}); load it onto the kind of model it was trained'
            " on, and before that model is quantised"
        ) from error
    if name not in _adapters(pipeline):
        raise LoraNotUsable(
            f'the LoRA "{lora.file}" names no layer of this model; load it onto the kind of model it was trained on'
        )
    _check_whole(pipeline, lora, keys, name)


def _check_whole(pipeline: Any, lora: Lora, keys: list[str], name: str) -> None:
    """The libraries pass over layers that they do not find, the text encoder's above all, and only log it.

    Raises `LoraNotUsable`. Other pipelines than those with a UNet split and join layers, so there is nothing to count.
    """
    if not hasattr(pipeline, "unet"):
        return
    wanted = sum(not key.endswith(".alpha") for key in keys)
    placed = sum(
        f".{name}" in parameter
        for component in pipeline.components.values()
        if isinstance(component, nn.Module)
        for parameter, _ in component.named_parameters()
    )
    if placed < wanted:
        raise LoraNotUsable(
            f'{wanted - placed} of the {wanted} weights in the LoRA "{lora.file}" belong to layers that this model does'
            " not have, so it would act in part only; load it onto the kind of model it was trained on, or convert it to"
            " diffusers' layout"
        )


def _keys(lora: Lora) -> list[str]:
    if not lora.file.endswith(".safetensors"):
        raise LoraNotUsable(
            f'the LoRA "{lora.file}" is not a .safetensors file; other formats can run code when opened'
        )
    try:
        with safe_open(lora.file, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise LoraNotUsable(
            f'the LoRA "{lora.file}" is damaged ({error}); fetch or copy it again'
        ) from error


def _from_kohya(pipeline: Any, path: Path) -> dict[str, Tensor]:
    """The file's weights under diffusers' names, their alphas multiplied in.

    diffusers names a kohya file's text layers in a way that it cannot read any more since transformers 5.
    """
    weights, alphas, *_ = pipeline.lora_state_dict(
        str(path.parent),
        weight_name=path.name,
        local_files_only=True,
        unet_config=pipeline.unet.config,
    )
    for key, alpha in (alphas or {}).items():
        down = key.removesuffix(".alpha")
        up = down.replace(".down.weight", ".up.weight").replace(".lora_A.", ".lora_B.")
        weights[up] = weights[up] * (alpha / weights[down].shape[0])
    return {_text_layer(key): weight for key, weight in weights.items()}


def _text_layer(key: str) -> str:
    if not key.startswith("text_encoder"):
        return key
    for old, new in KOHYA_PROJECTIONS.items():
        key = key.replace(f".{old}_lora.", f".{new}.lora_linear_layer.")
    return key.replace(".text_model.", ".", 1)


def _adapters(pipeline: Any) -> set[str]:
    return {name for names in pipeline.get_list_adapters().values() for name in names}
