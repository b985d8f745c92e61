"""What is kept of an unfinished run, whole or not at all, and when it may be taken up again."""

import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from t2iedit import OutputNotWritable, UserError
from t2iedit_context.embeddings import write_whole

CHECKPOINT, REPORT = "checkpoint.pt", "report.json"
EXTENDABLE = {"steps", "finetune_steps"}
"""Settings that may differ when a run goes on."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder beside a concept's file with all that belongs to its learning."""

    path: Path

    @classmethod
    def of(cls, output: Path) -> "RunFolder":
        return cls(output.with_suffix(".run"))

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint. Raises `OutputNotWritable`; the last one is still there then."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(self.checkpoint, buffer.getvalue())
        self.log(state["history"])

    def log(self, history: Sequence[dict[str, Any]]) -> None:
        """Every step's losses, a JSON line each."""
        rows = "".join(json.dumps(row) + "\n" for row in history)
        write_whole(self.path / "log.jsonl", rows.encode())

    def load(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The checkpoint, or None if there is none. Raises `UserError` for one of another run."""
        if not self.checkpoint.exists():
            return None
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            then = state["identity"]
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f'the checkpoint "{self.checkpoint}" is damaged ({reason}); delete the folder and learn anew'
            ) from error
        different = sorted(
            key for key in identity if key not in EXTENDABLE and then.get(key) != identity[key]
        )
        if different:
            key = different[0]
            raise UserError(
                f'the run in "{self.path}" had {key}={then.get(key)!r} and now it is {identity[key]!r}; resume with the'
                " same settings, or choose another -o"
            )
        return state

    def refuse_unfinished(self) -> None:
        """Raises `UserError` if a run was left unfinished here, so that nobody overwrites it by mistake."""
        if self.checkpoint.exists():
            raise UserError(
                f'there is an unfinished run in "{self.path}"; add --resume to go on with it, or delete that folder'
            )

    def report(self) -> dict[str, Any] | None:
        """The report of a finished run, or None if it is gone or damaged."""
        try:
            return json.loads((self.path / REPORT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def finish(self, report: dict[str, Any]) -> None:
        """The run is done: its report is written and its checkpoint is not needed any more."""
        write_whole(self.path / REPORT, (json.dumps(report, indent=2) + "\n").encode())
        self.checkpoint.unlink(missing_ok=True)


def digest_of(pictures: Sequence[Image.Image]) -> str:
    """Twelve hexadecimal digits that tell apart sets of pictures."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.size}".encode() + picture.tobytes())
    return digest.hexdigest()[:12]


def check_target(output: Path, others: Sequence[Path] = ()) -> None:
    """Raises `OutputNotWritable` for a place where nothing can be written, before anything is computed."""
    if output.is_dir():
        raise OutputNotWritable(f'"{output}" is a folder; give a file name with -o')
    for path in others:
        if path.exists():
            raise OutputNotWritable(
                f'"{path}" is there already; move it away, or choose another -o'
            )
    nearest = output.absolute().parent
    while not nearest.exists():
        nearest = nearest.parent
    try:
        # Permissions alone say little: to root, or on a file system that is read-only.
        with tempfile.NamedTemporaryFile(dir=nearest, prefix=".", suffix=".part"):
            pass
    except OSError as error:
        raise OutputNotWritable(
            f'cannot write "{output}": "{nearest}" is no folder you may write to ({error.strerror});'
            " choose another -o"
        ) from error


def write_folder(path: Path, fill: Any) -> None:
    """A folder that `fill(temporary)` writes, there whole or not at all. Raises `OutputNotWritable`."""
    unfinished = None
    try:
        unfinished = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=path.parent))
        fill(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(path)
    except OSError as error:
        raise OutputNotWritable(
            f'cannot write "{path}" ({error.strerror or error}); choose a place with room'
        ) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
