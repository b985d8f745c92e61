"""The public names are sorted, complete and what `t2iedit` really has."""

import ast
import subprocess
import sys
from pathlib import Path

import t2iedit


def test_all_is_sorted_and_every_name_exists():
    assert t2iedit.__all__ == sorted(t2iedit.__all__)
    assert all(getattr(t2iedit, name) is not None for name in t2iedit.__all__)


def test_names_for_type_checkers_are_those_of_all():
    tree = ast.parse(Path(t2iedit.__file__).read_text())
    seen = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen - {None} == set(t2iedit.__all__)


def test_unknown_name_is_an_attribute_error():
    try:
        t2iedit.nonsense  # noqa: B018
    except AttributeError as error:
        assert "nonsense" in str(error)
    else:
        raise AssertionError


def test_importing_t2iedit_imports_no_torch():
    probe = "import sys, t2iedit; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
