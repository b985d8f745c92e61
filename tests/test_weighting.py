"""Weights, windows, BREAK, texts of their own for encoders, and what compel makes of them."""

import importlib.util

import numpy as np
import pytest
import torch

import t2iedit
from t2iedit.errors import EditNotSupported, InvalidRequest, SpanNotFound
from t2iedit.plugins import installed
from t2iedit.testing import tiny_model
from t2iedit.text import Kind
from t2iedit.weighting import parse

Decor = installed().edit("decor")
PROMPT = "a red cat and a blue dog"
LONG = " ".join(["a red cat and a blue dog"] * 20)
needs_compel = pytest.mark.skipif(
    importlib.util.find_spec("compel") is None, reason="compel is an extra"
)


def encoded(model, prompt, **values):
    return t2iedit.encode(model, prompt, **values).prompt


def parts(text):
    script = parse(text, "a1111")
    found = [(script.text[a:b].strip(), round(w, 4)) for a, b, w in script.weights]
    return script.text, found


# The grammar of A1111, by hand.


@pytest.mark.parametrize(
    ("typed", "text", "weights"),
    [
        ("a cat", "a cat", []),
        ("a (red) cat", "a red cat", [("red", 1.1)]),
        ("a ((red)) cat", "a red cat", [("red", 1.21)]),
        ("a (red:1.4) cat", "a red cat", [("red", 1.4)]),
        ("a [red] cat", "a red cat", [("red", round(1 / 1.1, 4))]),
        ("(a (red:1.5) cat:0.5)", "a red cat", [("a", 0.5), ("red", 0.75), ("cat", 0.5)]),
        (r"a \(red\) cat", "a (red) cat", []),
        ("a cat: red", "a cat: red", []),
        ("a (red cat", "a red cat", [("red cat", 1.1)]),
        ("a red) cat", "a red) cat", []),
        ("", "", []),
    ],
)
def test_brackets_are_read_as_a1111_reads_them(typed, text, weights):
    assert parts(typed) == (text, weights)


def test_break_is_no_word_and_begins_a_window():
    script = parse("a red cat BREAK a blue dog", "windows")
    assert script.text == "a red cat a blue dog" and script.breaks == (10,)
    assert parse("BREAKFAST", "windows").breaks == ()


# Readings, by hand.


def test_a1111_multiplies_rows_and_keeps_the_mean(model):
    # A layer norm that has learned nothing leaves rows of mean zero, of which no ratio can be taken.
    for encoder in ("text_encoder", "text_encoder_2"):
        module = getattr(model.pipeline, encoder, torch.nn.Module())
        for name, parameter in module.named_parameters():
            if name.endswith("final_layer_norm.bias"):
                parameter.data += 0.1
    plain = encoded(model, PROMPT)
    bare = encoded(model, "a (red:1.5) cat and a blue dog", syntax="a1111", weights="a1111_no_norm")
    kept = encoded(model, "a (red:1.5) cat and a blue dog", syntax="a1111")
    for before, scaled, mean in zip(plain, bare, kept, strict=True):
        red = before.tokens.indices(t2iedit.locate(PROMPT, "red"))
        others = [i for i in range(77) if i not in red]
        assert torch.allclose(scaled.hidden[red], before.hidden[red] * 1.5, atol=1e-5)
        assert torch.equal(scaled.hidden[others], before.hidden[others])
        factor = before.hidden.mean() / scaled.hidden.mean()
        assert torch.allclose(mean.hidden, scaled.hidden * factor, atol=1e-4)
        # Without the renormalising the reading would be the other one.
        assert not torch.allclose(mean.hidden, scaled.hidden, atol=1e-6)


def test_weights_of_one_change_nothing(model):
    for syntax, prompt in (("windows", PROMPT), ("a1111", "a (red:1.0) cat and a blue dog")):
        pairs = zip(encoded(model, prompt, syntax=syntax), encoded(model, PROMPT), strict=True)
        assert all(torch.allclose(a.hidden, b.hidden, atol=1e-6) for a, b in pairs)


def test_edits_find_phrases_of_the_text_without_its_markup(model):
    request = t2iedit.Request(
        "a (red cat:1.3) and a blue dog",
        syntax="a1111",
        steps=2,
        edits=[{"name": "t2i_zero", "options": {"concepts": ["red cat"]}}],
    )
    assert t2iedit.generate(model, request).report["edits"][0]["change"]


# Windows.


def test_long_prompt_is_read_in_windows_with_a_bos_row_each(model):
    for embedding in encoded(model, LONG, syntax="windows"):
        windows = len(embedding.hidden) // 77
        assert windows == 2 and embedding.tokens.of(Kind.BOS) == [0, 77]
        assert torch.equal(embedding.hidden[0], embedding.hidden[77])
        assert not embedding.tokens.lost
        words = [embedding.tokens.offsets[i] for i in embedding.tokens.words]
        assert len(words) == 140 and words == sorted(words)


def test_break_after_a_weighted_space_weighs_nothing_of_the_next_window():
    script = parse("(a red   :1.4) BREAK cat", "a1111")
    (start, end, weight) = script.weights[0]
    assert script.text[start:end].strip() == "a red" and weight == 1.4
    assert end <= script.breaks[0] and script.text[script.breaks[0] :] == "cat"


def test_encoders_that_read_different_numbers_of_windows_are_joined(sdxl):
    """The one that reads fewer is repeated whole, so the picture is that of its windows alike."""
    held = t2iedit.encode(sdxl, PROMPT, prompts={"clip_g": LONG}, syntax="windows")
    rows = held.joined()["prompt_embeds"]
    width = held.prompt[0].hidden.shape[1]
    assert torch.equal(rows[:77, :width], rows[77:, :width]) and len(rows) == 154
    request = t2iedit.Request(PROMPT, prompts={"clip_g": LONG}, syntax="windows", steps=1)
    assert t2iedit.generate(sdxl, request).image.size == (64, 64)


def test_attention_edits_reach_every_copy_of_a_repeated_prompt(sd1):
    """Beside a negative prompt of two windows, each token of the prompt stands in two columns."""
    seen = []

    class Looks(t2iedit.Edit):
        name = "looks"

        def edit_attention(self, probs, site, run):
            dog = run.tokens[0].indices(run.span("dog"))
            seen.append((probs.shape[-1], dog, probs[..., dog]))
            return probs

    request = t2iedit.Request(PROMPT, negative=LONG, syntax="windows", steps=1, edits=[Looks()])
    t2iedit.generate(sd1, request)
    width, dog, probs = seen[0]
    assert width == 154 and dog[1] == dog[0] + 77
    assert torch.allclose(probs[..., 0], probs[..., 1], atol=1e-6)


def test_each_window_is_encoded_on_its_own(model):
    for embedding, first, second in zip(
        encoded(model, "a red cat BREAK a blue dog", syntax="windows"),
        encoded(model, "a red cat"),
        encoded(model, "a blue dog"),
        strict=True,
    ):
        assert torch.allclose(embedding.hidden[:77], first.hidden, atol=1e-5)
        assert torch.allclose(embedding.hidden[77:], second.hidden, atol=1e-5)
        assert torch.equal(embedding.tokens.ids[77:], second.tokens.ids)
        if first.pooled is not None:
            assert torch.allclose(embedding.pooled, first.pooled, atol=1e-5)
        dog = embedding.tokens.indices(t2iedit.locate("a red cat a blue dog", "dog"))
        assert [index > 77 for index in dog] == [True]


def test_long_prompt_is_painted_beside_a_short_negative_and_edited(model):
    request = t2iedit.Request(
        LONG, syntax="windows", negative="fog", steps=2, edits=[Decor(undesired=["fog"], start=0.5)]
    )
    image = np.asarray(t2iedit.generate(model, request).image)
    assert image.shape == (64, 64, 3)
    held = t2iedit.encode(model, request)
    again = model.pipeline(
        **held.for_diffusers(),
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert np.abs(np.asarray(again).astype(int) - image.astype(int)).max() <= 2


# Texts of their own.


def test_own_prompt_of_an_encoder_is_diffusers_prompt_2(sdxl):
    request = t2iedit.Request(
        PROMPT, prompts={"clip_g": "a photo of fog"}, negative="a car", negatives={"clip_g": "a dog"}, steps=3,
    )  # fmt: skip
    image = np.asarray(t2iedit.generate(sdxl, request).image)
    expected = sdxl.pipeline(
        PROMPT,
        prompt_2="a photo of fog",
        negative_prompt="a car",
        negative_prompt_2="a dog",
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert np.array_equal(image, np.asarray(expected))


def test_phrases_are_found_in_what_each_encoder_reads(sdxl):
    zero = {"name": "t2i_zero", "options": {"concepts": ["fog"]}}
    prompts = {"clip_g": "a photo of fog and a car"}
    both = t2iedit.Request("a cat in the fog", prompts=prompts, steps=1, edits=[zero])
    assert t2iedit.encode(sdxl, both)
    with pytest.raises(SpanNotFound, match="a photo of a cat"):
        t2iedit.encode(
            sdxl, "a cat in the fog", prompts={"clip_g": "a photo of a cat"}, edits=[zero]
        )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"syntax": "markdown"}, 'syntax "markdown" is unknown'),
        ({"syntax": "a1111", "weights": "loud"}, 'weights "loud" is unknown'),
        ({"weights": "a1111"}, "needs syntax a1111 or compel"),
        ({"syntax": "compel", "weights": "a1111"}, "leave out weights"),
        ({"prompts": {"clip_x": "a"}}, "has no encoder clip_x"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(sd1, values, sentence):
    with pytest.raises(InvalidRequest, match=sentence):
        t2iedit.encode(sd1, PROMPT, **values)


# compel.


def compels_own(pipeline, prompt):
    import compel

    if hasattr(pipeline, "text_encoder_2"):
        return compel.CompelForSDXL(pipeline)(prompt)
    return compel.CompelForSD(pipeline)(prompt)


@needs_compel
@pytest.mark.parametrize(
    "prompt",
    [
        "a red++ cat and a blue dog",
        "a (red)1.4 cat and a (blue)0.6 dog",
        '("a red cat", "a blue dog").blend(0.7, 0.3)',
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_compel_is_wrapped_as_it_is(model, prompt):
    held = t2iedit.encode(model, prompt, syntax="compel")
    expected = compels_own(model.pipeline, prompt).embeds
    assert torch.allclose(held.joined()["prompt_embeds"], expected[0], atol=1e-5)
    assert all("+" not in e.tokens.text and "(" not in e.tokens.text for e in held.prompt)
    for embedding in held.prompt:
        plain = model.encoder(embedding.tokens.encoder).tokenize(embedding.tokens.text)
        assert torch.equal(embedding.tokens.ids[: len(plain.words)], plain.ids[: len(plain.words)])
        assert embedding.tokens.words == plain.words and embedding.tokens.offsets == plain.offsets


@needs_compel
@pytest.mark.filterwarnings("ignore")
def test_a1111s_weights_can_be_read_as_compels(model):
    theirs = encoded(model, "a (red)1.4 cat and a blue dog", syntax="compel")
    mine = encoded(model, "a (red:1.4) cat and a blue dog", syntax="a1111", weights="compel")
    pairs = zip(mine, theirs, strict=True)
    assert all(torch.allclose(a.hidden, b.hidden, atol=1e-5) for a, b in pairs)


def said(tokens):
    """Each token's words; whether the space before them counts depends on where T5's tokenizer begins."""
    return [tokens.text[a:b].strip() for a, b in tokens.offsets]


@needs_compel
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_compel_reads_for_t5_too(family):
    model = tiny_model(family)
    plain, same = encoded(model, "a red cat"), encoded(model, "a red cat", syntax="compel")
    weighed = encoded(model, "a red++ cat", syntax="compel")
    for before, mine, other in zip(plain, same, weighed, strict=True):
        assert torch.allclose(mine.hidden, before.hidden, atol=1e-5)
        assert mine.tokens.kinds == before.tokens.kinds == other.tokens.kinds
        for tokens in (mine.tokens, other.tokens):
            assert said(tokens) == said(before.tokens)
        assert not torch.allclose(other.hidden, before.hidden, atol=1e-4)


@needs_compel
@pytest.mark.filterwarnings("ignore")
def test_swap_keeps_compels_reading_of_weights(model):
    swap = {"name": "swap", "options": {"phrase": "dog", "to": "car"}}
    mine = encoded(model, "a (red:1.4) cat and a blue dog", syntax="a1111", weights="compel", edits=[swap])  # fmt: skip
    theirs = encoded(model, "a (red)1.4 cat and a blue car", syntax="compel")
    pairs = zip(mine, theirs, strict=True)
    assert all(torch.allclose(a.hidden, b.hidden, atol=1e-5) for a, b in pairs)
    with pytest.raises(EditNotSupported, match="compel reads the prompt itself"):
        t2iedit.encode(model, "a red++ cat and a blue dog", syntax="compel", edits=[swap])


@needs_compel
@pytest.mark.filterwarnings("ignore")
def test_compels_result_is_edited_on_and_painted(model):
    request = t2iedit.Request(
        "a red++ cat and a blue dog", syntax="compel", steps=2, edits=[Decor(undesired=["cat"])]
    )
    result = t2iedit.generate(model, request)
    assert result.report["edits"][0]["change"]
    with pytest.raises(InvalidRequest, match="use the edit swap"):
        t2iedit.encode(model, "a cat.swap(dog)", syntax="compel")


def test_without_compel_a_sentence_says_what_to_install(sd1, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "compel", None)
    with pytest.raises(InvalidRequest, match=r"pip install 't2iedit\[compel\]'"):
        t2iedit.encode(sd1, "a red++ cat", syntax="compel")
