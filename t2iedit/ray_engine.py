"""Painters on a Ray cluster (the extra `ray`): one model an actor, GPUs as Ray grants them, images back to the driver."""

import logging
import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from t2iedit.batch import Engine
from t2iedit.errors import InvalidRequest, said
from t2iedit.painters import Made, Painter, Setup, Task
from t2iedit.workers import TRIES, given_up

PATIENCE = 60.0
"""Seconds without a single actor at work after which the user is told."""
STORE = 256 << 20
"""Bytes for images on their way, on a Ray of our own."""


class RayPainter:
    """What runs in an actor."""

    def __init__(self, setup: Setup, folder: str) -> None:
        from t2iedit.cli.terminal import silence_libraries

        silence_libraries()
        # So that a request's files are found by the names it gives them, where the node has them.
        with suppress(OSError):
            os.chdir(folder)
        self.painter = Painter(setup)

    def ready(self) -> list[Made]:
        """Nothing, once Ray has found room for this actor."""
        return []

    def paint(self, task: Task) -> list[Made]:
        return list(self.painter.paint(task))


def on_ray(workers: int, address: str | None = None) -> Engine:
    """The engine of `workers` actors on the cluster at this address; without one, on a Ray of this machine.

    Only the driver writes, so nodes need no common folder, and a task that died with its node has left nothing.
    """

    def engine(tasks: list[Task], setup: Setup) -> Generator[Made, None, None]:
        ray = _ray()
        # One image a task: what its actor's death costs, and what has to fit into the object store.
        singles = [single for task in tasks for single in _singles(task)]
        if not singles:
            return
        ours = not ray.is_initialized()
        if ours:
            _connect(ray, address)
        crew = _Crew(ray, singles, setup, min(workers, len(singles)))
        try:
            yield from crew.paint()
        finally:
            crew.dismiss()
            if ours:
                ray.shutdown()

    return engine


class _Crew:
    """Actors and what each is at. An actor is given work once Ray has found room for it, and replaced if it dies."""

    def __init__(self, ray: Any, tasks: list[Task], setup: Setup, workers: int) -> None:
        self.ray = ray
        self.waiting = [(task, 0) for task in reversed(tasks)]
        self.running: dict[Any, tuple[Any, tuple[Task, int] | None]] = {}
        threads = setup.threads or _threads(ray, workers)
        gpu = setup.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
        self.wants = {"num_cpus": threads, "num_gpus": int(gpu)}
        self.setup = replace(setup, threads=threads)
        self.actors: list[Any] = []
        for _ in range(workers):
            self._hire()

    def dismiss(self) -> None:
        """Give back at once what the actors hold of the cluster."""
        for actor in self.actors:
            with suppress(Exception):
                self.ray.kill(actor)

    def paint(self) -> Iterator[Made]:
        from t2iedit.cli.terminal import warn

        told = False
        while self.waiting or self._busy():
            ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=PATIENCE)
            if ready:
                yield from self._hear(ready[0])
            elif not self._busy() and not told:
                told = True
                wants = ", ".join(f"{what} {number}" for what, number in self.wants.items())
                warn([f"Ray has started no actor yet ({wants} for each); waiting for room"])

    def _busy(self) -> bool:
        return any(work is not None for _, work in self.running.values())

    def _hire(self) -> None:
        actor = self.ray.remote(**self.wants)(RayPainter).remote(self.setup, os.getcwd())
        self.actors.append(actor)
        self.running[actor.ready.remote()] = actor, None

    def _hear(self, answer: Any) -> list[Made]:
        """What an actor's answer comes to; then it has its next task, or its successor is found."""
        actor, work = self.running.pop(answer)
        try:
            made = self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            return self._replace(work, said(error, 300))
        if self.waiting:
            work = self.waiting.pop()
            self.running[actor.paint.remote(work[0])] = actor, work
        return made

    def _replace(self, work: tuple[Task, int] | None, why: str) -> list[Made]:
        if work is None:
            if not self.running:
                raise InvalidRequest(
                    f"no worker could be started on the Ray cluster ({why}); its nodes need t2iedit as this machine has it"
                )
            return []
        task, tried = work
        self._hire()
        if tried + 1 == TRIES:
            return [given_up(task, f"failed: its Ray actor died {TRIES} times ({why})")]
        self.waiting.append((task, tried + 1))
        return []


def _threads(ray: Any, workers: int) -> int:
    """Each actor's share of the cluster's CPUs, as far as one node has as many."""
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    return max(1, int(min(max(nodes), sum(nodes) // workers)))


def _singles(task: Task) -> Iterator[Task]:
    for seed, key in zip(task.seeds, task.keys, strict=True):
        yield replace(task, seeds=(seed,), keys=(key,))


def _connect(ray: Any, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        # Ray would report to its makers that it was started.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet |= {"include_dashboard": False, "object_store_memory": STORE}
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    try:
        ray.init(address=address or "local", **quiet)
    # Ray raises bare exceptions too.
    except Exception as error:
        reason = said(error)
        if address is None:
            raise InvalidRequest(f"Ray cannot be started on this machine ({reason})") from error
        raise InvalidRequest(
            f'there is no Ray cluster at "{address}" ({reason}); start one with ray start --head'
        ) from error


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InvalidRequest(
            "--engine ray needs Ray, which is not installed; pip install 't2iedit[ray]'"
        ) from error
    return ray
