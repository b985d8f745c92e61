"""The working half of a batch: one open model, and tasks to images, in whatever process it is."""

import io
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from t2iedit.errors import ModelNotUsable, UserError, said
from t2iedit.request import Request

KNOWN_TEXTS = 64
"""Encoded texts that are kept, so that a negative prompt common to all is encoded once. One of T5's takes 4 MB."""
MOST_SAID = 2000
"""Characters of an error in a line of results."""
FACTS = ("model", "fingerprint", "dtype", "device", "threads")
"""What pixels depend on, in each line of results."""


@dataclass(frozen=True, slots=True)
class Task:
    """A request's images still to be made, as plain values that travel between processes."""

    line: int
    request: dict[str, Any]
    seeds: tuple[int, ...]
    keys: tuple[str, ...]

    @property
    def wanted(self) -> Request:
        return Request.from_json(self.request | {"seeds": list(self.seeds)})


@dataclass(frozen=True, slots=True)
class Made:
    """One image as PNG bytes with what is to be recorded of it, or why it could not be made."""

    line: int
    key: str | None = None
    seed: int | None = None
    seconds: float | None = None
    png: bytes | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """How a painter works: what `open_model` is told, threads, and fingerprints known by model and dtype."""

    device: str | None = None
    offload: str | None = None
    threads: int | None = None
    fingerprints: dict[tuple[str, str], str] = field(default_factory=dict)


class Painter:
    """Keeps the last model open, its patches on and its encoded texts known, for as long as tasks are alike."""

    def __init__(self, setup: Setup) -> None:
        import torch

        self.setup = setup
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        self._opened: tuple[Any, Any] = None, None
        self._known: _Recent = _Recent()

    def paint(self, task: Task, alive: Callable[[], None] = lambda: None) -> Iterator[Made]:
        """Each image of the task as soon as it is done; `alive` is called at every step."""
        for seed, key in zip(task.seeds, task.keys, strict=True):
            try:
                made = self._paint(task, seed, key, alive)
            # Whatever a plugin, a model or the machine makes of this image, the next one may work.
            except Exception as error:
                made = Made(task.line, key, seed, error=sentence(error))
            yield made

    def check(self, task: Task) -> str | None:
        """What would keep this task from being painted, or None; nothing is."""
        from t2iedit.encoding import check_encoders
        from t2iedit.pipeline import start

        try:
            run = start(self._model(task.wanted), task.wanted)
            if not run.loras:
                check_encoders(run)
        except Exception as error:
            return sentence(error)
        return None

    def _paint(self, task: Task, seed: int, key: str, alive: Callable[[], None]) -> Made:
        from t2iedit.pipeline import generate

        request = task.wanted.for_seed(seed)
        model = self._model(request)
        begin = time.perf_counter()
        result = generate(model, request, on_step=lambda progress: alive(), known=self._known)
        seconds = round(time.perf_counter() - begin, 4)
        return Made(task.line, key, seed, seconds, as_png(result.image), _facts(result.report))

    def _model(self, request: Request) -> Any:
        from t2iedit.opening import open_model

        wanted = request.model, request.dtype
        if self._opened[0] != wanted:
            self._opened = None, None
            self._known.clear()
            try:
                model: Any = open_model(
                    request.model,
                    device=self.setup.device,
                    dtype=request.dtype,
                    offload=self.setup.offload,
                )
            except UserError as error:
                model = error
            self._opened = wanted, model
        model = self._opened[1]
        if isinstance(model, UserError):
            raise model
        kind = request.model, str(model.dtype).removeprefix("torch.")
        expected = self.setup.fingerprints.get(kind, model.fingerprint)
        if model.fingerprint != expected:
            raise ModelNotUsable(
                f'the finished images were made with other weights of "{request.model}" ({expected}, now'
                f" {model.fingerprint}); choose another folder with -o"
            )
        return model


class _Recent(OrderedDict[Any, Any]):
    """A dictionary that forgets what was not asked for longest."""

    def __getitem__(self, key: Any) -> Any:
        self.move_to_end(key)
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > KNOWN_TEXTS:
            self.popitem(last=False)


def sentence(error: BaseException) -> str:
    """One line for people; what was no mistake of theirs is called a failure."""
    text = said(error, MOST_SAID)
    return text if isinstance(error, UserError) else f"failed: {type(error).__name__}: {text}"


def as_png(image: Any) -> bytes:
    """The image with its text chunks."""
    from t2iedit.provenance import png_chunks

    data = io.BytesIO()
    image.save(data, format="PNG", pnginfo=png_chunks(image))
    return data.getvalue()


def _facts(report: dict[str, Any]) -> dict[str, Any]:
    facts = {name: report["run"][name] for name in FACTS}
    return facts | {"warnings": report["warnings"], "edits": report["edits"]}
