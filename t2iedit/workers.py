"""Several painters on one machine, each a process with a model of its own."""

import multiprocessing as mp
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from t2iedit.batch import Engine
from t2iedit.painters import Made, Painter, Setup, Task

TRIES = 2
"""A task whose worker dies is tried once more; it may have been the death of it."""


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: Task | None = None
    tried: int = 0
    finished: int = 0
    """Images of the task that have arrived."""


def processes(count: int) -> Engine:
    """The engine of `count` processes; each has its share of the cores, and its own GPU as far as there are any."""

    def engine(tasks: list[Task], setup: Setup) -> Iterator[Made]:
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

    threads = setup.threads or max(1, (os.cpu_count() or 1) // count)
    gpus = torch.cuda.device_count()
    device = setup.device or (f"cuda:{index % gpus}" if gpus else None)
    return replace(setup, threads=threads, device=device)


def _next(
    workers: list[_Worker], waiting: list[tuple[Task, int]], count: int, setup: Setup
) -> Iterator[Made]:
    """What arrives next: images, the end of a task, or the end of a worker."""
    busy = {worker.pipe: index for index, worker in enumerate(workers) if worker.task is not None}
    for pipe in wait(list(busy)):
        index = busy[pipe]  # type: ignore[index]
        worker = workers[index]
        try:
            made = worker.pipe.recv()
        except (EOFError, OSError):
            yield from _bury(worker, waiting)
            workers[index] = worker = _begin(index, count, setup)
            made = None
        if made is None:
            _hand(worker, waiting)
        else:
            worker.finished += 1
            yield made


def _bury(worker: _Worker, waiting: list[tuple[Task, int]]) -> Iterator[Made]:
    task, done = worker.task, worker.finished
    worker.process.join()
    worker.pipe.close()
    assert task is not None
    rest = replace(task, seeds=task.seeds[done:], keys=task.keys[done:])
    if not rest.seeds:
        return
    if worker.tried + 1 < TRIES:
        waiting.append((rest, worker.tried + 1))
    else:
        code = worker.process.exitcode
        yield Made(task.line, error=f"failed: its worker died {TRIES} times (exit code {code})")


def _hand(worker: _Worker, waiting: list[tuple[Task, int]]) -> None:
    worker.task, worker.tried = waiting.pop() if waiting else (None, 0)
    worker.finished = 0
    if worker.task is not None:
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
