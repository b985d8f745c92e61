"""How much memory something takes while it runs: the allocator's on CUDA, the process's resident memory on a CPU."""

import resource
import threading
from pathlib import Path

import torch

EVERY = 0.001
"""Seconds between two looks on a CPU, where nothing keeps a peak that can be reset."""


def taken(device: torch.device) -> int:
    """Bytes that are taken now, mapped files included; on systems without /proc the most there ever were."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Watched:
    """While this is entered, the most that is taken; `peak` is its growth over `start`."""

    def __init__(self, device: torch.device, *, since: int | None = None) -> None:
        self.device, self.peak = device, 0
        self.start = taken(device) if since is None else since
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watched":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device) - self.start
        else:
            self._over.set()
            self._thread.join()

    def _look(self) -> None:
        while True:
            self.peak = max(self.peak, taken(self.device) - self.start)
            if self._over.wait(EVERY):
                return
