"""The Ray engine: the same names and images as in process, with one of two workers killed half-way."""

import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import suppress

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from t2iedit import batch, ray_engine
from t2iedit.errors import InvalidRequest
from t2iedit.painters import Setup, Task
from t2iedit.ray_engine import on_ray
from t2iedit.request import Request
from t2iedit.request_files import Line
from t2iedit.tiny import tiny_pipeline

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray") / "tiny"
    tiny_pipeline("sd1").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def small_ray():
    """Two CPUs and little memory, whatever the machine has."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=200 << 20,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    yield ray
    ray.shutdown()


def paint(lines, folder, engine, on_made=lambda made, path: None, **setup):
    with batch.Folder(folder).held() as held:
        made = batch.plan(lines, held)
        return batch.run(made, held, engine, Setup(**setup), on_made)


def pictures(folder):
    return {path.name: np.asarray(Image.open(path)) for path in folder.glob("*.png")}


def actors():
    found = []
    for process in psutil.Process().children(recursive=True):
        # One that was just killed has no command any more.
        with suppress(psutil.NoSuchProcess):
            found += [process] if "RayPainter" in " ".join(process.cmdline()) else []
    return found


def test_without_ray_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidRequest, match=r"pip install 't2iedit\[ray\]'"):
        list(on_ray(1)([Task(1, {}, (0,), ("k",))], Setup()))


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_cluster_at_an_address_is_one_sentence():
    with pytest.raises(InvalidRequest, match='there is no Ray cluster at "auto"'):
        list(on_ray(1, "auto")([Task(1, {}, (0,), ("k",))], Setup()))


@needs_ray
@pytest.mark.slow
def test_killed_with_its_cluster_it_resumes(tiny, tmp_path):
    """The command on a Ray of its own, killed with kill -9 and started again."""
    (tmp_path / "r.txt").write_text("".join(f"a cat and {n} dogs\n" for n in range(8)))
    command = ["batch", "r.txt", "-m", tiny, "--steps", "40", "--engine", "ray", "--workers", "2"]
    words = [sys.executable, "-m", "t2iedit", *command, "-o", "out"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, cwd=tmp_path, **pipes)
    process.stdout.readline()
    process.kill()
    process.communicate()
    before = pictures(tmp_path / "out")
    assert 0 < len(before) < 8
    again = subprocess.run(words, cwd=tmp_path, timeout=600, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert len(again.stdout.split()) == 8 - len(before) and len(pictures(tmp_path / "out")) == 8
    told = f"t2iedit: {8 - len(before)} images made, {len(before)} were there already, 0 failures"
    assert again.stderr.strip().splitlines()[-1] == told and "Traceback" not in again.stderr


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_paints_what_one_process_paints_and_survives_a_death(tiny, tmp_path, small_ray):
    threads, painters, killed = torch.get_num_threads(), set(), []
    lines = [
        Line(n, Request("a cat", model=tiny, steps=40, seeds=range(6 * n, 6 * n + 6)))
        for n in (0, 1)
    ]

    def kill_one(made, path):
        painters.update(actor.pid for actor in actors())
        if len(painters) == 2 and not killed:
            killed.append(min(painters))
            os.kill(killed[0], signal.SIGKILL)

    assert paint(lines, tmp_path / "ray", on_ray(2), kill_one, threads=threads) == (12, 0)
    assert paint(lines, tmp_path / "here", batch.in_process, threads=threads) == (12, 0)
    assert killed and len(painters) >= 2
    here, there = pictures(tmp_path / "here"), pictures(tmp_path / "ray")
    assert list(sorted(here)) == list(sorted(there)) and len(here) == 12
    assert all(np.array_equal(here[name], there[name]) for name in here)
    assert paint(lines, tmp_path / "ray", on_ray(2)) == (0, 0)


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_more_workers_than_there_is_room_for_do_not_wait_for_ever(tiny, tmp_path, small_ray):
    lines = [Line(1, Request("a cat", model=tiny, steps=1, seeds=range(5)))]
    assert paint(lines, tmp_path / "out", on_ray(5), threads=1) == (5, 0)


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_image_that_kills_its_workers_is_given_up_and_the_rest_is_made(
    tiny, tmp_path, small_ray, monkeypatch
):
    class Deadly:
        def __init__(self, setup, folder):
            from t2iedit.painters import Painter

            self.painter = Painter(setup)

        def ready(self):
            return []

        def paint(self, task):
            import os

            return os._exit(1) if task.seeds == (1,) else list(self.painter.paint(task))

    monkeypatch.setattr(ray_engine, "RayPainter", Deadly)
    lines = [Line(1, Request("a cat", model=tiny, steps=1, seeds=range(3)))]
    heard = []
    counts = paint(lines, tmp_path / "out", on_ray(1), lambda made, path: heard.append(made))
    assert counts == (2, 1)
    (failed,) = [made for made in heard if made.error]
    assert failed.seed == 1 and "its Ray actor died 2 times" in failed.error
