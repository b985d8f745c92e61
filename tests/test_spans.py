"""Phrases as character ranges."""

import pytest

from t2iedit.errors import SpanNotFound
from t2iedit.spans import Span, locate, numbered, occurrences


def test_locate_ignores_case_and_runs_of_spaces():
    assert locate("A  Red   CAT sat", "red cat") == Span(3, 12)


def test_red_is_not_found_inside_redwood_nor_at_the_end_of_tired():
    assert locate("a redwood and a red cat", "red") == Span(16, 19)
    assert locate("a tired, bored and red cat", "red") == Span(19, 22)
    for text in ("a redwood", "a tired cat"):
        with pytest.raises(SpanNotFound):
            locate(text, "red")


def test_number_names_the_occurrence():
    text = "a cat, a cat and a cat"
    assert locate(text, "cat#3") == Span(19, 22)
    assert locate(text, "cat", 1) == Span(9, 12)


def test_missing_phrase_names_the_prompt():
    with pytest.raises(SpanNotFound, match='"red cat" is not in the prompt "a dog"'):
        locate("a dog", "red cat")


@pytest.mark.parametrize(
    ("phrase", "times"), [("cat#2", "only once"), ("dog#3", "only 2 times"), ("", "not")]
)
def test_missing_occurrence_says_how_many_there_are(phrase, times):
    with pytest.raises(SpanNotFound, match=times):
        locate("a cat, a dog and a dog", phrase)


def test_phrase_without_word_characters_is_found_as_it_stands():
    assert occurrences("a <dog-1>!", "<dog-1>") == [Span(2, 9)]


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("cat", ("cat", None)), ("cat#2", ("cat", 1)), ("cat #2", ("cat", 1)), ("c#0", ("c#0", None))],
)
def test_numbered_splits_off_the_number(phrase, expected):
    assert numbered(phrase) == expected
