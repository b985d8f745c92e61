"""Many requests into one folder: nothing twice, nothing half-written, and one line of results for each image."""

import errno
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2iedit import digests, lora
from t2iedit.conditioning import Conditioning
from t2iedit.errors import InvalidRequest, OutputNotWritable, RecipeNotUsable, UserError
from t2iedit.painters import FACTS, Made, Setup, Task
from t2iedit.provenance import read_recipe, unwritable, write_whole
from t2iedit.request import Request
from t2iedit.request_files import Line

RESULTS = "results.jsonl"
LOCK = ".lock"
KEY_DIGITS = 20
KINSHIP = ("model", "dtype", "fingerprint")
SEEDS_A_TASK = 8
"""A line of many seeds is split, so that it can be shared among workers."""

Engine = Callable[[list[Task], Setup], Generator[Made, None, None]]
"""Tasks to what came of their images, in any order."""


@dataclass
class Plan:
    """What a file of requests comes to: tasks in a sensible order, lines by image, what is done, and bad lines."""

    tasks: list[Task] = field(default_factory=list)
    lines: dict[str, list[int]] = field(default_factory=dict)
    done: int = 0
    errors: dict[int, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Images still to be made."""
        return sum(len(task.seeds) for task in self.tasks)


class Folder:
    """Where a batch goes: `<key>.png` for each image, and `results.jsonl`.

    A key is 20 hexadecimal digits over the one-seed request, so equal requests are one image, whatever file they come
    from, in whatever order, by whatever engine.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.records: dict[str, dict[str, Any]] = {}
        self.fingerprints: dict[tuple[str, str], str] = {}
        """Of finished images, by model and dtype."""

    @contextmanager
    def held(self) -> Iterator["Folder"]:
        """With the folder made, its results read and repaired, and no other batch in it.

        Raises `OutputNotWritable`.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError as error:
            raise unwritable(self.path, error) from error
        try:
            _take(lock, self.path)
            self._repair()
            yield self
        finally:
            os.close(lock)

    def image(self, key: str) -> Path:
        return self.path / f"{key}.png"

    def finished(self, key: str) -> bool:
        """Whether the image is there; one whose line was lost in a crash is recorded again from its own recipe."""
        if key not in self.records:
            try:
                recipe = read_recipe(self.image(key))
            except RecipeNotUsable:
                return False
            made_with = recipe.get("made_with", {})
            self._recover(key, recipe, made_with if isinstance(made_with, dict) else {})
        return self.image(key).exists()

    def keep(self, made: Made, lines: list[int]) -> Path | None:
        """Write an image, then its line of results; of a failure the line alone."""
        if made.png is None or made.key is None:
            self._append({"lines": lines, "seed": made.seed, "error": made.error})
            return None
        path = self.image(made.key)
        write_whole(path, made.png)
        self._record(made.key, lines, made.seed, made.seconds, made.facts)
        return path

    def _record(
        self, key: str, lines: list[int], seed: Any, seconds: float | None, facts: dict[str, Any]
    ) -> None:
        record = {
            "lines": lines,
            "key": key,
            "path": f"{key}.png",
            "seed": seed,
            "seconds": seconds,
        }
        self.records[key] = record | facts
        self._append(self.records[key])

    def _recover(self, key: str, recipe: dict[str, Any], made_with: dict[str, Any]) -> None:
        facts = {name: (recipe | made_with).get(name) for name in FACTS}
        facts |= {"warnings": [], "edits": made_with.get("edits", []), "recovered": True}
        seeds = recipe.get("seeds")
        self._record(key, [], seeds[0] if isinstance(seeds, list) and seeds else None, None, facts)

    def _append(self, record: dict[str, Any]) -> None:
        """One write a line, so that a crash leaves at most the end of one line missing, and a full disc nothing of it."""
        line = _line(record)
        try:
            with (self.path / RESULTS).open("ab", buffering=0) as file:
                end = file.tell()
                if file.write(line) < len(line):
                    file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise unwritable(self.path / RESULTS, error) from error

    def _repair(self) -> None:
        """Drop what a crash left: unfinished files, half a line, lines of failures and of images that are gone."""
        for unfinished in self.path.glob(".*.part"):
            unfinished.unlink(missing_ok=True)
        try:
            lines = (self.path / RESULTS).read_bytes().splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            raise unwritable(self.path / RESULTS, error) from error
        for line in lines:
            record = _parsed(line)
            key = record.get("key")
            if isinstance(key, str) and self.image(key).exists():
                self.records[key] = record
                model, dtype, fingerprint = (str(record.get(name) or "") for name in KINSHIP)
                if model and dtype and fingerprint:
                    self.fingerprints[model, dtype] = fingerprint
        write_whole(self.path / RESULTS, b"".join(map(_line, self.records.values())))


def _line(record: dict[str, Any]) -> bytes:
    """Half a character, which JSON can hold and UTF-8 cannot, as JSON escapes it."""
    text = json.dumps(record, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")


def plan(lines: Iterable[Line], folder: Folder | None) -> Plan:
    """The tasks that the lines come to, those of one model and of the same patches together."""
    made = Plan()
    known: dict[str, str] = {}
    wanted: list[tuple[int, Request, list[tuple[int, str]]]] = []
    for line in lines:
        try:
            if line.request is None:
                raise InvalidRequest(line.error or "")
            keys = [
                (seed, key_of(line.request.for_seed(seed), known)) for seed in line.request.seeds
            ]
        except UserError as error:
            made.errors[line.number] = str(error)
            continue
        pending = []
        for seed, key in dict.fromkeys(keys):
            made.lines.setdefault(key, []).append(line.number)
            if len(made.lines[key]) > 1:
                continue
            if folder is not None and folder.finished(key):
                made.done += 1
            else:
                pending.append((seed, key))
        if pending:
            wanted.append((line.number, line.request, pending))
    wanted.sort(key=lambda item: _alike(item[1]))
    made.tasks = [task for item in wanted for task in _split(*item)]
    return made


def run(
    made: Plan,
    folder: Folder,
    engine: Engine,
    setup: Setup,
    on_made: Callable[[Made, Path | None], None],
) -> tuple[int, int]:
    """Paint the plan into the folder; how many images were made, and how many lines and images failed.

    Raises `OutputNotWritable`, say for a full disc.
    """
    for line, error in made.errors.items():
        bad = Made(line, error=error)
        on_made(bad, folder.keep(bad, [line]))
    done, failed = 0, len(made.errors)
    # Closed at once when a disc is full, so that no worker goes on for nothing.
    with closing(engine(made.tasks, setup)) as images:
        for image in images:
            path = folder.keep(image, made.lines.get(image.key or "", [image.line]))
            done, failed = done + (path is not None), failed + (path is None)
            on_made(image, path)
    return done, failed


def in_process(tasks: list[Task], setup: Setup) -> Generator[Made, None, None]:
    """The engine of one worker: here."""
    from t2iedit.painters import Painter

    painter = Painter(setup)
    for task in tasks:
        yield from painter.paint(task)


def key_of(request: Request, known: dict[str, str] | None = None) -> str:
    """What an image is called: digits over its request, and over the contents of all files that it names."""
    values = request.to_json()
    if request.conditioning is not None:
        known = {} if known is None else known
        if request.conditioning not in known:
            known[request.conditioning] = Conditioning.load(request.conditioning).digest
        values["conditioning"] = known[request.conditioning]
    if request.loras:
        values["loras"] = [[lora.digest(each), each.scale] for each in request.loras]
    files = [edit.files for edit in request.edits]
    return digests.of_json(values | ({"files": files} if any(files) else {}), KEY_DIGITS)


def _alike(request: Request) -> tuple[str, ...]:
    """Requests next to each other in this order share the model, then its patches, then the prompt."""
    patches = [edit.key for edit in request.edits if "patch_model" in edit.stages]
    model = (request.model, request.dtype or "", str(request.loras), str(patches))
    return (*model, request.prompt, request.conditioning or "")


def _split(number: int, request: Request, pending: list[tuple[int, str]]) -> Iterator[Task]:
    values = {key: value for key, value in request.to_json().items() if key != "seeds"}
    for first in range(0, len(pending), SEEDS_A_TASK):
        seeds, keys = zip(*pending[first : first + SEEDS_A_TASK], strict=True)
        yield Task(number, values, seeds, keys)


def _take(lock: int, path: Path) -> None:
    """Locked by the system, so that a killed batch holds nothing."""
    try:
        import fcntl
    except (
        ImportError
    ):  # Windows has no flock; there two batches in one folder are the user's own affair.
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputNotWritable(
            f'another batch is writing into "{path}"; wait for it, or choose another folder with -o'
        ) from error
    except OSError:  # Some network file systems have no locks either.
        return


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
