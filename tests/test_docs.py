"""The documents say what the code does."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from t2iedit import hookspecs
from t2iedit.cli import COMMANDS
from t2iedit.edit import STAGES
from t2iedit.plugins import installed

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "docs" / "writing-a-plugin.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
README = (ROOT / "README.md").read_text()
FILES = ("pyproject.toml", "t2iedit_hello.py", "test_hello.py")


def block_after(name):
    """The code block that the guide gives for a file."""
    return re.search(rf"`{re.escape(name)}` .*?```\w+\n(.*?)```", GUIDE, re.DOTALL)[1]


@pytest.mark.parametrize("name", FILES)
def test_guide_shows_the_template_as_it_is(name):
    assert block_after(name) == (ROOT / "plugins" / "template" / name).read_text()


def test_guide_leads_from_an_empty_folder_to_a_working_edit(tmp_path):
    project, site = tmp_path / "project", tmp_path / "site"
    project.mkdir()
    for name in FILES:
        (project / name).write_text(block_after(name))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", site, project], check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": str(site)}

    def command(*arguments):
        made = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, made.stderr
        return made.stdout

    assert re.search(
        r"hello +t2iedit-hello 0\.1\.0 +hello", command("-m", "t2iedit", "plugins", "--strict")
    )
    assert "The factor; 1 changes nothing." in command("-m", "t2iedit", "edits", "hello")
    shutil.copy(project / "test_hello.py", tmp_path)
    assert "1 passed" in command("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_hello.py")


def test_architecture_names_every_hook_with_its_arguments():
    for name, hook in vars(hookspecs).items():
        if hasattr(hook, "t2iedit_spec"):
            arguments = ", ".join(inspect.signature(hook).parameters)
            assert f"`{name}({arguments})`" in ARCHITECTURE


def test_documents_name_every_stage():
    for stage in STAGES:
        assert f"`{stage}`" in ARCHITECTURE
        assert f"`{stage}(" in GUIDE


def test_readme_names_every_command_and_edit():
    for name in [*COMMANDS, *installed().edits]:
        assert name in README


@pytest.mark.parametrize("name", ["core", "decor", "mixdq", "t2i_zero"])
def test_plugins_readme_names_every_option(name):
    edit = installed().edit(name)
    text = (Path(inspect.getfile(edit)).parent / "README.md").read_text()
    for option in edit.Options.model_fields:
        assert f"`{option}`" in text


def test_readme_gives_the_test_command_that_ci_calls():
    assert "make test" in README and "make image" in README
    assert "make test" in (ROOT / ".ci" / "run").read_text()
