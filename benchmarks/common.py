"""What the benchmarks share: rows, their file, and one process for each baseline."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
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


class Failed(Exception):
    """A baseline's process ended before its time; the message says how."""


class Process:
    """A baseline in a process of its own, which says when it is ready and then answers each question with JSON.

    Several can be alive at once and be asked in turn, so that what is compared is measured in the same minute.
    """

    def __init__(self, script: str, arguments: Sequence[str], name: str) -> None:
        command = [sys.executable, script, "--one", name, *arguments]
        # Threads that wait must not spin while another process is being timed.
        quiet = os.environ | {"OMP_WAIT_POLICY": "passive"}
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=quiet)
        self.ready = self._answer()

    def ask(self) -> Any:
        """One more answer. Raises `Failed`."""
        assert self._child.stdin is not None
        try:
            print(file=self._child.stdin, flush=True)
        except OSError as error:
            raise self._failure() from error
        return self._answer()

    def end(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise self._failure()
        answer = json.loads(line)
        if isinstance(answer, dict) and "failed" in answer:
            self._child.wait()
            raise Failed(answer["failed"])
        return answer

    def _failure(self) -> Failed:
        code = self._child.wait()
        if code == -9:
            return Failed("it does not fit this machine's memory: the system ended it")
        return Failed(f"its process ended with {code}")


def serve(begin: Callable[[], tuple[Any, Callable[[], Any]]]) -> None:
    """The other end of a `Process`: begin, say what there is to say, then answer until nobody asks any more.

    Whatever libraries print goes to stderr.
    """
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(value: Any) -> None:
        print(json.dumps(value), file=channel, flush=True)

    try:
        told, answer = begin()
        say(told)
        for _ in sys.stdin:
            say(answer())
    except MemoryError:
        say({"failed": "it does not fit the memory that a process may have here"})
    # A baseline may fail in ways of its own, and all that counts is that this one has no number.
    except Exception as error:
        say({"failed": " ".join(f"{type(error).__name__}: {error}".split())[:160]})


def limit_memory(gibibytes: float | None) -> None:
    """No more than this for this process, so that a baseline that needs more fails alone."""
    if gibibytes is not None:
        most = int(gibibytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def in_own_process(script: str, arguments: Sequence[str], name: str, metric: str) -> list[dict]:
    """The rows that the script prints as JSON when it runs one baseline, or one row that says why there are none."""
    command = [sys.executable, script, "--one", name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    return [not_measured(name, metric, reason or f"it ended with {done.returncode}")]


PLACES = ("folder", "scratch")


def save(name: str, rows: Sequence[dict], settings: dict[str, Any]) -> None:
    """Into `results/`, beside the machine they were measured on; where its files lay is nobody's business."""
    import torch

    machine: dict[str, Any] = {"processor": _processor(), "threads": torch.get_num_threads()}
    machine |= {"torch": torch.__version__, "python": platform.python_version()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    RESULTS.mkdir(exist_ok=True)
    settings = {key: value for key, value in settings.items() if key not in PLACES}
    content = {"machine": machine, "settings": settings, "rows": list(rows)}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")


def show(rows: Sequence[dict]) -> None:
    """As a table."""
    for entry in rows:
        value = f"{entry['value']:.4g}" if entry["value"] is not None else "not measured"
        spread = f"{entry['low']:.4g} .. {entry['high']:.4g}" if entry["n"] else entry["why"]
        print(f"{entry['name']:28} {entry['metric']:34} {value:>14}   {spread}", flush=True)


KNOWN = ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def machine_kind(device: str) -> str:
    """The device, and of a CPU the best instructions that matter here: results of the two are kept apart."""
    flags = _cpu_facts().get("flags", "").split()
    best = next((flag for flag in ("amx_int8", "avx512_vnni", "avx2") if flag in flags), "")
    return "-".join(filter(None, (device, best.partition("_")[0]))) if device == "cpu" else device


def _processor() -> str:
    """The model's name, and which of the instructions that matter here it has."""
    facts = _cpu_facts()
    flags = facts.get("flags", "").split()
    has = " ".join(flag for flag in KNOWN if flag in flags)
    return f"{facts.get('model name', platform.processor())} ({has})"


def _cpu_facts() -> dict[str, str]:
    """What Linux says of the first CPU."""
    info = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    for line in info.read_text().splitlines() if info.exists() else []:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return facts
