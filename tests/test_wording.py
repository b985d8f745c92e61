"""Wordings: what encoders read in place of what was typed, and the way back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import t2iedit
from t2iedit import Span, Wording, locate, occurrences
from t2iedit.errors import PluginError

PROMPT = "a red cat and a <toy>, a blue dog"


def put(text, phrase, words):
    wording = Wording.of(text)
    for span in reversed(occurrences(text, phrase)):
        wording = wording.replaced(span, words)
    return wording


class Stand(t2iedit.Edit):
    """Puts two dogs where a toy was typed."""

    name = "stand"

    def edit_prompt(self, prompt, run):
        for span in reversed(occurrences(prompt.text, "<toy>")):
            prompt = prompt.replaced(span, "dog dog")
        return prompt


class StandEverywhere(Stand):
    negative = True


def test_untouched_wording_maps_each_character_to_itself():
    wording = Wording.of("a cat")
    assert wording.text == wording.typed == "a cat"
    assert wording.origin(2, 5) == (2, 5)


def test_replaced_words_stand_for_what_was_typed():
    wording = put(PROMPT, "<toy>", "dog dog")
    assert wording.text == "a red cat and a dog dog , a blue dog"
    assert wording.typed == PROMPT
    toy = PROMPT.index("<toy>")
    first = wording.text.index("dog")
    assert wording.origin(first, first + 3) == (toy, toy + 5)
    assert wording.origin(first + 4, first + 7) == (toy, toy + 5)
    last = wording.text.rindex("dog")
    assert PROMPT[slice(*wording.origin(last, last + 3))] == "dog"


def test_words_are_kept_apart_from_their_neighbours():
    assert put("(<toy>)s", "<toy>", "dog").text == "( dog )s"
    assert Wording.of("x<toy>s").replaced(Span(1, 6), "dog").text == "x dog s"


def test_words_can_be_put_in_where_nothing_stood():
    wording = Wording.of("a cat").replaced(Span(0, 0), "so")
    assert wording.text == "so a cat" and wording.origin(0, 2) == (0, 0)


@given(st.text(alphabet="ab <>", max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_every_character_has_an_origin_and_the_rest_keeps_its_own(text, a, b):
    start, end = sorted((min(a, len(text)), min(b, len(text))))
    wording = Wording.of(text).replaced(Span(start, end), "new")
    assert len(wording.origins) == len(wording.text)
    kept = [o for o in wording.origins if o.end - o.start == 1 and not start <= o.start < end]
    assert "".join(text[o.start : o.end] for o in kept) == text[:start] + text[end:]


def test_tokens_of_a_wording_refer_to_what_was_typed(model):
    for encoder in model.encoders:
        tokens = encoder.tokenize(put(PROMPT, "<toy>", "dog dog"))
        assert tokens.text == PROMPT
        dogs = tokens.indices(locate(PROMPT, "<toy>"))
        assert [tokens.offsets[i] for i in dogs] == [(16, 21)] * 2
        (last,) = tokens.indices(locate(PROMPT, "dog"))
        assert last == max(tokens.words)
        assert set(tokens.ids[dogs].tolist()) == {int(tokens.ids[last])}
        assert tokens.indices(locate(PROMPT, "blue"))[0] == last - 1


def conditioned(model, *edits, prompt=PROMPT, **values):
    request = t2iedit.Request(prompt, steps=2, edits=edits, **values)
    return t2iedit.condition([t2iedit.start(model, request)])[0]


def test_prompt_stage_is_read_by_the_encoders(model):
    reworded = conditioned(model, Stand()).prompt
    plain = conditioned(model, prompt="a red cat and a dog dog, a blue dog").prompt
    for one, other in zip(reworded, plain, strict=True):
        assert torch.equal(one.hidden, other.hidden)
        assert one.tokens.text == PROMPT


def test_negative_prompt_is_reworded_only_for_edits_that_ask_for_it(sd1):
    def negative(edit):
        return conditioned(sd1, edit, negative="<toy>").negative[0].hidden

    plain = conditioned(sd1, negative="<toy>").negative[0].hidden
    dogs = conditioned(sd1, negative="dog dog").negative[0].hidden
    assert torch.equal(negative(Stand()), plain)
    assert torch.equal(negative(StandEverywhere()), dogs)


def test_wording_is_the_same_outside_the_edits_window(sd1):
    windowed = conditioned(sd1, Stand(start=0.5))
    for fraction in (0.0, 0.9):
        whole = conditioned(sd1, Stand()).prompt[0].hidden
        assert torch.equal(windowed.at(fraction).prompt[0].hidden, whole)


def test_other_edits_find_the_placeholder_as_a_phrase(sd1):
    class Look(t2iedit.Edit):
        name = "look"

        def edit_embedding(self, embedding, run):
            run.record(self, rows=embedding.tokens.indices(run.span("<toy>")))
            return embedding

    look = Look()
    run = t2iedit.start(sd1, t2iedit.Request(PROMPT, steps=2, edits=[Stand(), look]))
    t2iedit.condition([run])
    assert run.report["edits"][1]["rows"] == [6, 7]


def test_edit_that_returns_another_prompts_wording_is_blamed(sd1):
    class Forger(t2iedit.Edit):
        name = "forger"

        def edit_prompt(self, prompt, run):
            return Wording.of("another")

    with pytest.raises(PluginError, match='"forger" returned no wording'):
        conditioned(sd1, Forger())


def test_token_embeds_stage_reaches_the_negative_prompt_of_edits_that_ask_for_it(sd1):
    class Dim(t2iedit.Edit):
        name = "dim"

        def edit_token_embeds(self, embeds, tokens, run):
            return embeds * 0.5

    class DimBoth(Dim):
        negative = True

    plain, one, both = (
        conditioned(sd1, *edits, negative="fog").negative[0].hidden
        for edits in ((), (Dim(),), (DimBoth(),))
    )
    assert torch.equal(plain, one)
    assert not torch.equal(plain, both)
