"""The page's tabs in their order, each a module with `NAME` and `Tab`, and which of them are offered."""

import importlib
from types import ModuleType

from t2iedit.plugins import installed

TABS = {
    "pictures": None,
    "inspecting": None,
    "sweeping": None,
    "learning": "core",
    "quantising": "mixdq",
}
"""The edit without whose plugin a tab is not there. Its module, which imports that plugin, is not imported then."""


def offered() -> list[ModuleType]:
    """The modules of the tabs that what is installed can serve."""
    there = installed().edits
    return [
        importlib.import_module(name) for name, needs in TABS.items() if needs in (None, *there)
    ]
