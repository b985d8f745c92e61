"""Requests that show in a moment what an edit does; those whose edits are not installed are left out."""

from hosting import Host

from t2iedit import Request, UserError
from t2iedit.plugins import installed

SCENE = "a red circle and a blue square on a white background"
EXAMPLES = (
    ("No edit", SCENE, []),
    ("Remove the red circle", SCENE, [("decor", {"undesired": ["a red circle"]})]),
    ("Remove it half", SCENE, [("decor", {"undesired": ["a red circle"], "alpha": 0.5})]),
    ("Keep two things apart", SCENE, [("t2i_zero", {"concepts": ["red circle", "blue square"]})]),
)


def examples(host: Host) -> list[tuple[str, Request]]:
    """By the name on their button."""
    found = []
    for name, prompt, edits in EXAMPLES:
        if all(edit in installed().edits for edit, _ in edits):
            data = [{"name": edit, "options": options} for edit, options in edits]
            try:
                found.append((name, host.admitted({"prompt": prompt, "seed": 3, "edits": data})))
            except UserError:
                continue
    return found
