"""The built-in edit `swap`: other words from one moment on."""

import pytest
import torch

import t2iedit
from t2iedit.errors import EditNotSupported, SpanNotFound
from t2iedit.plugins import installed

Swap, Decor = installed().edit("swap"), installed().edit("decor")
PROMPT = "a red cat and a blue dog"


def held(model, *edits, **values):
    return t2iedit.encode(model, PROMPT, edits=edits, **values)


def assert_close(first, second):
    for a, b in zip(first.prompt, second.prompt, strict=True):
        assert torch.allclose(a.hidden, b.hidden, atol=1e-5)
        assert a.pooled is None or torch.allclose(a.pooled, b.pooled, atol=1e-5)


def test_swap_says_the_other_sentence_from_its_start_on(model):
    swapped = held(model, Swap(phrase="red cat", to="car in the fog", start=0.5))
    other = t2iedit.encode(model, "a car in the fog and a blue dog")
    assert_close(swapped.at(0.2), held(model))
    assert_close(swapped.at(0.5), other)


def test_later_edits_name_phrases_as_they_were_typed(model):
    swapped = held(model, Swap(phrase="red cat", to="photo of a car")).prompt
    for embedding in swapped:
        tokens = embedding.tokens
        assert tokens.text == PROMPT
        named = tokens.indices(t2iedit.locate(PROMPT, "red cat"))
        other = model.encoder(tokens.encoder).tokenize("a photo of a car and a blue dog")
        assert named == other.indices(t2iedit.locate(other.text, "photo of a car"))
        dog = tokens.indices(t2iedit.locate(PROMPT, "dog"))
        assert dog == other.indices(t2iedit.locate(other.text, "dog"))
    zero = installed().edit("t2i_zero")(concepts=["red cat"])
    edited = held(model, Swap(phrase="red cat", to="photo of a car"), zero).prompt
    assert not torch.equal(edited[0].hidden, swapped[0].hidden)


def test_two_swaps_make_one_sentence(model):
    edits = Swap(phrase="blue dog", to="fog"), Swap(phrase="red cat", to="car")
    assert_close(held(model, *edits), t2iedit.encode(model, "a car and a fog"))
    one_after_the_other = held(
        model, Swap(phrase="red", to="blue", stop=0.5), Swap(phrase="cat", to="dog", start=0.5)
    )
    assert_close(one_after_the_other.at(0.0), t2iedit.encode(model, "a blue cat and a blue dog"))
    assert_close(one_after_the_other.at(0.5), t2iedit.encode(model, "a red dog and a blue dog"))


def test_swap_keeps_the_weight_of_the_phrase(sd1):
    weighted = "a (red cat:1.4) and a blue dog"
    swapped = t2iedit.encode(
        sd1,
        weighted,
        syntax="a1111",
        weights="a1111_no_norm",
        edits=[Swap(phrase="red cat", to="car")],
    )
    expected = t2iedit.encode(
        sd1, "a (car:1.4) and a blue dog", syntax="a1111", weights="a1111_no_norm"
    )
    assert_close(swapped, expected)


def test_what_swap_would_lose_is_refused(sd1):
    with pytest.raises(EditNotSupported, match="decor would be lost; put swap first"):
        held(sd1, Decor(undesired=["fog"]), Swap(phrase="red cat", to="car"))
    with pytest.raises(EditNotSupported, match="two swaps act at once"):
        held(sd1, Swap(phrase="red", to="a", stop=0.5), Swap(phrase="cat", to="dog", start=0.25))
    with pytest.raises(EditNotSupported, match="give it when encoding"):
        t2iedit.generate(
            sd1, t2iedit.Request(edits=[Swap(phrase="red cat", to="car")]), conditioning=held(sd1)
        )
    with pytest.raises(SpanNotFound, match='"car" is not in the prompt'):
        held(sd1, Swap(phrase="car", to="cat"))
