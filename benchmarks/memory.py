"""Bytes and seconds to load, and bytes of one UNet step, quantised against 16 bits.

    python benchmarks/memory.py --architecture sdxl --size 512
    python benchmarks/memory.py --architecture sd15 --size 512
    python benchmarks/memory.py --quick

Each in a process of its own, turn by turn, so that start-up is compared in pairs. On CUDA bytes are the allocator's, on
a CPU the growth of the process's resident memory over what importing took, mapped files included.
"""

import argparse
import ctypes
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import Failed, Process, limit_memory, machine_kind, not_measured, row, save, serve, show
from t2iedit_mixdq.architectures import example_inputs
from t2iedit_mixdq.memory import Watched, taken
from unets import QUANTISED, channels_last, load, prepare

PEAK, REST = "bytes at the peak of a step", "bytes at rest"
LOADING, LOAD = "bytes at the peak of loading", "seconds to load"
METRICS = (PEAK, REST, LOADING, LOAD)
NAMES = ("plain", *QUANTISED)


def main() -> None:
    args = arguments()
    if args.one:
        limit_memory(args.memory)
        serve(lambda: (measure(args), lambda: None))
        return
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(args.folder or scratch)
        for name in NAMES:
            prepare(folder, args.architecture, name)
        found = [once(args, folder) for _ in range(args.repeats)]
    rows = [entry for name in NAMES for entry in summary(name, found)]
    rows += [entry for name in QUANTISED for entry in shares(name, found)]
    show(rows)
    if not args.quick:
        save(
            f"memory-{args.architecture}-{args.size}-{machine_kind(args.device)}", rows, vars(args)
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--architecture", default="sdxl", choices=("sdxl", "sd15", "tiny"))
    parser.add_argument("--size", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=float, metavar="GIB", help="the most a process may take")
    parser.add_argument("--quick", action="store_true", help="a tiny UNet, two repeats, no file")
    parser.add_argument("--scratch", help="where the UNets are put meanwhile")
    parser.add_argument("--folder", help="where prepared UNets lie and stay")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.architecture, args.size, args.repeats = "tiny", 64, 2
    return args


Found = dict[str, dict[str, float] | str]
"""By name what was measured, or why not."""


def once(args: argparse.Namespace, folder: Path) -> Found:
    """Every UNet, one after another."""
    words = ["--folder", str(folder)]
    for name in ("architecture", "size", "device", "memory"):
        if getattr(args, name) is not None:
            words += [f"--{name}", str(getattr(args, name))]
    found: Found = {}
    for name in NAMES:
        try:
            process = Process(__file__, words, name)
            found[name] = process.ready
            process.end()
        except Failed as error:
            found[name] = str(error)
    return found


def summary(name: str, found: list[Found]) -> list[dict[str, Any]]:
    """One UNet's own rows."""
    measured = [one[name] for one in found if isinstance(one[name], dict)]
    if not measured:
        return [not_measured(name, PEAK, str(found[0][name]))]
    return [row(name, metric, [one[metric] for one in measured]) for metric in METRICS]  # type: ignore[index]


def shares(name: str, found: list[Found]) -> list[dict[str, Any]]:
    """One quantised UNet's rows as shares of the plain one's of the same turn."""
    pairs = [(one[name], one["plain"]) for one in found]
    both = [(a, b) for a, b in pairs if isinstance(a, dict) and isinstance(b, dict)]
    if not both:
        return [not_measured(name, f"{PEAK}, share of 16 bits", "a side of the ratio is missing")]
    return [
        row(name, f"{metric}, share of 16 bits", [a[metric] / b[metric] for a, b in both])
        for metric in METRICS
    ]


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, float]:
    """One UNet in this process."""
    half = torch.float16 if args.device == "cuda" else torch.bfloat16
    path = Path(args.folder) / f"{args.architecture}-{args.one}"
    device = torch.device(args.device)
    with Watched(device) as loading:
        begin = time.perf_counter()
        unet = load(path, args.one, args.device, half)
        channels_last(unet)
        seconds = time.perf_counter() - begin
    settle()
    rest = taken(device) - loading.start
    with Watched(device, since=loading.start) as step:
        unet(**example_inputs(unet, args.size // 8))
    return {PEAK: step.peak, REST: rest, LOADING: loading.peak, LOAD: seconds}


def settle() -> None:
    """What was freed goes back to the system, so that it is not counted."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # only glibc has it
        return


if __name__ == "__main__":
    main()
