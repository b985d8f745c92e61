"""What the benchmarks share: rows, their file, and one process for each baseline."""

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t2iedit.shapes.scoring import wilson

RESULTS = Path(__file__).parent / "results"
RESAMPLES = 4000


def row(name: str, metric: str, values: Sequence[float]) -> dict[str, Any]:
    """The median of the values, with the smallest and the largest."""
    return {
        "name": name,
        "metric": metric,
        "n": len(values),
        "value": statistics.median(values),
        "low": min(values),
        "high": max(values),
    }


def share(name: str, metric: str, count: int, n: int) -> dict[str, Any]:
    """A share of n trials, with Wilson's 95 % interval."""
    low, high = wilson(count, n)
    return {"name": name, "metric": metric, "n": n, "value": count / n, "low": low, "high": high}


def mean(name: str, metric: str, values: Sequence[float]) -> dict[str, Any]:
    """The mean, with a 95 % interval bootstrapped over the values."""
    return paired(name, metric, values)


def paired(name: str, metric: str, differences: Sequence[float]) -> dict[str, Any]:
    """The mean of paired differences, with a 95 % interval bootstrapped over the pairs."""
    values, random = np.asarray(differences, float), np.random.default_rng(0)
    means = random.choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    numbers = {"value": float(values.mean()), "low": float(low), "high": float(high)}
    return {"name": name, "metric": metric, "n": len(values)} | numbers


def median_of(name: str, metric: str, values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """The median, with a 95 % interval bootstrapped over the values."""
    own, random = np.asarray(values, float), np.random.default_rng(0)
    medians = np.median(random.choice(own, (RESAMPLES, len(own))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    numbers = {"value": float(np.median(own)), "low": float(low), "high": float(high)}
    return {"name": name, "metric": metric, "n": len(own)} | numbers


def not_measured(name: str, metric: str, why: str) -> dict[str, Any]:
    """A row that says why it has no value."""
    return {
        "name": name,
        "metric": metric,
        "n": 0,
        "value": None,
        "low": None,
        "high": None,
        "why": why,
    }


def in_own_process(script: str, arguments: Sequence[str], name: str, metric: str) -> list[dict]:
    """The rows that the script prints as JSON when it runs one baseline, or one row that says why there are none."""
    command = [sys.executable, script, "--one", name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    return [not_measured(name, metric, reason or f"it ended with {done.returncode}")]


def save(name: str, rows: Sequence[dict], settings: dict[str, Any]) -> None:
    """Into `results/`, beside the machine they were measured on."""
    import torch

    machine: dict[str, Any] = {"processor": _processor(), "threads": torch.get_num_threads()}
    machine |= {"torch": torch.__version__, "python": platform.python_version()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": machine, "settings": settings, "rows": list(rows)}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")


def show(rows: Sequence[dict]) -> None:
    """As a table."""
    for entry in rows:
        value = f"{entry['value']:.4g}" if entry["value"] is not None else "not measured"
        spread = f"{entry['low']:.4g} .. {entry['high']:.4g}" if entry["n"] else entry["why"]
        print(f"{entry['name']:28} {entry['metric']:34} {value:>14}   {spread}")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
