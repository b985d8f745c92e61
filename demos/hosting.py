"""What a host allows: which models and files are on offer, and how much a visitor may ask for."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2iedit import Model, Request, open_model
from t2iedit.controls import controls
from t2iedit.errors import InvalidRequest, ModelNotUsable, UserError
from t2iedit.plugins import installed
from t2iedit.request import edit_to_json

REFUSED = {"loras": "LoRA files", "conditioning": "files of encoded prompts"}
"""What a request could name of the host's files."""
IGNORED = ("made_with", "dtype")
"""What a recipe tells of another machine."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most of each thing; sides and `pixels` (of an uploaded picture) in pixels, `upload` in bytes, texts in characters.

    `learning` and `optimising` are of a concept's steps, the latter's for each request, `pictures` of those it is learned from, `sessions` of visitors who are remembered.
    """

    prompt: int = 1000
    options: int = 8000
    edits: int = 8
    side: int = 1024
    steps: int = 100
    images: int = 4
    cells: int = 25
    upload: int = 16 * 2**20
    pixels: int = 16_000_000
    pictures: int = 20
    learning: int = 500
    optimising: int = 50
    history: int = 24
    waiting: int = 40
    sessions: int = 200

    def check(self, request: Request) -> None:
        """Raises `InvalidRequest`, naming the limit."""
        optimising = max((getattr(e.options, "optimise", 0) for e in request.edits), default=0)
        texts = sum(len(str(edit_to_json(edit))) for edit in request.edits)
        own = [*request.prompts.values(), *request.negatives.values()]
        for given, most, what in (
            (sum(map(len, own)), self.prompt, "the characters of single encoders' prompts"),
            (len(request.prompt), self.prompt, "the prompt's characters"),
            (len(request.negative or ""), self.prompt, "the negative prompt's characters"),
            (len(request.edits), self.edits, "the edits"),
            (texts, self.options, "the characters of the edits' options"),
            (len(request.seeds), self.images, "the images at once"),
            (optimising, self.optimising, "the steps of a concept's optimisation"),
        ):
            _check(given, most, what)
        self.check_work(request.steps or 0, request.size or (0, 0))

    def check_work(self, steps: int, size: tuple[int, int]) -> None:
        """Raises `InvalidRequest` for more steps or larger pictures."""
        _check(size[0], self.side, "the width in pixels")
        _check(size[1], self.side, "the height in pixels")
        _check(steps, self.steps, "the steps")


def _check(given: int, most: int, what: str) -> None:
    if given > most:
        raise InvalidRequest(f"{what} may be at most {most} here, not {given}")


class Models:
    """The models on offer by the names that visitors see; each is opened when first wanted, and stays open."""

    def __init__(self, names: Sequence[str], *, device: str | None = None) -> None:
        """Raises `ModelNotUsable` for two of one name."""
        self._sources = {Path(name).name or name: name for name in names}
        if len(self._sources) < len(names):
            raise ModelNotUsable(f"two of the models {', '.join(names)} end in the same name")
        self.device = device
        self._open: dict[tuple[str, str | None], Model] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        return list(self._sources)

    def matching(self, name: Any) -> str:
        """The offered name that a request or a recipe means. Raises `ModelNotUsable`; opens nothing."""
        last = str(name).rstrip("/").rsplit("/", 1)[-1]
        if last not in self._sources:
            raise ModelNotUsable(
                f'the model "{last}" is not on offer here; there is {", ".join(self._sources)}'
            )
        return last

    def source(self, name: str) -> str:
        """The folder or id that an offered name stands for; for the host's own eyes."""
        return str(self._sources[self.matching(name)])

    def opened(self, name: str, dtype: str | None = None) -> Model:
        """The model under the visitors' name for it, which is also what its pictures record.

        In another `dtype` than its own it is opened a second time.
        """
        shown = self.matching(name)
        with self._lock:
            model = self._kept(shown, None)
            if dtype not in (None, str(model.dtype).removeprefix("torch.")):
                model = self._kept(shown, dtype)
        return model

    def _kept(self, shown: str, dtype: str | None) -> Model:
        if (shown, dtype) not in self._open:
            model = open_model(self._sources[shown], device=self.device, dtype=dtype)
            model.name = shown
            self._open[shown, dtype] = model
        return self._open[shown, dtype]


@dataclass(frozen=True)
class Host:
    """The models, the listed files by name, and the limits."""

    models: Models
    files: dict[str, Path]
    limits: Limits = Limits()

    def admitted(self, data: Any, uploads: Sequence[str] = ()) -> Request:
        """The request that a visitor's JSON describes, with nothing of the host's in it but what is on offer.

        `uploads` are files of the visitor's own that the server received. Raises `UserError`; opens no file or model.
        """
        if not isinstance(data, dict):
            raise InvalidRequest('a request is a JSON object with at least a "prompt"')
        for key, what in REFUSED.items():
            if data.get(key):
                raise InvalidRequest(f"{what} are not on offer here; leave out {key}")
        left = {*REFUSED, *IGNORED}
        data = {key: value for key, value in data.items() if key not in left}
        data["model"] = self.models.matching(data.get("model", self.models.names[0]))
        edits = data.get("edits", [])
        if not isinstance(edits, list) or len(edits) > self.limits.edits:
            raise InvalidRequest(f"edits is a list of at most {self.limits.edits} edits")
        data["edits"] = [self._with_own_files(edit, uploads) for edit in edits]
        request = Request.from_json(data)
        self.limits.check(request)
        return request

    def opened(self, request: Request) -> Model:
        """The request's model. Raises `InvalidRequest` where what is left to its defaults is more than is allowed."""
        model = self.models.opened(request.model)
        defaults = model.defaults
        self.limits.check_work(request.steps or defaults.steps, request.size or defaults.size)
        return model

    def _with_own_files(self, edit: Any, uploads: Sequence[str]) -> Any:
        """The same edit, its options that name files matched to uploads and the host's list."""
        if not isinstance(edit, dict) or not isinstance(edit.get("options", {}), dict):
            raise InvalidRequest('an edit is {"name": ..., "options": {...}}')
        options = dict(edit.get("options", {}))
        for control in controls(installed().edit(str(edit.get("name"))).Options):
            if control.kind == "file" and options.get(control.name):
                given = options[control.name]
                options[control.name] = (
                    [self._file(item, uploads) for item in given]
                    if isinstance(given, list)
                    else self._file(given, uploads)
                )
        return edit | {"options": options}

    def _file(self, given: Any, uploads: Sequence[str]) -> str:
        """A visitor's own upload, by its path or its name, else a listed file."""
        if isinstance(given, str) and given in uploads:
            return given
        name = str(given).replace("\\", "/").rsplit("/", 1)[-1]
        own = [path for path in uploads if Path(path).name == name]
        if own:
            return own[-1]
        if name not in self.files:
            listed = ", ".join(self.files) or "none"
            raise InvalidRequest(f'the file "{name}" is not on offer here; listed files: {listed}')
        return str(self.files[name])


def listed_files(folder: str | None) -> dict[str, Path]:
    """The safetensors files of a folder by name. Raises `UserError` if it is none."""
    if folder is None:
        return {}
    if not Path(folder).is_dir():
        raise UserError(f'there is no folder "{folder}"; give one with .safetensors files')
    return {path.name: path for path in sorted(Path(folder).glob("*.safetensors"))}
