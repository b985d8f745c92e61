"""The cookbook's tasks and the examples, run as they stand, and the reference as the docstrings have it."""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

import t2iedit
import t2iedit.cli
from t2iedit import opening
from t2iedit.tiny import tiny_pipeline

ROOT = Path(__file__).parent.parent
COOKBOOK = (ROOT / "docs" / "cookbook.md").read_text()
TASKS = dict(re.findall(r"^## (\d+)\. .*?\n(.*?)(?=^## |\Z)", COOKBOOK, re.DOTALL | re.MULTILINE))
MADE = {
    "1": ["removed.png", "one.png"],
    "2": ["circle.safetensors", "later/3.png", "mixed.safetensors"],
    "3": ["walk/0.png", "walk/4.png"],
    "4": ["swapped.png", "early.png"],
    "5": ["weighed.png", "plain.png"],
    "6": ["windows.png"],
    "7": ["encoders.png"],
    "8": ["many/results.jsonl"],
    "9": ["from_picture.png"],
    "10": [],
}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, family in (("shapes", "sd1"), ("sdxl-folder", "sdxl")):
        tiny_pipeline(family).save_pretrained(folder / name)
        (folder / name / "t2iedit.json").write_text('{"steps": 2, "guidance_scale": 3.0}')
    return folder


@pytest.fixture
def workplace(models, tmp_path, monkeypatch):
    """An empty folder in which "shapes" and "sdxl-folder" are tiny models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(opening.BUNDLED, "shapes", models / "shapes")
    (tmp_path / "sdxl-folder").symlink_to(models / "sdxl-folder")
    return tmp_path


def test_there_are_ten_tasks():
    assert list(TASKS) == list(MADE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", MADE)
def test_task_runs_as_it_stands(workplace, number):
    for language, block in re.findall(r"```(\w*)\n(.*?)```", TASKS[number], re.DOTALL):
        if language == "python":
            exec(compile(block, f"cookbook {number}", "exec"), {"__name__": "cookbook"})
        else:
            for line in block.strip().splitlines():
                program, *arguments = shlex.split(line)
                assert program == "t2iedit" and t2iedit.cli.main(arguments) == 0, line
    assert all((workplace / name).exists() for name in MADE[number])
    if number == "8":
        records = (workplace / "many" / "results.jsonl").read_text().splitlines()
        assert len(records) == 9 and not any("error" in json.loads(record) for record in records)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["walk", "plain_diffusers"])
def test_example_runs(workplace, monkeypatch, name):
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert any(workplace.glob("*.gif")) or (workplace / "edited.png").exists()


@pytest.mark.slow
def test_example_of_many_runs_in_a_process_of_its_own(workplace, models, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["many.py", str(models / "shapes")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "examples" / "many.py"), run_name="__main__")
    assert stop.value.code == 0 and len(list((workplace / "many").glob("*.png"))) == 4


def test_reference_is_what_the_docstrings_say():
    module = runpy.run_path(str(ROOT / "docs" / "reference.py"))
    written = (ROOT / "docs" / "reference.md").read_text()
    assert written == module["page"](), "run python docs/reference.py"
    assert all(f"## {name}\n" in written for name in t2iedit.__all__)


@pytest.mark.parametrize("name", ["cookbook", "migrating", "scaling", "reference"])
def test_documents_are_found_from_the_readme(name):
    assert f"docs/{name}.md" in (ROOT / "README.md").read_text()
