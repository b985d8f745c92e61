"""The Ray engine: the same names and images as in process, with one of two workers killed half-way."""

import importlib.util
import os
import signal

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from t2iedit import batch
from t2iedit.errors import InvalidRequest
from t2iedit.painters import Setup, Task
from t2iedit.ray_engine import on_ray
from t2iedit.request import Request
from t2iedit.request_files import Line
from t2iedit.tiny import tiny_pipeline


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra")
def test_ray_paints_what_one_process_paints_and_survives_a_death(tmp_path):
    folder, threads = tmp_path / "tiny", torch.get_num_threads()
    tiny_pipeline("sd1").save_pretrained(folder)
    lines = [
        Line(n, Request("a cat", model=str(folder), steps=40, seeds=range(6 * n, 6 * n + 6)))
        for n in (0, 1)
    ]
    killed = []

    def kill_one(made, path):
        if not killed:
            tree = psutil.Process().children(recursive=True)
            actors = [p for p in tree if "RayPainter" in " ".join(p.cmdline())]
            killed.append(actors[0].pid)
            os.kill(actors[0].pid, signal.SIGKILL)

    failures = {}
    for name, engine in (("ray", on_ray(2)), ("here", batch.in_process)):
        with batch.Folder(tmp_path / name).held() as held:
            made = batch.plan(lines, held)
            heard = kill_one if name == "ray" else lambda made, path: None
            failures[name] = batch.run(made, held, engine, Setup(threads=threads), heard)
    assert killed and failures == {"ray": 0, "here": 0}
    names = {path.name for path in (tmp_path / "here").glob("*.png")}
    assert names == {path.name for path in (tmp_path / "ray").glob("*.png")} and len(names) == 12
    for name in names:
        one, other = (np.asarray(Image.open(tmp_path / place / name)) for place in ("here", "ray"))
        assert np.array_equal(one, other)


def test_without_ray_a_sentence_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InvalidRequest, match=r"pip install 't2iedit\[ray\]'"):
        list(on_ray(1)([Task(1, {}, (0,), ("k",))], Setup()))
