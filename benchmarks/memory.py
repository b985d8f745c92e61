"""Bytes of one UNet step, quantised against 16 bits: at rest and at the peak, one process for each.

    python benchmarks/memory.py --architecture sdxl --size 512
    python benchmarks/memory.py --quick

On CUDA the allocator's, on a CPU the growth of the process's resident memory over what importing took.
"""

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from common import in_own_process, not_measured, row, save, show
from t2iedit_mixdq.architectures import example_inputs
from unets import QUANTISED, load, prepare

PEAK, REST, LOAD = "bytes at the peak", "bytes at rest", "seconds to load"


def main() -> None:
    args = arguments()
    if args.one:
        print(json.dumps(measure(args)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        passed = [
            "--architecture",
            args.architecture,
            "--size",
            str(args.size),
            "--folder",
            scratch,
        ]
        passed += ["--device", args.device]
        for name in ("plain", *QUANTISED):
            prepare(Path(scratch), args.architecture, name)
            rows += in_own_process(__file__, passed, name, PEAK)
    rows += ratios(rows)
    show(rows)
    if not args.quick:
        save(f"memory-{args.architecture}-{args.size}-{args.device}", rows, vars(args))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--architecture", default="sdxl", choices=("sdxl", "sd15", "tiny"))
    parser.add_argument("--size", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny UNet, no file")
    parser.add_argument("--scratch", help="where the UNets are put meanwhile")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.architecture, args.size = "tiny", 64
    return args


@torch.no_grad()
def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    half = torch.float16 if args.device == "cuda" else torch.bfloat16
    with Watched(args.device) as watched:
        begin = time.perf_counter()
        path = Path(args.folder) / f"{args.architecture}-{args.one}"
        unet = load(path, args.one, args.device, half)
        unet.to(memory_format=torch.channels_last)
        loaded = time.perf_counter() - begin
        rest = watched.now()
        unet(**example_inputs(unet, args.size // 8))
    name = args.one
    return [row(name, PEAK, [watched.peak]), row(name, REST, [rest]), row(name, LOAD, [loaded])]


class Watched:
    """Growth of this process's memory since it was entered; on a CPU sampled each millisecond."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Watched":
        self._start = torch.cuda.memory_allocated() if self.cuda else resident()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        if self.cuda:
            self.peak = torch.cuda.max_memory_allocated() - self._start

    def now(self) -> int:
        return (torch.cuda.memory_allocated() if self.cuda else resident()) - self._start

    def _sample(self) -> None:
        while not self._over.wait(0.001):
            self.peak = max(self.peak, self.now())


def resident() -> int:
    """Anonymous memory: files that are mapped can be dropped by the system at any time and do not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not tell a process its resident memory")


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each quantised UNet's peak as a share of the plain one's."""
    peaks = {r["name"]: r["value"] for r in rows if r["metric"] == PEAK and r["value"]}
    metric = "peak as a share of 16 bits"
    return [
        row(name, metric, [peaks[name] / peaks["plain"]])
        if {name, "plain"} <= set(peaks)
        else not_measured(name, metric, "a side of the ratio is missing")
        for name in QUANTISED
    ]


if __name__ == "__main__":
    main()
