"""The demo in a process of its own, with a plugin more that breaks, and a browser to visit it with."""

import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio")
ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "demos"))
sys.path.insert(0, str(ROOT / "benchmarks"))

from demo import served, tiny_model  # noqa: E402

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 60_000
"""Milliseconds that a busy machine is given."""
BREAKING = '''
import t2iedit
from pydantic import Field
from t2iedit.plugins import installed

class Breaking(t2iedit.Edit):
    """Break as soon as it is asked to do anything."""

    name = "breaking"

    class Options(t2iedit.Options):
        loud: bool = Field(False, description="Whether it breaks with a bang.")

    def edit_embedding(self, embedding, run):
        raise KeyError("/home/host/secret.txt")

installed().edits["breaking"] = Breaking
'''
WAITING = 24


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def listed(tmp_path_factory):
    """The host's folder of files on offer, with one that is none."""
    folder = tmp_path_factory.mktemp("listed")
    (folder / "notes.txt").write_text("the host's own")
    return folder


@pytest.fixture(scope="session")
def url(folder, listed):
    flags = ["-m", str(folder), "--files", str(listed), "--max-waiting", str(WAITING)]
    with served(*flags, code=BREAKING, OMP_NUM_THREADS="1") as url:
        yield url


# Of one module, since Playwright's event loop runs as long as it does.
@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visitor(browser, url):
    """Opens pages of visitors of their own, each watched for errors of its scripts."""
    contexts, errors = [], []

    def visit(**settings):
        context = browser.new_context(
            **({"accept_downloads": True, "viewport": {"width": 1280, "height": 1400}} | settings)
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.locator("#generate").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture
def page(visitor):
    return visitor()
