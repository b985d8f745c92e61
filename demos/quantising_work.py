"""Quantising a model, watched: calibrated and packed here, then measured beside the original in processes of their own."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from t2iedit_mixdq.architectures import hollow
from t2iedit_mixdq.calibration import Settings
from t2iedit_mixdq.prompts import default_prompts
from t2iedit_mixdq.quantising import Wish, quantise
from t2iedit_mixdq.report import estimated_bytes
from t2iedit_mixdq.wiring import survey
from watching import Clock, Moment, Tell, stop_if, watched

from t2iedit import Model, Request
from t2iedit.errors import T2IEditError

REPEATS = 3
EVERY = 0.4
"""Seconds between news."""
PROGRAM = Path(__file__).with_name("measuring.py")


class MeasuringFailed(T2IEditError):
    """The program that measures ended with an error, which is in the host's log."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes of the UNet's weights and of the whole process at its peak, seconds a picture, and the picture."""

    weights: int
    peak: int
    seconds: float
    image: Image.Image


@dataclass(frozen=True, slots=True)
class Quantised:
    """The folder, its facts, and both models measured."""

    folder: Path
    facts: dict
    before: Measured
    after: Measured


def estimated(model: Model, bits: float) -> int:
    """Bytes of the UNet with weights of so many bits; from its configuration alone, so nothing waits for the model.

    Raises `EditNotSupported` for a denoiser that MixDQ does not know.
    """
    unet: Any = hollow(dict(model.denoiser.config))  # type: ignore[arg-type, call-overload]
    return estimated_bytes(survey(unet), unet.to(model.dtype), bits)


def quantised(
    model: Model, source: str, device: str | None, wish: Wish, request: Request, folder: Path, stop: threading.Event
) -> Iterator[Moment | Quantised]:  # fmt: skip
    """Moments, and at last what came of it. Raises what `quantise` raises, `MeasuringFailed` and `Stopped`."""

    def work(tell: Tell) -> None:
        settings = Settings(default_prompts(model.name))
        recipe = quantise(model, wish, settings, folder, stage=_stage(stop, tell))
        asked = {
            "device": device,
            "dtype": str(model.dtype).removeprefix("torch."),
            "name": model.name,
        }
        asked |= {"request": request.to_json(), "repeats": REPEATS}
        found = []
        for number, place in enumerate((str(folder), source)):
            tell(Moment(number, 2, what="measured"))
            found.append(_measured(asked | {"source": place}, folder.with_suffix(".png"), stop))
        tell(Quantised(folder, recipe.facts, found[1], found[0]))

    return watched(work, stop)


def _stage(stop: threading.Event, tell: Tell) -> Callable[[str, int], Callable[[int], None]]:
    """What `quantise` reports to."""

    def begin(description: str, total: int) -> Callable[[int], None]:
        clock, told = Clock(total, description), 0.0
        stop_if(stop)
        tell(clock.moment(0))

        def advance(count: int) -> None:
            nonlocal told
            stop_if(stop)
            moment = clock.moment(count)
            if time.monotonic() - told > EVERY:
                told = time.monotonic()
                tell(moment)

        return advance

    return begin


def _measured(asked: dict, picture: Path, stop: threading.Event) -> Measured:
    paths = os.pathsep.join(path for path in sys.path if path)
    program = subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert program.stdin is not None and program.stdout is not None
    try:
        program.stdin.write(json.dumps(asked | {"out": str(picture)}))
        program.stdin.close()
        while program.poll() is None:
            stop_if(stop)
            time.sleep(0.1)
        said = program.stdout.read()
    finally:
        program.kill()
        program.wait()
        program.stdout.close()
    if program.returncode:
        raise MeasuringFailed("measuring the model failed; the host's log says more")
    with Image.open(picture) as image:
        image.load()
    return Measured(**json.loads(said.splitlines()[-1]), image=image)
