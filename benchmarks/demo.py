"""The demo on localhost: how soon the page and a first picture are there, and what many visitors at once lose or mix up.

python benchmarks/demo.py [-m MODEL] [--visitors 20] [--seconds 60] [--quick]

Every visitor asks for pictures of a prompt of its own, one after another, and looks at each: it must carry the recipe that
was asked for, and its pixels must be those that the library makes of it alone. The baseline is one visitor by itself.
"""

import argparse
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import row, save, show
from gradio_client import Client
from PIL import Image

import t2iedit
from t2iedit.tiny import tiny_pipeline

APP = Path(__file__).parent.parent / "demos" / "app.py"
TIMEOUT = 180.0
"""Seconds that a visitor waits for any answer; gradio_client itself gives up connections after five, which is too soon
for a machine that computes."""
SEEDS = 3
COLOURS = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square", "triangle", "star")


@dataclass
class Visits:
    """What all visitors saw: each picture by what was asked and how long it took, and sentences on what went wrong."""

    pictures: list[tuple[str, int, bytes]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        if args.quick:
            args.model = str(tiny_model(Path(scratch)))
        rows = measured(args)
    show(rows)
    if not args.quick:
        save("demo", rows, vars(args))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-m", "--model", default="shapes")
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=4, help="of each visitor's picture")
    parser.add_argument("--quick", action="store_true", help="a tiny model, ten seconds, no file")
    args = parser.parse_args()
    if args.quick:
        args.seconds = 10.0
    return args


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    begin = time.perf_counter()
    with served("-m", args.model) as url:
        ready = time.perf_counter() - begin
        begin = time.perf_counter()
        client = Client(url, verbose=False, httpx_kwargs={"timeout": TIMEOUT})
        client.predict({"prompt": "a red circle"}, api_name="/generate")
        first = time.perf_counter() - begin
        alone = visited(url, 1, args.seconds / 4, args.steps)
        together = visited(url, args.visitors, args.seconds, args.steps)
    check(together, t2iedit.open_model(args.model), args.steps)
    name = f"{args.visitors} visitors"
    rate = len(together.seconds) / args.seconds
    return [
        row("demo", "seconds from command to page", [ready]),
        row("demo", "seconds from page to first picture", [first]),
        row("one visitor", "seconds a picture", alone.seconds),
        row("one visitor", "pictures a second", [len(alone.seconds) * 4 / args.seconds]),
        row(name, "seconds a picture", together.seconds),
        row(name, "pictures a second", [rate]),
        row(name, "pictures", [len(together.seconds)]),
        row(name, "lost", [len(together.lost)]),
        row(name, "mixed up", [len(together.mixed)]),
    ]


@contextmanager
def served(
    *flags: str, code: str = "", patience: float = 300.0, **environment: str
) -> Iterator[str]:
    """The demo in a process of its own, by its address; `code` runs in it before the page is made.

    Raises `RuntimeError` with what it printed if it does not come up.
    """
    port = free_port()
    program = [str(APP)] if not code else ["-c", f"{code}\nimport app, sys\nsys.exit(app.main())"]
    paths = [str(APP.parent), *(path for path in sys.path if path)]
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [sys.executable, *program, "--port", str(port), *flags],
            env=settings, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        url = f"http://127.0.0.1:{port}/"
        try:
            if not _answers(url, server, patience):
                log.seek(0)
                raise RuntimeError(f"the demo did not come up:\n{log.read()[-3000:]}")
            yield url
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def visited(url: str, visitors: int, seconds: float, steps: int) -> Visits:
    """All visitors at once, each in a thread, for so many seconds."""
    visits, end = Visits(), time.monotonic() + seconds
    threads = [
        threading.Thread(target=_visit, args=(url, prompt, steps, end, visits))
        for prompt in prompts(visitors)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return visits


def prompts(count: int) -> list[str]:
    """As many different ones."""
    pairs = itertools.product(COLOURS, SHAPES)
    known = [f"a {colour} {shape}" for colour, shape in pairs]
    return [f"{known[n % len(known)]} {n}" for n in range(count)]


def check(visits: Visits, model: t2iedit.Model, steps: int) -> None:
    """Compare each picture that came with what the library makes; what differs goes to `mixed`."""
    own: dict[tuple[str, int], bytes] = {}
    for prompt, seed, pixels in visits.pictures:
        if (prompt, seed) not in own:
            request = t2iedit.Request(prompt, seed=seed, steps=steps)
            own[prompt, seed] = t2iedit.generate(model, request).image.tobytes()
        if own[prompt, seed] != pixels:
            visits.mixed.append(f"{prompt}, seed {seed}: other pixels")


def tiny_model(scratch: Path) -> Path:
    """A folder with a model that answers at once and paints noise."""
    folder = scratch / "tiny"
    tiny_pipeline("sd1").save_pretrained(folder)
    (folder / "t2iedit.json").write_text('{"steps": 4, "guidance_scale": 3.0}')
    return folder


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _answers(url: str, server: subprocess.Popen, patience: float) -> bool:
    end = time.monotonic() + patience
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            time.sleep(0.05)
    return False


def _visit(url: str, prompt: str, steps: int, end: float, visits: Visits) -> None:
    try:
        client = Client(url, verbose=False, httpx_kwargs={"timeout": TIMEOUT})
    except Exception as error:
        visits.lost.append(f"{prompt} could not come in: {error!r}")
        return
    for number in itertools.count():
        # Coming in can outlast a short visit on a slow machine; nobody leaves without a picture.
        if number and time.monotonic() > end:
            return
        seed, begin = number % SEEDS, time.perf_counter()
        try:
            path, _ = client.predict(
                {"prompt": prompt, "seed": seed, "steps": steps}, api_name="/generate"
            )
        except Exception as error:
            visits.lost.append(f"{prompt}, seed {seed}: {error!r}")
            continue
        visits.seconds.append(time.perf_counter() - begin)
        _look(path, prompt, seed, visits)


def _look(path: str, prompt: str, seed: int, visits: Visits) -> None:
    with Image.open(path) as image:
        recipe: dict[str, Any] = json.loads(image.info["t2iedit"])
        visits.pictures.append((prompt, seed, image.convert("RGB").tobytes()))
    if (recipe["prompt"], recipe["seeds"]) != (prompt, [seed]):
        visits.mixed.append(f"{prompt}, seed {seed}: got {recipe['prompt']}, {recipe['seeds']}")


if __name__ == "__main__":
    main()
