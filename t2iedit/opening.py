"""From a name, a folder or a live pipeline to a `Model`, on the right device in the right form."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from t2iedit.errors import ModelNotUsable, T2IEditError, said
from t2iedit.folders import check_folder, check_loaded, folder_settings
from t2iedit.model import Model
from t2iedit.plugins import installed

SHAPES = Path(__file__).parent / "shapes" / "weights"
TURBO = "shapes-turbo"
BUNDLED = {"shapes": SHAPES} | ({TURBO: SHAPES} if (SHAPES / "turbo").is_dir() else {})
LARGE = 200_000_000
"""Bytes of denoiser weights above which half precision and other memory formats can pay on a CPU."""
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = ("float32", "bfloat16", "float16", "float64")


def open_model(
    name_or_pipeline: str | Path | DiffusionPipeline,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    memory_format: str | None = None,
    offload: str | None = None,
) -> Model:
    """A model from "shapes", a diffusers folder, a hub id, or a pipeline that is already loaded.

    Without `device`, CUDA if there is one. Without `dtype`, float16 there, and on a CPU float32, or bfloat16 for large
    models where the CPU computes in it. Without `memory_format`, the faster one by measurement. A live pipeline keeps
    its own device, dtype and format unless told otherwise, and whatever else its owner did to it: LoRAs, ControlNet,
    IP-Adapter, another scheduler. All modules end frozen and in evaluation mode.

    With `offload` "model" or "sequential" the weights wait in main memory and come to the GPU one model, or one layer,
    at a time.

    Raises `ModelNotUsable`.
    """
    place = None if offload is None else _offload_device(device, offload)
    if isinstance(name_or_pipeline, DiffusionPipeline):
        model = _wrap_live(
            name_or_pipeline, None if offload else device, usable_dtype(dtype), memory_format
        )
        return _offloaded(model, offload, place)
    name = str(name_or_pipeline)
    folder = BUNDLED.get(name) or _folder(name)
    where = torch.device("cpu") if offload else usable_device(device)
    kind = usable_dtype(dtype) or (_sensible_dtype(folder, place) if place is not None else None)
    pipeline = _load(folder, name, where, kind)
    if name == TURBO:
        from t2iedit.shapes.turbo import make_turbo

        folder = make_turbo(pipeline, folder)
    with _damage_told(name):
        model = _wrap(pipeline, name)
    model.defaults = folder_settings(folder, name, model.defaults)
    if offload is not None:
        set_memory_format(model.denoiser, memory_format or "contiguous")
        return _offloaded(model, offload, place)
    set_memory_format(model.denoiser, memory_format or faster_format(model))
    return model


def _offload_device(device: str | torch.device | None, offload: str) -> torch.device:
    if offload not in ("model", "sequential"):
        raise ModelNotUsable(f'offload is "model" or "sequential", not "{offload}"')
    place = usable_device(device)
    if place.type == "cpu":
        raise ModelNotUsable(
            f"offload {offload} keeps weights off a GPU, and there is none here; leave it out"
        )
    return place


def _offloaded(model: Model, offload: str | None, place: torch.device | None) -> Model:
    if offload == "model":
        model.pipeline.enable_model_cpu_offload(device=place)
    elif offload == "sequential":
        model.pipeline.enable_sequential_cpu_offload(device=place)
    return model


def _wrap_live(
    pipeline: DiffusionPipeline,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    memory_format: str | None,
) -> Model:
    moves = [part for part in (device, dtype) if part is not None]
    if moves:
        pipeline.to(*moves)
    model = _wrap(pipeline, str(pipeline.config.get("_name_or_path") or ""))
    if memory_format is not None:
        set_memory_format(model.denoiser, memory_format)
    return model


def _wrap(pipeline: DiffusionPipeline, name: str) -> Model:
    model = installed().manager.hook.wrap_pipeline(pipeline=pipeline)
    if model is None:
        raise ModelNotUsable(
            f'"{name}" is a {type(pipeline).__name__}, which no installed plugin knows;'
            " t2iedit itself knows those of Stable Diffusion 1.x, 2.x, XL and 3 and of FLUX, image-to-image, inpainting and"
            " ControlNet among them"
        )
    model.name = name
    return model


def set_memory_format(denoiser: nn.Module, name: str) -> None:
    """Lay the denoiser's weights out as `contiguous` or `channels_last`. Raises `ModelNotUsable` for other names."""
    if name not in FORMATS:
        raise ModelNotUsable(f'memory_format is {" or ".join(FORMATS)}, not "{name}"')
    denoiser.to(memory_format=FORMATS[name])  # type: ignore[call-overload]


def faster_format(model: Model, repeats: int = 3) -> str:
    """The layout in which the denoiser is clearly faster, timed on small latents; contiguous in doubt.

    In bfloat16 on CPUs `channels_last` makes large denoisers five times faster. Small ones it slows, and a choice by
    chance would change their last bits from run to run, so they are not even timed.
    """
    size = sum(parameter.nbytes for parameter in model.denoiser.parameters())
    if size < LARGE or "unet" not in model.pipeline.components:
        return "contiguous"
    best = {}
    for name in FORMATS:
        set_memory_format(model.denoiser, name)
        best[name] = min([_time_once(model) for _ in range(repeats + 1)][1:])
    return "channels_last" if best["channels_last"] * 1.5 < best["contiguous"] else "contiguous"


@torch.no_grad()
def _time_once(model: Model) -> float:
    unet: Any = model.denoiser
    side = min(16, unet.config.sample_size)
    like = {"device": model.device, "dtype": model.dtype}
    latents = torch.zeros(1, unet.config.in_channels, side, side, **like)
    states = torch.zeros(1, 77, unet.config.cross_attention_dim, **like)
    added = None
    if unet.config.addition_embed_type == "text_time":
        width = unet.config.projection_class_embeddings_input_dim
        times = unet.config.addition_time_embed_dim * 6
        added = {
            "text_embeds": torch.zeros(1, width - times, **like),
            "time_ids": torch.zeros(1, 6, **like),
        }
    begin = time.perf_counter()
    unet(latents, 0, states, added_cond_kwargs=added)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _load(
    folder: Path, name: str, device: torch.device, dtype: torch.dtype | None
) -> DiffusionPipeline:
    check_folder(folder, name)
    dtype = dtype or _sensible_dtype(folder, device)
    with _damage_told(name):
        hook = installed().manager.hook.open_checkpoint
        pipeline = hook(path=folder, device=device, dtype=dtype)
        if pipeline is None:
            pipeline = DiffusionPipeline.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True
            ).to(device)
        check_loaded(folder, name, pipeline)
    return pipeline


@contextmanager
def _damage_told(name: str) -> Iterator[None]:
    """Whatever a damaged checkpoint makes the libraries raise means the same to the user."""
    try:
        yield
    except T2IEditError:
        raise
    except Exception as error:
        raise ModelNotUsable(
            f'the model "{name}" cannot be loaded ({said(error, 300)}); fetch or copy it again, with safetensors weights'
        ) from error


def _folder(name: str) -> Path:
    # os.path, since pathlib raises for names that no file can have.
    if os.path.isdir(name):
        return Path(name)
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_like_path or os.path.exists(name):
        raise ModelNotUsable(
            f'there is no model "{name}"; give {", ".join(BUNDLED)}, a folder in diffusers layout or a hub id'
        )
    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:
        raise ModelNotUsable(
            f'the model "{name}" is neither a folder here nor to be had from the hub ({said(error)});'
            f" give {', '.join(BUNDLED)}, a folder in diffusers layout or a hub id"
        ) from error


def usable_device(device: str | torch.device | None) -> torch.device:
    if device is not None:
        try:
            probe = torch.zeros(1, device=device)
            # A "meta" device makes tensors too, but computes nothing.
            probe.item()
            return probe.device
        except (RuntimeError, AssertionError, ImportError) as error:
            reason = str(error).split("\n")[0].rstrip(".")
            raise ModelNotUsable(f'the device "{device}" cannot be used here ({reason})') from error
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def usable_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if not isinstance(dtype, str):
        return dtype
    if dtype not in DTYPES:
        raise ModelNotUsable(f'"{dtype}" is no dtype to run a model in; give {", ".join(DTYPES)}')
    return getattr(torch, dtype)


def _sensible_dtype(folder: Path, device: torch.device) -> torch.dtype:
    transformer = (folder / "transformer").is_dir()
    if device.type != "cpu":
        # T5 overflows in float16.
        return torch.bfloat16 if transformer else torch.float16
    denoiser = folder / ("transformer" if transformer else "unet")
    size = sum(file.stat().st_size for file in denoiser.glob("*.safetensors"))
    return torch.bfloat16 if size > LARGE and computes_in_bfloat16() else torch.float32


def computes_in_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16, rather than emulating it."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
