"""What clicks on a prompt's words make of its phrases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from word_picker import listed, state
from words import held, phrase_of, picked, words

from t2iedit import locate

PROMPT = "a red cat, and a red dog on <my-toy>'s snow"


def number(word, times=1):
    found = [n for n, span in enumerate(words(PROMPT)) if PROMPT[span.start : span.end] == word]
    return found[times - 1]


def test_words_are_words_and_placeholders():
    assert [PROMPT[s.start : s.end] for s in words(PROMPT)] == [
        "a", "red", "cat", "and", "a", "red", "dog", "on", "<my-toy>", "s", "snow",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "word", "after"),
    [
        ([], number("cat"), ["cat"]),
        (["cat"], number("red"), ["red cat"]),
        (["red cat"], number("cat"), ["red"]),
        (["red cat"], number("red", 2), ["red cat", "red#2"]),
        (["red#2"], number("dog"), ["red dog"]),
        (["cat"], number("and"), ["cat", "and"]),
        (["a red dog"], number("red", 2), ["a#2", "dog"]),
        (["a#2", "dog"], number("red", 2), ["a red dog"]),
        (["cat"], number("cat"), []),
        (["snow", "fog"], number("snow"), ["fog"]),
        ([], number("<my-toy>"), ["<my-toy>"]),
    ],
)
def test_a_click(before, word, after):
    assert picked(PROMPT, before, word) == after


def test_a_click_where_only_one_phrase_may_be():
    assert picked(PROMPT, ["cat"], number("dog"), many=False) == ["dog"]
    assert picked(PROMPT, ["cat"], number("red"), many=False) == ["red cat"]
    assert picked(PROMPT, ["a red dog"], number("red", 2), many=False) == ["a#2"]


def test_the_picker_marks_words_and_knows_phrases_that_are_gone():
    shown = state("a red cat", ["red cat", "fog"])
    assert shown["chips"] == [["a", False], ["red", True], ["cat", True]]
    assert shown["lost"] == ["fog"] and shown["value"] == ["red cat", "fog"]


def test_what_a_browser_sends_is_a_list_of_texts_or_nothing():
    assert listed("cat") == ["cat"] and listed(None) == [] == listed("")
    assert listed(["cat", 3, None, {"a": 1}]) == ["cat"]


@given(st.lists(st.integers(0, 10), max_size=12), st.booleans())
def test_any_clicks_make_phrases_that_stand_in_the_prompt_and_share_no_word(clicks, many):
    chosen = []
    for click in clicks:
        before = set().union(*(held(PROMPT, phrase) for phrase in chosen))
        chosen = picked(PROMPT, chosen, click, many=many)
        after = [held(PROMPT, phrase) for phrase in chosen]
        assert all(locate(PROMPT, phrase) for phrase in chosen)
        assert sum(map(len, after)) == len({word for run in after for word in run})
        assert (click in before) != (click in {word for run in after for word in run})
        assert many or len(chosen) <= 1


@given(st.integers(0, 10), st.integers(0, 10))
def test_a_phrase_covers_the_words_it_was_made_of(first, last):
    run = list(range(min(first, last), max(first, last) + 1))
    if any("," in PROMPT[s.end : s.end + 1] for s in (words(PROMPT)[n] for n in run[:-1])):
        return
    assert held(PROMPT, phrase_of(PROMPT, run)) == run
