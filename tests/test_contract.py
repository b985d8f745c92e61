"""Every registered edit passes the conformance test, so a plugin is tested by existing."""

from pathlib import Path

import pytest

from t2iedit.plugins import installed
from t2iedit.testing import check_edit

NEED_FILES = {"core": "plugins/test_context.py"}
"""Edits whose options name files, and the tests that make these and check the contract with them."""


@pytest.mark.parametrize("name", sorted(installed().edits.keys() - NEED_FILES))
def test_registered_edit_keeps_the_contract(name):
    check_edit(installed().edits[name])


@pytest.mark.parametrize("name", sorted(NEED_FILES))
def test_edit_that_needs_files_is_checked_with_them(name):
    assert "check_edit(" in (Path(__file__).parent / NEED_FILES[name]).read_text()
