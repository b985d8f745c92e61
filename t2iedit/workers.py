"""Several painters on one machine, each a process with a model of its own."""

import multiprocessing as mp
import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from t2iedit.batch import Engine
from t2iedit.painters import Made, Painter, Setup, Task

TRIES = 2
"""An image whose worker dies is tried once more; it may have been the death of it."""


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: Task | None = None
    tried: int = 0
    """How many workers died of the task's first image."""
    finished: int = 0
    """Images of the task that have arrived."""


Waiting = list[tuple[Task, int]]
"""Tasks and how often their first image was tried, the next one last."""


def processes(count: int) -> Engine:
    """The engine of `count` processes; each has its share of the cores, and its own GPU as far as there are any."""

    def engine(tasks: list[Task], setup: Setup) -> Generator[Made, None, None]:
        waiting = [(task, 0) for task in reversed(tasks)]
        workers = [_begin(index, count, setup) for index in range(min(count, len(tasks)))]
        try:
            for worker in workers:
                _hand(worker, waiting)
            while any(worker.task is not None for worker in workers):
                yield from _next(workers, waiting, count, setup)
        finally:
            for worker in workers:
                worker.process.kill()
                worker.process.join()
                worker.pipe.close()

    return engine


def share_of(index: int, count: int, setup: Setup) -> Setup:
    """What one of several workers on this machine is given."""
    import torch

    threads = setup.threads or max(1, _cores() // count)
    gpus = torch.cuda.device_count()
    shared = gpus and setup.device in (None, "cuda")
    return replace(
        setup, threads=threads, device=f"cuda:{index % gpus}" if shared else setup.device
    )


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _next(workers: list[_Worker], waiting: Waiting, count: int, setup: Setup) -> Iterator[Made]:
    """What arrives next: images, the end of a task, or the end of a worker."""
    busy = {worker.pipe: index for index, worker in enumerate(workers) if worker.task is not None}
    for pipe in wait(list(busy)):
        index = busy[pipe]  # type: ignore[index]
        worker = workers[index]
        try:
            made = worker.pipe.recv()
        except (EOFError, OSError):
            yield from _bury(worker, waiting)
            if waiting:
                workers[index] = worker = _begin(index, count, setup)
            made = None
        if made is None:
            _hand(worker, waiting)
        else:
            worker.finished += 1
            yield made


def _bury(worker: _Worker, waiting: Waiting) -> Iterator[Made]:
    """What a dead worker left goes back to be done; an image that it was the second to die of is given up."""
    worker.process.join()
    worker.pipe.close()
    assert worker.task is not None
    rest = without(worker.task, worker.finished)
    tried = 1 if worker.finished else worker.tried + 1
    if rest.seeds and tried == TRIES:
        code = worker.process.exitcode
        yield given_up(rest, f"failed: its worker died {TRIES} times (exit code {code})")
        rest, tried = without(rest, 1), 0
    if rest.seeds:
        waiting.append((rest, tried))


def without(task: Task, first: int) -> Task:
    """The task without its first images."""
    return replace(task, seeds=task.seeds[first:], keys=task.keys[first:])


def given_up(task: Task, why: str) -> Made:
    """That the task's first image is not to be had."""
    return Made(task.line, task.keys[0], task.seeds[0], error=why)


def _hand(worker: _Worker, waiting: Waiting) -> None:
    worker.task, worker.tried = waiting.pop() if waiting else (None, 0)
    worker.finished = 0
    if worker.task is not None:
        # One that died while idle is found dead when its answer is awaited.
        with suppress(OSError):
            worker.pipe.send(worker.task)


def _begin(index: int, count: int, setup: Setup) -> _Worker:
    ours, theirs = mp.Pipe()
    # Fresh interpreters: a forked one would inherit torch's threads in an unusable state.
    process = mp.get_context("spawn").Process(
        target=_work, args=(theirs, share_of(index, count, setup), os.getpid()), daemon=True
    )
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _work(pipe: Connection, setup: Setup, parent: int) -> None:
    """Paint what comes through the pipe until it closes, or until whoever asked is gone."""
    import signal

    from t2iedit.cli.terminal import silence_libraries

    # Ctrl-C reaches the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence_libraries()

    def alive() -> None:
        if os.getppid() != parent:
            os._exit(1)

    painter = Painter(setup)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        for made in painter.paint(task, alive):
            pipe.send(made)
        pipe.send(None)
