"""Imports point downward, and plugins import the public API alone."""

import ast
from pathlib import Path

import pytest

import t2iedit

ROOT = Path(__file__).parent.parent
LAYERS = [
    "errors",
    "spans",
    "digests",
    "blending",
    "wording",
    "text",
    "weighting",
    "compel_reading",
    "joining",
    "conditioning",
    "clock",
    "attention",
    "model",
    "lora",
    "hookspecs",
    "families",
    "controls",
    "edit",
    "swap",
    "provenance",
    "conditioning_files",
    "plugins",
    "reporting",
    "request",
    "encoding",
    "schedulers",
    "steps",
    "pipeline",
    "modular",
    "folders",
    "opening",
    "tiny",
    "testing",
    "plots",
    "inspection",
    "charts",
    "sweeps",
    "repeating",
    "request_files",
    "painters",
    "batch",
    "workers",
    "ray_engine",
    "prompts",
    "layouts",
    "cli",
]


def imports(path):
    """The modules and names that a file imports at its top level, as dotted text."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", [layer for layer in LAYERS if layer != "cli"])
def test_imports_point_downward(name):
    below = LAYERS[: LAYERS.index(name)]
    for imported in imports(ROOT / "t2iedit" / f"{name}.py"):
        if imported.startswith("t2iedit."):
            part = imported.split(".")[1]
            assert part in below, f"{name} imports {part}, which is above it"


def test_every_core_module_has_its_layer():
    modules = {path.stem for path in (ROOT / "t2iedit").glob("*.py") if path.stem[0] != "_"}
    assert modules == set(LAYERS) - {"cli"}


@pytest.mark.parametrize("path", sorted((ROOT / "plugins").rglob("*.py")), ids=lambda p: p.name)
def test_plugins_import_the_public_api_only(path):
    allowed = {f"t2iedit.{name}" for name in t2iedit.__all__} | {
        "t2iedit",
        "t2iedit.testing.check_edit",
    }
    used = {name for name in imports(path) if name.split(".")[0] == "t2iedit"}
    assert used <= allowed
