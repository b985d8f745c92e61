"""What a user of this plugin can put right."""

from t2iedit import UserError


class RecipeNotUsable(UserError):
    """A recipe that cannot be read, or that is for another architecture."""


class BudgetNotReachable(UserError):
    """A mean number of bits that no allocation of the allowed widths has."""


class QuantisedModelNotUsable(UserError):
    """A folder of packed weights that is incomplete, damaged or not for this version."""
