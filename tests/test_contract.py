"""Every registered edit passes the conformance test, so a plugin is tested by existing."""

import pytest

from t2iedit.plugins import installed
from t2iedit.testing import check_edit


@pytest.mark.parametrize("name", sorted(installed().edits))
def test_registered_edit_keeps_the_contract(name):
    check_edit(installed().edits[name])
