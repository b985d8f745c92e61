"""Reports in words."""

from t2iedit import Request, generate
from t2iedit.plugins import installed
from t2iedit.reporting import sentences
from t2iedit.testing import tiny_model

PROMPT = "a red cat and a blue dog"


def told(family, *edits):
    chosen = [installed().edit(name)(**options) for name, options in edits]
    result = generate(tiny_model(family), Request(PROMPT, steps=1, edits=chosen))
    return sentences(result.report), result.report["edits"]


def test_decor_says_how_much_it_removed_along_how_many_directions():
    (said,), (facts,) = told("sd1", ("decor", {"undesired": ["fog"], "rank": 1}))
    share = round(100 * facts["energy removed (clip)"])
    change = round(100 * facts["change"]["clip"])
    assert said == (
        f"decor removed {share} % of the energy along 1 direction; changed the prompt's embedding by {change} %"
    )


def test_decor_tells_its_encoders_apart():
    (said,), _ = told("sdxl", ("decor", {"undesired": ["fog"], "rank": 2}))
    assert "along 1 direction (clip_l) and" in said and "1 direction (clip_g);" in said


def test_decor_that_does_nothing_says_that():
    (said,), _ = told("sd1", ("decor", {"undesired": ["fog"], "alpha": 0.0}))
    assert said == "decor changed the prompt's embedding by 0 %"


def test_edits_are_told_in_their_order():
    options = {"concepts": ["red cat", "dog"], "suppression": 1.0, "smallest_map": 1}
    said, _ = told("sd1", ("t2i_zero", options), ("mixdq", {"weights": 4}))
    assert (
        said[0].startswith("t2i_zero kept apart red cat and dog; changed")
        and "attention" in said[0]
    )
    assert said[1].startswith("mixdq was simulated")


def test_an_edit_that_recorded_nothing_and_one_that_nobody_knows():
    report = {"edits": [{"name": "swap"}, {"name": "gone", "change": {"clip": 0.5}}]}
    assert sentences(report) == [
        "swap has nothing to report",
        "gone changed the prompt's embedding by 50 %",
    ]
