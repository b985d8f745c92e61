"""Which concepts a prompt names, by the simplest honest rule."""

import re

JOINS = (
    "and", "with", "next to", "beside", "left of", "right of", "to the left of", "to the right of",
    "above", "below", "over", "under", "behind", "in front of", "near",
)  # fmt: skip
SETTINGS = "on|in|at|of|to|from|by|inside|against|during"
ARTICLES = r"(?:(?:a|an|the|some|one|two|three)\b\s*)*"
PICTURES = r"(?:(?:photo|picture|image|painting|drawing|portrait)\s+of\s+)?"

_join = re.compile(
    r"\s*[,;&]\s*|\s+(?:" + "|".join(sorted(JOINS, key=len, reverse=True)) + r")\s+", re.IGNORECASE
)
_setting = re.compile(rf"\s+(?:{SETTINGS})\s.*", re.IGNORECASE | re.DOTALL)
_opening = re.compile(rf"^(?:and\s+)?{ARTICLES}{PICTURES}{ARTICLES}", re.IGNORECASE)


def found_concepts(prompt: str) -> list[str]:
    """The things that "A and B" prompts join, each without its article: "a red cat and a dog" has "red cat" and "dog".

    What a preposition leads on to is the setting ("on a white background") and not counted. There is no grammar in it:
    parsers of English weigh more than all of t2iedit. Whoever wants others names them.
    """
    parts = (_opening.sub("", part.strip()) for part in _join.split(prompt))
    cleaned = (_setting.sub("", part).strip(" .!?:\"'") for part in parts)
    return list(dict.fromkeys(part for part in cleaned if part))
