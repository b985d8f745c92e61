"""Temporary files: all in one folder of this server's own, taken away when they are old and when it ends."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "GRADIO_TEMP_DIR"
"""Where Gradio looks for the folder of its cache and of uploads."""


@contextmanager
def own_files(age: float = 3600, every: float = 60) -> Iterator[Path]:
    """While this holds, Gradio's files and ours are in one folder, none `age` seconds after it was last used."""
    before = os.environ.get(VARIABLE)
    over = threading.Event()
    with tempfile.TemporaryDirectory(prefix="t2iedit-demo-", ignore_cleanup_errors=True) as name:
        where = Path(name)
        os.environ[VARIABLE] = name
        sweeper = threading.Thread(target=_sweep, args=(where, age, every, over), daemon=True)
        sweeper.start()
        try:
            yield where
        finally:
            over.set()
            sweeper.join()
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before


def folder() -> str | None:
    """Where this server's temporary files go."""
    return os.environ.get(VARIABLE)


def remove_old(where: Path, age: float) -> None:
    """Remove the files that nobody used for `age` seconds, and the folders that are empty then."""
    limit = time.time() - age
    for path in sorted(where.rglob("*"), reverse=True):
        try:
            if path.is_dir():
                path.rmdir()
            elif path.stat().st_mtime < limit:
                path.unlink()
        # It is in use, or somebody else removed it.
        except OSError:
            continue


def _sweep(where: Path, age: float, every: float, over: threading.Event) -> None:
    while not over.wait(every):
        remove_old(where, age)
