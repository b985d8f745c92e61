"""Conditionings as data: blended, moved, told to a plain pipeline, and painted from."""

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler

import t2iedit
from t2iedit.blending import between, repeated, slerp
from t2iedit.errors import ConditioningNotUsable, EditNotSupported, InvalidRequest
from t2iedit.plugins import installed
from t2iedit.testing import tiny_model

Decor = installed().edit("decor")
PROMPT, OTHER = "a red cat and a blue dog", "a photo of a car in the fog"


def pixels(image):
    return np.asarray(image).astype(int)


def rows(conditioning):
    return [tensor for _, tensor in conditioning.tensors()]


def assert_close(first, second):
    pairs = zip(rows(first), rows(second), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def same(first, second):
    return all(map(torch.equal, rows(first), rows(second)))


# Equations.


def test_slerp_by_hand():
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    # Half of a right angle, at the mean length of 3.
    half = 3 / 2**0.5
    assert torch.allclose(slerp(a, b, 0.5), torch.tensor([[half, half]]))
    third = torch.pi / 6
    expected = (2 + 2 / 3) * torch.tensor([[np.cos(third), np.sin(third)]], dtype=torch.float32)
    assert torch.allclose(slerp(a, b, 1 / 3), expected)
    # Straight lines cut the corner: the wrong formula must not pass for the right one.
    assert not torch.allclose(slerp(a, b, 0.5), torch.lerp(a, b, 0.5))


@pytest.mark.parametrize(
    ("a", "b"),
    [([1.0, 0.0], [-1.0, 0.0]), ([0.0, 0.0], [3.0, 4.0]), ([1.0, 0.0], [1.0, 1e-6])],
    ids=["opposite", "zero", "parallel"],
)
def test_slerp_without_an_arc_goes_straight(a, b):
    first, second = torch.tensor([a]), torch.tensor([b])
    expected = torch.lerp(first, second, 0.25)
    assert torch.allclose(slerp(first, second, 0.25), expected, atol=1e-6)


@pytest.mark.parametrize("path", ["lerp", "slerp"])
def test_equal_rows_stay_bit_for_bit_and_ends_are_ends(path):
    first, second = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    second[0] = first[0]
    assert torch.equal(between(first, second, 0.3, path)[0], first[0])
    for weight, end in ((0.0, first), (1.0, second)):
        assert torch.allclose(between(first, second, weight, path), end, atol=1e-5)


def test_attention_does_not_notice_whole_repeats():
    query, keys, values = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(2))

    def attended(keys, values):
        return torch.softmax(query @ keys.T, dim=-1) @ values

    expected = attended(keys, values)
    assert torch.allclose(attended(repeated(keys, 18), repeated(values, 18)), expected, atol=1e-5)
    # Padding with zeros would be noticed.
    zeros = torch.zeros(12, 8)
    assert not torch.allclose(
        attended(torch.cat([keys, zeros]), torch.cat([values, zeros])), expected, atol=1e-2
    )


# Blends of conditionings.


def test_blend_mixes_every_encoder_and_the_pooled_vectors(sdxl):
    first, second = t2iedit.encode(sdxl, PROMPT), t2iedit.encode(sdxl, OTHER)
    mixed = first.blend(second, 0.25)
    for one, other, between_them in zip(first.prompt, second.prompt, mixed.prompt, strict=True):
        assert torch.allclose(
            between_them.hidden, 0.75 * one.hidden + 0.25 * other.hidden, atol=1e-5
        )
        assert torch.equal(between_them.hidden[0], one.hidden[0])
    pooled = [dict(c.tensors())["prompt/clip_g/pooled"] for c in (first, second, mixed)]
    assert torch.allclose(pooled[2], 0.75 * pooled[0] + 0.25 * pooled[1], atol=1e-5)
    assert mixed.origin.history[-1]["blended"]["weight"] == 0.25
    assert mixed.text == PROMPT


def test_blend_of_different_lengths_has_the_ends_it_should(sd1):
    first, second = t2iedit.encode(sd1, PROMPT), t2iedit.encode(sd1, OTHER)
    long = second.map(
        lambda e: t2iedit.TextEmbedding(e.tokens.repeated(2), torch.cat([e.hidden, e.hidden * 0.9]))
    )
    mixed = first.blend(long, 0.0)
    assert mixed.prompt[0].hidden.shape[0] == 154 == len(mixed.prompt[0].tokens.ids)
    assert mixed.prompt[0].tokens.of(t2iedit.Kind.BOS) == [0, 77]
    request = t2iedit.Request(steps=2)
    plain = pixels(t2iedit.generate(sd1, request, conditioning=first).image)
    assert (
        np.abs(pixels(t2iedit.generate(sd1, request, conditioning=mixed).image) - plain).max() <= 2
    )
    whole = pixels(t2iedit.generate(sd1, request, conditioning=first.blend(long, 1.0)).image)
    expected = pixels(t2iedit.generate(sd1, request, conditioning=long).image)
    assert np.abs(whole - expected).max() <= 2


def test_blend_keeps_what_changes_on_either_side(sd1):
    plain = t2iedit.encode(sd1, OTHER)
    edit = Decor(undesired=["fog"], start=0.5)
    mixed = t2iedit.encode(sd1, PROMPT, edits=[edit]).blend(plain, 0.5)
    assert [start for start, _ in mixed.changes] == [0.5]
    assert not torch.equal(mixed.at(0.0).prompt[0].hidden, mixed.at(0.5).prompt[0].hidden)


def test_blend_refuses_what_makes_no_sense(sd1, sdxl):
    first = t2iedit.encode(sd1, PROMPT)
    with pytest.raises(InvalidRequest, match="from 0 to 1, not 2"):
        first.blend(first, 2.0)
    with pytest.raises(InvalidRequest, match='"lerp" or "slerp"'):
        first.blend(first, 0.5, "nearest")
    with pytest.raises(ConditioningNotUsable, match="was made by the encoders clip_l"):
        first.blend(t2iedit.encode(sdxl, PROMPT))
    other = t2iedit.encode(tiny_model("sd1", seed=1), PROMPT)
    with pytest.raises(ConditioningNotUsable, match="its weights differ"):
        first.blend(other)


# Painting from a conditioning.


def test_painting_from_a_conditioning_is_painting_from_its_prompt(model):
    edits = [Decor(undesired=["fog"], start=0.3)]
    request = t2iedit.Request(PROMPT, negative="fog", steps=3, edits=edits, seeds=(1, 2))
    expected = t2iedit.generate(model, request).images
    held = t2iedit.encode(model, request)
    bare = t2iedit.Request(steps=3, seeds=(1, 2))
    for image, other in zip(
        t2iedit.generate(model, bare, conditioning=held).images, expected, strict=True
    ):
        assert np.array_equal(pixels(image), pixels(other))


def test_edits_come_on_top_of_a_conditioning(model):
    edit = Decor(undesired=["a blue dog"], alpha=0.7)
    at_once = t2iedit.encode(model, PROMPT, edits=[edit])
    run = t2iedit.start(model, t2iedit.Request(edits=[edit]), t2iedit.encode(model, PROMPT))
    (later,) = t2iedit.condition([run])
    assert_close(later, at_once)
    assert [list(step) for step in later.origin.history] == [["encoded"], ["edited"]]


def test_conditioning_is_loaded_edited_blended_saved_and_painted_in_a_chain(model, tmp_path):
    path = t2iedit.encode(model, PROMPT, negative="fog").save(tmp_path / "first.safetensors")
    edit = Decor(undesired=["a blue dog"], alpha=0.7)
    edited = t2iedit.Conditioning.load(path).edit(model, edit)
    assert_close(edited, t2iedit.encode(model, PROMPT, negative="fog", edits=[edit]))
    assert [list(step) for step in edited.origin.history] == [["encoded"], ["edited"]]
    mixed = edited.blend(t2iedit.encode(model, OTHER, negative="fog"), 0.3)
    held = t2iedit.Conditioning.load(mixed.save(tmp_path / "second.safetensors"))
    assert t2iedit.generate(model, t2iedit.Request(steps=1), conditioning=held).image
    unguided = t2iedit.encode(model, PROMPT, guidance_scale=1).edit(model, edit)
    assert unguided.negative is None and edited.negative is not None


def test_editing_what_was_made_by_hand_says_so(sd1):
    held = t2iedit.encode(sd1, PROMPT)
    by_hand = t2iedit.Conditioning(held.prompt, held.negative)
    edited = by_hand.edit(sd1, Decor(undesired=["fog"]))
    assert [list(step) for step in edited.origin.history] == [["made"], ["edited"]]


def test_a_negative_is_added_where_the_conditioning_has_none_and_replaced_where_asked(model):
    unguided = t2iedit.encode(model, PROMPT, guidance_scale=1)
    assert unguided.negative is None

    def negative(given, **values):
        run = t2iedit.start(model, t2iedit.Request(guidance_scale=5, **values), given)
        return t2iedit.condition([run])[0].negative

    for values in ({}, {"negative": "fog"}):
        asked = t2iedit.encode(model, PROMPT, guidance_scale=5, **values).negative
        for mine, expected in zip(negative(unguided, **values), asked, strict=True):
            assert torch.equal(mine.hidden, expected.hidden)
    kept = t2iedit.encode(model, PROMPT, negative="dog", guidance_scale=5)
    for mine, expected in zip(negative(kept), kept.negative, strict=True):
        assert torch.equal(mine.hidden, expected.hidden)


class Dim(t2iedit.Edit):
    """Acts before the encoder."""

    name = "dim"

    def edit_token_embeds(self, embeds, tokens, run):
        return embeds / 2


def test_conditioning_of_another_encoder_is_refused(sd1, sd2, sdxl):
    held = t2iedit.encode(sd1, PROMPT)
    for model, sentence in (
        (
            tiny_model("sd1", seed=3),
            'another encoder "clip" than that of the model: its weights differ',
        ),
        (sdxl, "made by the encoders clip, and the model has clip_l"),
    ):
        with pytest.raises(ConditioningNotUsable, match=sentence):
            t2iedit.generate(model, t2iedit.Request(steps=1), conditioning=held)
    sd1.pipeline.text_encoder.to(torch.bfloat16)
    with pytest.raises(ConditioningNotUsable, match="computed in float32 and not in bfloat16"):
        t2iedit.generate(sd1, t2iedit.Request(steps=1), conditioning=held)
    with pytest.raises(ConditioningNotUsable, match="its weights differ"):
        t2iedit.generate(sd1, t2iedit.Request(steps=1), conditioning=held.to("cpu", torch.bfloat16))


def test_conditioning_beside_another_prompt_or_an_early_edit_is_refused(sd1):
    held = t2iedit.encode(sd1, PROMPT)
    with pytest.raises(InvalidRequest, match="leave out the prompt"):
        t2iedit.generate(sd1, t2iedit.Request("a cat"), conditioning=held)
    with pytest.raises(EditNotSupported, match="dim acts before the text encoder"):
        t2iedit.generate(sd1, t2iedit.Request(edits=[Dim()]), conditioning=held)


def test_weights_changed_in_place_are_noticed(sd1):
    before = sd1.encoders[0].mark
    assert sd1.encoders[0].mark == before
    next(sd1.pipeline.text_encoder.parameters()).data.mul_(2)
    assert sd1.encoders[0].mark != before


# Plain diffusers.


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_plain_pipeline_paints_the_same(model, guidance):
    edits = [Decor(undesired=["fog"])]
    request = t2iedit.Request(
        PROMPT, negative="dog", steps=3, guidance_scale=guidance, seed=5, edits=edits
    )
    expected = pixels(t2iedit.generate(model, request).image)
    image = model.pipeline(
        **t2iedit.encode(model, request).for_diffusers(),
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert np.array_equal(pixels(image), expected)


def test_plain_pipeline_paints_batches_and_several_images_a_prompt(model):
    request = t2iedit.Request(PROMPT, steps=2, seeds=range(4), edits=[Decor(undesired=["fog"])])
    expected = [pixels(image) for image in t2iedit.generate(model, request).images]
    held = t2iedit.encode(model, request)
    images = model.pipeline(
        **held.for_diffusers(batch=2),
        num_images_per_prompt=2,
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(seed) for seed in range(4)],
    ).images
    assert len(images) == 4
    for image, other in zip(images, expected, strict=True):
        assert np.abs(pixels(image) - other).max() <= 2


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_plain_pipeline_is_told_what_changes(model, scheduler, guidance):
    model.pipeline.scheduler = scheduler.from_config(model.pipeline.scheduler.config)
    request = t2iedit.Request(
        PROMPT, steps=4, guidance_scale=guidance, edits=[Decor(undesired=["fog"], start=0.5)]
    )
    expected = pixels(t2iedit.generate(model, request).image)
    held = t2iedit.encode(model, request)
    for _ in range(2):
        image = model.pipeline(
            **held.for_diffusers(),
            num_inference_steps=4,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
        assert np.abs(pixels(image) - expected).max() <= 2


def test_conditioning_made_by_hand_has_no_names(sd1):
    held = t2iedit.encode(sd1, PROMPT)
    with pytest.raises(ConditioningNotUsable, match="put together by hand"):
        t2iedit.Conditioning(held.prompt, held.negative).for_diffusers()
