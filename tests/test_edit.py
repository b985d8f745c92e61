"""Options, stages and what a run tells its edits."""

import pytest
from pydantic import Field

import t2iedit
from t2iedit.errors import EditNotSupported, InvalidOptions, PluginError, UnknownEdit
from t2iedit.plugins import installed

Decor = installed().edit("decor")
Zero = installed().edit("t2i_zero")


def run(model, prompt="a red cat", **values):
    return t2iedit.start(model, t2iedit.Request(prompt, steps=2, **values))


def test_misspelt_stage_is_refused_when_defined():
    with pytest.raises(PluginError, match=r"Wrong defines \['edit_embeddings'\]; the stages"):

        class Wrong(t2iedit.Edit):
            name = "wrong"

            def edit_embeddings(self, embedding, run):
                return embedding


def test_stages_are_those_overridden():
    assert Decor.stages == ("edit_embedding",)
    assert t2iedit.Edit.stages == ()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "decor: nothing is undesired"),
        ({"undesired": ["fog"], "alfa": 1}, 'decor has no option "alfa"; its options are'),
        ({"undesired": ["fog"], "self": 1}, 'decor has no option "self"'),
        ({"undesired": ["fog"], "": 1}, 'decor has no option ""'),
        ({"undesired": ["fog"], "alpha": 2}, "decor cannot take alpha=2: input should be less"),
        ({"undesired": ["fog"], "alpha": float("nan")}, "decor cannot take alpha=nan"),
        ({"undesired": ["fog"], "alpha": "much"}, "decor cannot take alpha='much'"),
        ({"undesired": ["fog"], "rank": 0}, "decor cannot take rank=0"),
        ({"undesired": [" "]}, "an undesired prompt must not be empty"),
        ({"undesired": ["fog"], "start": 0.5, "stop": 0.5}, "start=0.5 must be less than stop"),
    ],
)
def test_bad_options_give_one_sentence(options, sentence):
    with pytest.raises(InvalidOptions, match=sentence) as caught:
        Decor(**options)
    assert "\n" not in str(caught.value)


def test_a_missing_option_is_named():
    with pytest.raises(InvalidOptions, match='needy needs the option "words": What it needs'):
        Needy()


class Needy(t2iedit.Edit):
    name = "needy"

    class Options(t2iedit.Options):
        words: str = Field(description="What it needs.")


def test_options_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        Decor(undesired=["fog"]).options.alpha = 0.5


def test_unknown_edit_is_refused_with_the_nearest_name():
    with pytest.raises(
        UnknownEdit, match='no installed plugin has the edit "dekor"; did you mean "decor"'
    ):
        installed().edit("dekor")


def test_equal_options_make_equal_edits():
    assert Decor(undesired=["fog"]) == Decor(undesired=["fog"], alpha=1)
    assert Decor(undesired=["fog"]) != Decor(undesired=["fog"], alpha=0.5)
    assert len({Decor(undesired=["fog"]), Decor(undesired=["fog"])}) == 1


def test_repeated_phrase_takes_the_first_and_says_so(sd1):
    request = t2iedit.Request("a cat and a cat", steps=1, edits=[Zero(concepts=["cat"])])
    warnings = t2iedit.generate(sd1, request).report["warnings"]
    assert len(warnings) == 1 and '"cat" stands 2 times' in warnings[0] and "cat#2" in warnings[0]


def test_numbered_phrase_is_taken_silently(sd1):
    request = t2iedit.Request("a cat and a cat", steps=1, edits=[Zero(concepts=["cat#2"])])
    assert t2iedit.generate(sd1, request).report["warnings"] == []


def test_phrase_missing_from_the_prompt_stops_the_run(sd1):
    with pytest.raises(t2iedit.UserError, match='"dog" is not in the prompt "a red cat"'):
        run(sd1, edits=[Zero(concepts=["dog"])])


def test_truncated_prompt_warns_and_an_edit_on_lost_words_fails(sd1):
    long = "a " * 80 + "cat"
    report = t2iedit.generate(sd1, t2iedit.Request(long, steps=1)).report
    assert any('these words are lost: "a' in warning for warning in report["warnings"])
    with pytest.raises(t2iedit.UserError, match="lies beyond the 77 tokens"):
        run(sd1, long, edits=[Zero(concepts=["cat"])])


def test_patching_edit_refuses_a_window(sd1):
    class Patch(t2iedit.Edit):
        name = "patch"

        def patch_model(self, model):
            return None

    with pytest.raises(EditNotSupported, match="patch changes the model itself"):
        run(sd1, edits=[Patch(start=0.5)])


def test_report_says_how_much_each_edit_changed(sdxl):
    request = t2iedit.Request(
        "a red cat", steps=1, edits=[Decor(undesired=["cat"]), Decor(undesired=["fog"], alpha=0)]
    )
    first, second = t2iedit.generate(sdxl, request).report["edits"]
    assert set(first["change"]) == {"clip_l", "clip_g"} and min(first["change"].values()) > 0
    assert set(second["change"].values()) == {0.0}


class Marker(t2iedit.Edit):
    """Adds to the first word's row, so that order shows."""

    name = "marker"

    class Options(t2iedit.Options):
        factor: float = 1.0
        plus: float = 0.0

    def edit_embedding(self, embedding, run):
        hidden = embedding.hidden.clone()
        hidden[1] = hidden[1] * self.options.factor + self.options.plus
        return embedding.with_hidden(hidden)


def test_edits_run_in_the_users_order(sd1):
    def row(*edits):
        return t2iedit.condition([run(sd1, edits=edits)])[0].prompt[0].hidden[1]

    plain, double, add = row(), Marker(factor=2), Marker(plus=1)
    assert (row(double, add) - (2 * plain + 1)).abs().max() < 1e-6
    assert (row(add, double) - (2 * (plain + 1))).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (lambda hidden: hidden[:3], "returned"),
        (lambda hidden: hidden.double(), "returned"),
        (lambda hidden: hidden + 1, "changed the BOS row"),
        (lambda hidden: 1 / 0, "failed with ZeroDivisionError"),
    ],
)
def test_edit_that_breaks_its_contract_is_named(sd1, result, sentence):
    class Bad(t2iedit.Edit):
        name = "bad"

        def edit_embedding(self, embedding, run):
            return embedding.with_hidden(result(embedding.hidden))

    with pytest.raises(PluginError, match=f'the edit "bad" {sentence}'):
        t2iedit.condition([run(sd1, edits=[Bad()])])


def test_prompt_of_a_run_is_its_own_again_after_an_edit_failed(sdxl):
    class Fails(t2iedit.Edit):
        name = "fails"

        def edit_embedding(self, embedding, run):
            assert (
                run.prompt == {"clip_l": "a red cat", "clip_g": "a dog"}[embedding.tokens.encoder]
            )
            if embedding.tokens.encoder == "clip_g":
                raise RuntimeError("stop")
            return embedding

    begun = run(sdxl, prompts={"clip_g": "a dog"}, edits=[Fails()])
    with pytest.raises(PluginError, match="stop"):
        t2iedit.condition([begun])
    assert begun.prompt == "a red cat"


def test_negative_side_is_edited_only_by_edits_that_ask_for_it(sd1):
    class Both(Marker):
        name = "both"
        negative = True

    def negative(edit):
        (conditioning,) = t2iedit.condition([run(sd1, negative="a dog", edits=[edit])])
        return conditioning.negative[0].hidden

    one_sided, both = negative(Marker(plus=1)), negative(Both(plus=1))
    assert (both[1] - one_sided[1] - 1).abs().max() < 1e-6
