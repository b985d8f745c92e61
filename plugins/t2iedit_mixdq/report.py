"""What a recipe really means, and what really ran: bits, layer by layer, and bytes."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from t2iedit_mixdq.architectures import example_inputs
from t2iedit_mixdq.execution import Executed
from t2iedit_mixdq.memory import Watched
from t2iedit_mixdq.quantizers import BITS
from t2iedit_mixdq.recipe import Bits, listed_mean, mean_bits
from t2iedit_mixdq.schemes import WHOLE
from t2iedit_mixdq.simulation import Simulated
from t2iedit_mixdq.wiring import Layer, find_layer

SIZES = {"weights": "weights", "activations": "inputs"}
"""What bits are weighed by: a layer's number of weights, or of the values it reads."""


def bits_report(bits: Bits, layers: Mapping[str, Layer], of: str) -> dict[str, Any]:
    """The true mean of `weights` or `activations`, layers left whole counting 16, and what papers would print."""
    size = SIZES[of]
    widths = Counter(bits.get(name, WHOLE) for name in layers)
    return {
        "mean": round(mean_bits(bits, layers, size), 3),
        "mean without layers left whole": round(listed_mean(bits, layers, size), 3),
        "content": round(mean_bits(bits, layers, size, "content"), 3),
        "quality": round(mean_bits(bits, layers, size, "quality"), 3),
        "layers by bits": {str(width): widths[width] for width in (*BITS, WHOLE) if widths[width]},
    }


def engines(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many layers each engine computes."""
    return dict(Counter(row["runs"] for row in rows))


def layer_rows(unet: nn.Module, layers: Mapping[str, Layer]) -> list[dict[str, Any]]:
    """For each layer: its bits, what computes it and why, and its bytes while it does nothing."""
    return [_row(name, find_layer(unet, name)) for name in layers]


def _row(name: str, module: nn.Module) -> dict[str, Any]:
    if isinstance(module, Executed):
        scheme = module.scheme
        facts: dict[str, Any] = {
            "weights": scheme.weight_bits,
            "activations": scheme.act_bits,
            "runs": module.engine,
        }
        return {"name": name} | facts | {"bytes": module.nbytes, "why": module.reason}
    kept = sum(parameter.nbytes for parameter in module.parameters())
    if isinstance(module, Simulated):
        scheme = module.scheme
        return {
            "name": name,
            "weights": scheme.weight_bits,
            "activations": scheme.act_bits,
            "runs": "simulated",
            "bytes": kept,
            "why": "its weights stay in 16 bits" if scheme.delta is None else "a reversible edit",
        }
    return {
        "name": name,
        "weights": WHOLE,
        "activations": WHOLE,
        "runs": "floating point",
        "bytes": kept,
        "why": "the recipe leaves it whole",
    }


def static_bytes(unet: nn.Module) -> int:
    """What the UNet takes while it does nothing: packed weights, steps, scratch and plain parameters."""
    executed = [module for module in unet.modules() if isinstance(module, Executed)]
    plain = sum(parameter.nbytes for parameter in unet.parameters())
    packed = getattr(unet, "mixdq", None)
    scratch = 0 if packed is None else packed.tools.nbytes
    return plain + scratch + sum(module.nbytes for module in executed)


def float_bytes(layers: Mapping[str, Layer], unet: nn.Module) -> int:
    """What the same UNet would take in 16 bits."""
    others = sum(
        p.numel() for n, p in unet.named_parameters() if not n.endswith(".original.weight")
    )
    executed = [module for module in unet.modules() if isinstance(module, Executed)]
    others += sum(module.bias.numel() for module in executed if module.bias is not None)
    seen = {name for name, p in unet.named_parameters() if name.endswith("weight")}
    weights = sum(layer.weights for name, layer in layers.items() if f"{name}.weight" not in seen)
    return 2 * (weights + others)


def estimated_bytes(layers: Mapping[str, Layer], unet: nn.Module, bits: float) -> int:
    """What the UNet should take with weights of so many bits in the mean; what no layer quantises stays as it is."""
    weights = sum(layer.weights for layer in layers.values())
    own = sum(find_layer(unet, name).weight.nbytes for name in layers)
    others = sum(parameter.nbytes for parameter in unet.parameters()) - own
    return others + round(own if bits >= WHOLE else weights * bits / 8)


@torch.no_grad()
def measured_memory(unet: Any, size: int) -> dict[str, Any]:
    """Static, dynamic and peak bytes of one forward pass on `size` latents: the allocator's on CUDA, the process's growth on CPU."""
    static = static_bytes(unet)
    inputs = example_inputs(unet, size)
    with Watched(unet.device) as watched:
        unet(**inputs)
    how = "allocator" if unet.device.type == "cuda" else "growth of resident memory"
    peak = static + watched.peak
    return {"static": static, "dynamic": watched.peak, "peak": peak, "measured by": how}
