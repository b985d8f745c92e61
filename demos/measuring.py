"""A program of its own, so that memory is nobody else's: open a model, paint, and print what it took as JSON.

On its input is a JSON object: `source`, `name`, `device`, `dtype` of the model, the `request`, how many `repeats`, and `out`
for the picture.
"""

import gc
import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main() -> None:
    asked = json.load(sys.stdin)
    import torch
    from t2iedit_mixdq.report import static_bytes

    import t2iedit

    t2iedit.Request("a")
    before = resident()
    model = t2iedit.open_model(asked["source"], device=asked["device"], dtype=asked["dtype"])
    model.name = asked["name"]
    gc.collect()
    cuda = model.device.type == "cuda"
    request = t2iedit.Request.from_json(asked["request"])
    with Peak() as peak:
        # The first one also loads what is loaded lazily.
        image = t2iedit.generate(model, request).image
    seconds = [_timed(t2iedit.generate, model, request) for _ in range(asked["repeats"])]
    t2iedit.save_image(image, Path(asked["out"]))
    most = torch.cuda.max_memory_allocated() if cuda else peak.bytes - before
    facts: dict[str, Any] = {
        "weights": static_bytes(model.denoiser),
        "peak": most,
        "seconds": statistics.median(seconds),
    }
    print(json.dumps(facts))


class Peak:
    """The most memory that this process has while it is entered, looked at every few milliseconds."""

    def __enter__(self) -> "Peak":
        self.bytes, self.over = resident(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.over.wait(0.005):
            self.bytes = max(self.bytes, resident())


def resident() -> int:
    """Bytes of this process that are in memory."""
    import psutil

    return psutil.Process().memory_info().rss


def _timed(function: Any, *args: Any) -> float:
    begin = time.perf_counter()
    function(*args)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
