"""Seconds of one UNet step, quantised against the best that others make of the same machine, one process for each.

    python benchmarks/latency.py --architecture sdxl --size 512
    python benchmarks/latency.py --architecture sd15 --size 512
    python benchmarks/latency.py --quick

True architectures, random weights. The last rows are ratios to the best 16-bit baseline of torch.
"""

# The other engines are optional.
# pyright: reportMissingImports=false

import argparse
import json
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import in_own_process, not_measured, row, save, show
from t2iedit_mixdq.architectures import example_inputs
from unets import QUANTISED, load, prepare

METRIC = "seconds a step"
SIXTEEN_BITS = ("eager", "eager channels_last", "compiled channels_last")
OTHERS = {
    "torchao int8 dynamic": "torchao",
    "sdnq int8": "sdnq",
    "openvino bf16": "openvino",
    "openvino int8": "nncf",
}
BASELINES = (*SIXTEEN_BITS, *QUANTISED, *OTHERS)


def main() -> None:
    args = arguments()
    if args.one:
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        wanted = args.only or BASELINES
        for name in ("plain", *(name for name in QUANTISED if name in wanted)):
            prepare(folder, args.architecture, name)
        passed = [
            "--architecture",
            args.architecture,
            "--size",
            str(args.size),
            "--folder",
            scratch,
        ]
        passed += [
            "--device",
            args.device,
            "--repeats",
            str(args.repeats),
            "--batch",
            str(args.batch),
        ]
        rows = []
        for name in wanted:
            needed = OTHERS.get(name)
            if needed and find_spec(needed) is None:
                rows.append(not_measured(name, METRIC, f"{needed} is not installed"))
            else:
                rows += in_own_process(__file__, passed, name, METRIC)
            show(rows[-1:])
    rows += ratios(rows)
    show(rows[-len(QUANTISED) :])
    if not args.quick:
        save(f"latency-{args.architecture}-{args.size}-{args.device}", rows, vars(args))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--architecture", default="sdxl", choices=("sdxl", "sd15", "tiny"))
    parser.add_argument("--size", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=BASELINES)
    parser.add_argument("--quick", action="store_true", help="a tiny UNet, two repeats, no file")
    parser.add_argument("--scratch", help="where the UNets are put meanwhile")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.architecture, args.size, args.repeats = "tiny", 64, 2
    return args


@torch.no_grad()
def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Start-up and step times of one baseline, in this process."""
    begin = time.perf_counter()
    unet = build(args)
    loaded = time.perf_counter() - begin
    inputs = example_inputs(unet, args.size // 8, args.batch)
    step = prepared(args.one, unet, inputs)
    step()
    times = [timed(step, args.device) for _ in range(args.repeats)]
    return [row(args.one, METRIC, times), row(args.one, "seconds to load", [loaded])]


def build(args: argparse.Namespace) -> Any:
    half = torch.float16 if args.device == "cuda" else torch.bfloat16
    name = args.one if args.one in QUANTISED else "plain"
    return load(Path(args.folder) / f"{args.architecture}-{name}", name, args.device, half)


def prepared(name: str, unet: Any, inputs: dict[str, Any]) -> Any:
    """What to call for one step."""
    if "channels_last" in name or name in QUANTISED:
        unet = unet.to(memory_format=torch.channels_last)
        inputs["sample"] = inputs["sample"].contiguous(memory_format=torch.channels_last)
    if name.startswith("compiled"):
        unet = torch.compile(unet)
    if name == "torchao int8 dynamic":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(unet, Int8DynamicActivationInt8WeightConfig())
        unet = torch.compile(unet)
    if name == "sdnq int8":
        from sdnq import sdnq_post_load_quant

        unet = sdnq_post_load_quant(
            unet, weights_dtype="int8", use_quantized_matmul=True, quant_conv=True
        )
    if name.startswith("openvino"):
        return openvino_step(unet, inputs, int8=name.endswith("int8"))
    return lambda: unet(**inputs, return_dict=False)[0]


def openvino_step(unet: Any, inputs: dict[str, Any], *, int8: bool) -> Any:
    import openvino

    unet, inputs = unet.float(), {k: floats(v) for k, v in inputs.items()}
    model = openvino.convert_model(unet, example_input=inputs)
    if int8:
        import nncf

        calibration = nncf.Dataset(
            [{port.any_name: value for port, value in zip(model.inputs, flat(inputs), strict=True)}]
        )
        model = nncf.quantize(model, calibration, subset_size=1)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    values = flat(inputs)
    return lambda: compiled(values)


def floats(value: Any) -> Any:
    return {k: v.float() for k, v in value.items()} if isinstance(value, dict) else value.float()


def flat(inputs: dict[str, Any]) -> list[Any]:
    values = []
    for value in inputs.values():
        values += (
            [v.numpy() for v in value.values()] if isinstance(value, dict) else [value.numpy()]
        )
    return values


def timed(step: Any, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times faster than the best 16-bit baseline of torch each quantised UNet is."""
    steps = {r["name"]: r["value"] for r in rows if r["metric"] == METRIC and r["value"]}
    best = min((steps[name] for name in SIXTEEN_BITS if name in steps), default=None)
    metric = "times the best 16 bits"
    return [
        row(name, metric, [best / steps[name]])
        if best and name in steps
        else not_measured(name, metric, "a side of the ratio is missing")
        for name in QUANTISED
    ]


if __name__ == "__main__":
    main()
