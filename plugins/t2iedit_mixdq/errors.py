"""What a user of this plugin can put right."""

import textwrap

from t2iedit import UserError


def said(error: BaseException) -> str:
    """What a library's error says, on one line and not without end."""
    return textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__


class RecipeNotUsable(UserError):
    """A recipe that cannot be read, or that is for another architecture."""


class BudgetNotReachable(UserError):
    """A mean number of bits that no allocation of the allowed widths has."""


class QuantisedModelNotUsable(UserError):
    """A folder of packed weights that is incomplete, damaged or not for this version."""
