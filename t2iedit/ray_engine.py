"""Painters on a Ray cluster (the extra `ray`): one model an actor, GPUs as Ray grants them, images back to the driver."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from t2iedit.batch import Engine
from t2iedit.errors import InvalidRequest
from t2iedit.painters import Made, Painter, Setup, Task

RETRIES = 2
"""How often a task is tried again after its actor or its node died."""


class RayPainter:
    """What runs in an actor."""

    def __init__(self, setup: Setup) -> None:
        from t2iedit.cli.terminal import silence_libraries

        silence_libraries()
        self.painter = Painter(setup)

    def paint(self, task: Task) -> list[Made]:
        return list(self.painter.paint(task))


def on_ray(workers: int, address: str | None = None) -> Engine:
    """The engine of `workers` actors on the cluster at this address; without one, on a Ray of this machine.

    Only the driver writes, so nodes need no common folder, and a task that died with its node has left nothing.
    """

    def engine(tasks: list[Task], setup: Setup) -> Iterator[Made]:
        ray = _ray()
        ours = not ray.is_initialized()
        if ours:
            _connect(ray, address)
        try:
            yield from _share_out(ray, tasks, setup, workers)
        finally:
            if ours:
                ray.shutdown()

    return engine


def _share_out(ray: Any, tasks: list[Task], setup: Setup, workers: int) -> Iterator[Made]:
    actors = [_actor(ray, setup, workers) for _ in range(workers)]
    # One image a task: what its actor's death costs, and what has to fit into the object store.
    waiting = [single for task in tasks for single in _singles(task)]
    waiting.reverse()
    running: dict[Any, tuple[Any, Task]] = {}
    for actor in actors:
        if waiting:
            task = waiting.pop()
            running[actor.paint.remote(task)] = actor, task
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        actor, task = running.pop(ready)
        if waiting:
            following = waiting.pop()
            running[actor.paint.remote(following)] = actor, following
        try:
            yield from ray.get(ready)
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:300]
            yield Made(task.line, error=f"failed: its Ray actor died again and again ({reason})")


def _actor(ray: Any, setup: Setup, workers: int) -> Any:
    resources = ray.cluster_resources()
    threads = setup.threads or max(1, int(resources.get("CPU", 1)) // workers)
    wants = {
        "num_cpus": threads,
        "num_gpus": 1 if resources.get("GPU", 0) >= 1 else 0,
        "max_restarts": -1,
        "max_task_retries": RETRIES,
    }
    return ray.remote(**wants)(RayPainter).remote(replace(setup, threads=threads))


def _singles(task: Task) -> Iterator[Task]:
    for seed, key in zip(task.seeds, task.keys, strict=True):
        yield replace(task, seeds=(seed,), keys=(key,))


def _connect(ray: Any, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        quiet["include_dashboard"] = False
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
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
