"""Seconds of one UNet step, quantised against the best that others make of the same machine.

    python benchmarks/latency.py --architecture sdxl --size 512
    python benchmarks/latency.py --architecture sd15 --size 512
    python benchmarks/latency.py --quick

True architectures, random weights. Each baseline has a process of its own and takes turns with the reference, torch's
eager step in channels_last, so that each ratio is of two steps of the same seconds. Whatever is not quantised is in
float16 on CUDA, in bfloat16 on CPUs that compute in it, in float32 on others, where torch's bfloat16 is several times
slower. A baseline that fails, or does not fit `--memory`, is recorded as such. The last rows say how far arithmetic
alone lets eight bits go on this machine.
"""

# The other engines are optional.
# pyright: reportMissingImports=false

import argparse
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import Failed, Process, limit_memory, machine_kind, not_measured, row, save, serve, show
from t2iedit_mixdq.architectures import example_inputs
from t2iedit_mixdq.kernels import native
from t2iedit_mixdq.kernels.native import Panels
from t2iedit_mixdq.kernels.panels import OUTPUTS, arranged
from unets import LOUD, QUANTISED, channels_last, load, prepare, products

from t2iedit.opening import computes_in_bfloat16

METRIC, LOAD, SPEEDUP = "seconds a step", "seconds to load", "times the reference"
REFERENCE = "eager channels_last"
FLOATING = ("eager", REFERENCE, "compiled channels_last", "compiled frozen")
OTHERS = {
    "torchao int8 dynamic": "torchao",
    "sdnq int8": "sdnq",
    "openvino": "openvino",
    "openvino int8": "nncf",
}
PEAKS = "peaks of this machine"
BASELINES = (REFERENCE, *(b for b in FLOATING if b != REFERENCE), *QUANTISED, *OTHERS)


def main() -> None:
    args = arguments()
    if args.one:
        limit_memory(args.memory)
        serve(lambda: begin(args))
        return
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(args.folder or scratch)
        wanted = [name for name in BASELINES if name in (args.only or BASELINES)]
        for name in ("plain", *(name for name in QUANTISED if name in wanted)):
            prepare(folder, args.architecture, name)
        rows = compare(wanted, passed_on(args, folder), args.repeats)
        rows += best_ratios(rows)
        rows += roofline(args, folder, rows)
    if not args.quick:
        batch = f"-batch{args.batch}" if args.batch > 1 else ""
        dtype = {"dtype": str(dtype_of(args.device)).removeprefix("torch.")}
        save(
            f"latency-{args.architecture}-{args.size}-{machine_kind(args.device)}{batch}",
            rows,
            vars(args) | dtype,
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--architecture", default="sdxl", choices=("sdxl", "sd15", "tiny"))
    parser.add_argument("--size", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=BASELINES)
    parser.add_argument("--memory", type=float, metavar="GIB", help="the most a process may take")
    parser.add_argument("--quick", action="store_true", help="a tiny UNet, two repeats, no file")
    parser.add_argument("--scratch", help="where the UNets are put meanwhile")
    parser.add_argument("--folder", help="where prepared UNets lie and stay")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.architecture, args.size, args.repeats = "tiny", 64, 2
        args.only = args.only or [*FLOATING[:2], *QUANTISED, *OTHERS]
    return args


def passed_on(args: argparse.Namespace, folder: Path) -> list[str]:
    """The command line of a baseline's process."""
    words = ["--folder", str(folder)]
    for name in ("architecture", "size", "batch", "device", "threads", "memory"):
        if getattr(args, name) is not None:
            words += [f"--{name}", str(getattr(args, name))]
    return words


def compare(wanted: list[str], arguments: list[str], repeats: int) -> list[dict[str, Any]]:
    """Every baseline's rows, each measured in turn with the reference."""
    reference = Process(__file__, arguments, REFERENCE)
    own: list[float] = []
    rows: list[dict[str, Any]] = []
    for name in wanted:
        if name != REFERENCE:
            rows += paired(reference, own, name, arguments, repeats)
    own += [reference.ask() for _ in range(repeats if not own else 0)]
    reference.end()
    first = [row(REFERENCE, METRIC, own), row(REFERENCE, LOAD, [reference.ready["loaded"]])]
    show(first)
    return [*first, *rows]


def paired(
    reference: Process, own: list[float], name: str, arguments: list[str], repeats: int
) -> list[dict[str, Any]]:
    """One baseline's rows; the reference's times are added to `own`."""
    needed = OTHERS.get(name)
    if needed and find_spec(needed) is None:
        rows = [not_measured(name, METRIC, f"{needed} is not installed")]
        show(rows)
        return rows
    try:
        process = Process(__file__, arguments, name)
        pairs = [(reference.ask(), process.ask()) for _ in range(repeats)]
        process.end()
    except Failed as error:
        rows = [not_measured(name, METRIC, str(error))]
        show(rows)
        return rows
    own += [before for before, _ in pairs]
    rows = [
        row(name, METRIC, [after for _, after in pairs]),
        row(name, SPEEDUP, [before / after for before, after in pairs]),
        row(name, LOAD, [process.ready["loaded"]]),
        row(name, "seconds of the first step", [process.ready["first"]]),
    ]
    show(rows)
    return rows


def best_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each quantised UNet against the best of torch's floating point, by their ratios to the reference."""
    speedups = {r["name"]: r for r in rows if r["metric"] == SPEEDUP and r["value"]}
    floating = {name: speedups[name]["value"] for name in FLOATING if name in speedups}
    best = max(1.0, *floating.values()) if floating else 1.0
    which = next((name for name, value in floating.items() if value == best), REFERENCE)
    made = []
    for name in QUANTISED:
        if name in speedups:
            three = [speedups[name][key] / best for key in ("low", "value", "high")]
            made.append(row(name, f"times the best floating point ({which})", three) | {"n": 1})
    show(made)
    return made


@torch.no_grad()
def begin(args: argparse.Namespace) -> tuple[dict[str, float], Any]:
    """Load and warm up one baseline, and the function that times a step."""
    torch.set_num_threads(args.threads)
    if args.one == PEAKS:
        return {}, lambda: peaks(args)
    start = time.perf_counter()
    unet = build(args)
    loaded = time.perf_counter() - start
    inputs = example_inputs(unet, args.size // 8, args.batch)
    text = inputs["encoder_hidden_states"].normal_()
    inputs["sample"].normal_()
    # The BOS row is the one that the quantised UNets were made with.
    text[:, 0] = 0
    text[:, 0, 0] = LOUD
    step = prepared(args, unet, inputs)
    first = timed(step, args.device)
    timed(step, args.device)
    return {"loaded": loaded, "first": first}, lambda: timed(step, args.device)


def build(args: argparse.Namespace) -> Any:
    name = args.one if args.one in QUANTISED else "plain"
    path = Path(args.folder) / f"{args.architecture}-{name}"
    return load(path, name, args.device, dtype_of(args.device))


def dtype_of(device: str) -> torch.dtype:
    if device == "cuda":
        return torch.float16
    return torch.bfloat16 if computes_in_bfloat16() else torch.float32


def prepared(args: argparse.Namespace, unet: Any, inputs: dict[str, Any]) -> Any:
    """What to call for one step."""
    name = args.one
    if name.startswith("openvino"):
        return openvino_step(unet, inputs, int8=name.endswith("int8"), threads=args.threads)
    if name != "eager":
        channels_last(unet)
        inputs["sample"] = inputs["sample"].contiguous(memory_format=torch.channels_last)
    if name == "compiled frozen":
        import torch._inductor.config as inductor

        inductor.freezing = True
    if name == "torchao int8 dynamic":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(unet, Int8DynamicActivationInt8WeightConfig())
    if name == "sdnq int8":
        from sdnq import sdnq_post_load_quant

        unet = sdnq_post_load_quant(
            unet, weights_dtype="int8", use_quantized_matmul=True, quant_conv=True
        )
    if name.startswith(("compiled", "torchao")):
        unet = torch.compile(unet)

    def step() -> Any:
        with torch.no_grad():
            return unet(**inputs, return_dict=False)[0]

    return step


def openvino_step(unet: Any, inputs: dict[str, Any], *, int8: bool, threads: int) -> Any:
    """The UNet in OpenVINO; `int8` as NNCF quantises it from one sample."""
    import openvino

    if int8:
        # NNCF looks at float32 weights.
        unet, inputs = unet.float(), {key: floats(value) for key, value in inputs.items()}
    model = openvino.convert_model(unet, example_input=inputs)
    values = flat(inputs)
    taking = openvino.preprocess.PrePostProcessor(model)
    for index in range(len(values)):
        taking.input(index).tensor().set_element_type(openvino.Type.f32)
    model = taking.build()
    model.reshape(
        {port: value.shape for port, value in zip(model.inputs, values, strict=True)}  # static
    )
    if int8:
        import nncf

        names = [port.any_name for port in model.inputs]
        sample = nncf.Dataset([dict(zip(names, values, strict=True))])
        model = nncf.quantize(model, sample, subset_size=1)
    hint = "bf16" if computes_in_bfloat16() else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.compile_model(model, "CPU", settings)
    return lambda: compiled(values)


def floats(value: Any) -> Any:
    return {k: v.float() for k, v in value.items()} if isinstance(value, dict) else value.float()


def flat(inputs: dict[str, Any]) -> list[Any]:
    """The inputs in their order, as float32 arrays."""
    nested = (v.values() if isinstance(v, dict) else [v] for v in inputs.values())
    return [value.float().numpy() for values in nested for value in values]


def timed(step: Any, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def peaks(args: argparse.Namespace) -> dict[str, float]:
    """The most multiplications and additions a second, in floating point and in 8 bits, and bytes a second."""
    dtype = dtype_of(args.device)
    n = 4096 if args.device == "cuda" else 2048
    x = torch.randn(n, n, device=args.device).to(dtype)
    quick = min(timed(lambda: x @ x, args.device) for _ in range(5))
    integers = torch.randint(-127, 128, (n, n), dtype=torch.int8, device=args.device)
    if args.device == "cuda":
        whole = min(timed(lambda: torch._int_mm(integers, integers), "cuda") for _ in range(5))
    else:
        whole = min(onednn_seconds(integers), own_seconds(integers))
    big = torch.empty(2**28, dtype=torch.uint8, device=args.device)
    copy = min(timed(lambda: big.clone(), args.device) for _ in range(3))
    return {"floating": 2 * n**3 / quick, "8": 2 * n**3 / whole, "bytes": 2 * len(big) / copy}


def own_seconds(integers: torch.Tensor) -> float:
    """One product by our own, where there are any."""
    best = next(iter(native.products()), None)
    if best is None:
        return float("inf")
    n, fitting = len(integers), best.fitting(127)
    rows = arranged(integers, 4 if fitting else 2, best.step).flatten(1)
    weights = Panels(rows, rows.shape[1] // OUTPUTS, n, 8, fitting)
    q, steps, shifts = integers.view(torch.uint8)[None, :, None], torch.ones(n), torch.zeros(n)
    multiply, given = best.multiply, (q, (1, 1), (1, 1), weights, steps, shifts, dtype_of("cpu"))
    return min(timed(lambda: multiply(*given), "cpu") for _ in range(5))


def onednn_seconds(integers: torch.Tensor) -> float:
    """One product by oneDNN, which lets it saturate where there is no VNNI."""
    onednn: Any = torch.ops.onednn
    steps, n = torch.ones(len(integers)), len(integers)
    weight = onednn.qlinear_prepack(integers, None)
    q, zeros = integers.view(torch.uint8), torch.zeros(n, dtype=torch.int32)
    given = q, 1.0, 0, weight, steps, zeros, None, 1.0, 0, dtype_of("cpu"), "none", [], ""
    return min(timed(lambda: onednn.qlinear_pointwise(*given), "cpu") for _ in range(5))


def roofline(
    args: argparse.Namespace, folder: Path, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What the arithmetic of one step takes at this machine's peaks, and the ratio that no 8 bits can exceed there.

    Attention is never quantised, so it takes the same on both sides.
    """
    name = "roofline"
    process = Process(__file__, passed_on(args, folder), PEAKS)
    found = [process.ask() for _ in range(3)]
    process.end()
    best = {key: max(one[key] for one in found) for key in found[0]}
    layers, attention = products(args.architecture, args.size // 8, args.batch)
    whole = (layers + attention) / best["floating"]
    eight = layers / best["8"] + attention / best["floating"]
    steps = {r["name"]: r["value"] for r in rows if r["metric"] == METRIC and r["value"]}
    made = [
        row(name, "floating-point operations a second", [one["floating"] for one in found]),
        row(name, "8-bit operations a second", [one["8"] for one in found]),
        row(name, "bytes a second", [one["bytes"] for one in found]),
        row(name, "operations of layers", [layers]),
        row(name, "operations of attention", [attention]),
        row(name, "seconds at least, floating point", [whole]),
        row(name, "seconds at least, W8A8", [eight]),
        row(name, "times floating point at most", [whole / eight]),
    ]
    for measured in (REFERENCE, "mixdq-w8a8"):
        if measured in steps:
            least = whole if measured == REFERENCE else eight
            made.append(row(measured, "share of the roofline", [least / steps[measured]]))
    show(made)
    return made


if __name__ == "__main__":
    main()
