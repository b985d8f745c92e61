"""SD3 and FLUX: painted as diffusers paints, edited, scheduled, saved, and told to plain pipelines."""

import numpy as np
import pytest
import torch

import t2iedit
from t2iedit.errors import ModelNotUsable
from t2iedit.plugins import installed
from t2iedit.testing import check_edit, tiny_model
from t2iedit.text import Kind
from t2iedit.tiny import TRANSFORMERS, tiny_pipeline

Decor = installed().edit("decor")
PROMPT = "a red cat and a blue dog"


@pytest.fixture(params=TRANSFORMERS)
def transformer(request):
    return tiny_model(request.param)


def pixels(image):
    return np.asarray(image).astype(int)


def direct(model, seed=0, **values):
    generator = torch.Generator().manual_seed(seed)
    return pixels(model.pipeline(num_inference_steps=3, generator=generator, **values).images[0])


@pytest.mark.parametrize("negative", [None, "a photo of fog"])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_image_without_edits_equals_diffusers(transformer, negative, guidance):
    size = {"width": 64, "height": 64}
    request = t2iedit.Request(
        PROMPT, negative=negative, guidance_scale=guidance, steps=3, seeds=(0, 7)
    )
    result = t2iedit.generate(transformer, request)
    for seed, image in zip(request.seeds, result.images, strict=True):
        expected = direct(
            transformer,
            seed,
            prompt=PROMPT,
            negative_prompt=negative,
            guidance_scale=guidance,
            **size,
        )
        assert np.array_equal(pixels(image), expected)
    unused = negative is not None and (guidance == 1 or transformer.family == "flux")
    assert any("negative prompt is not used" in s for s in result.report["warnings"]) == unused


@pytest.mark.parametrize("name", ["decor", "swap"])
def test_edits_of_embeddings_keep_the_contract(transformer, name):
    check_edit(installed().edit(name), [transformer])


def test_attention_edits_are_refused_and_the_rest_of_them_works(transformer):
    Zero = installed().edit("t2i_zero")
    concepts = ["red cat", "blue dog"]
    request = t2iedit.Request(PROMPT, steps=2, edits=[Zero(concepts=concepts, suppression=0.0)])
    assert t2iedit.generate(transformer, request).report["edits"][0]["change"]["t5"] > 0
    with pytest.raises(t2iedit.EditNotSupported, match="cannot be opened"):
        t2iedit.start(
            transformer, t2iedit.Request(PROMPT, edits=[Zero(concepts=concepts, suppression=1.0)])
        )


def test_windows_go_by_timestep(transformer):
    def edited(**window):
        edits = [Decor(undesired=["a red cat"], **window)]
        return pixels(
            t2iedit.generate(transformer, t2iedit.Request(PROMPT, steps=4, edits=edits)).image
        )

    whole, late = edited(), edited(start=0.5)
    assert np.array_equal(whole, edited(start=0.0, stop=1.0))
    plain = pixels(t2iedit.generate(transformer, t2iedit.Request(PROMPT, steps=4)).image)
    assert not np.array_equal(late, whole) and not np.array_equal(late, plain)


def test_plain_pipeline_paints_the_same_from_a_file(transformer, tmp_path):
    edits = [Decor(undesired=["fog"])]
    request = t2iedit.Request(PROMPT, steps=3, edits=edits, seed=2)
    expected = pixels(t2iedit.generate(transformer, request).image)
    path = t2iedit.encode(transformer, request).save(tmp_path / "c.safetensors")
    held = t2iedit.Conditioning.load(path)
    size = {"width": 64, "height": 64}
    assert np.array_equal(direct(transformer, 2, **held.for_diffusers(), **size), expected)
    again = t2iedit.generate(transformer, t2iedit.Request(steps=3, seed=2), conditioning=held)
    assert np.array_equal(pixels(again.image), expected)


def test_t5_has_no_bos_and_its_phrases_are_found(transformer):
    encoder = transformer.encoder("t5")
    tokens = encoder.tokenize(PROMPT)
    assert not tokens.of(Kind.BOS) and len(tokens.of(Kind.EOT)) == 1
    found = tokens.indices(t2iedit.locate(PROMPT, "red cat"))
    assert "".join(PROMPT[a:b] for a, b in (tokens.offsets[i] for i in found)).strip() == "red cat"
    assert tokens.ids[tokens.of(Kind.EOT)[0]] == encoder.tokenizer.eos_token_id


def test_own_prompt_for_t5_is_diffusers_own(transformer):
    name = {"sd3": "prompt_3", "flux": "prompt_2"}[transformer.family]
    request = t2iedit.Request("a cat", prompts={"t5": PROMPT}, steps=3)
    image = pixels(t2iedit.generate(transformer, request).image)
    own = {"prompt": "a cat", name: PROMPT}
    if transformer.family == "sd3":
        own["prompt_2"] = "a cat"
    assert np.array_equal(image, direct(transformer, width=64, height=64, **own))


def test_sizes_are_those_of_the_patches(transformer):
    step = transformer.size_step
    with pytest.raises(t2iedit.UserError, match=f"multiples of {step}"):
        t2iedit.generate(transformer, t2iedit.Request(PROMPT, size=(64 + step // 2, 64)))


def test_sd3_without_t5_is_refused_and_schnell_knows_its_steps():
    pipeline = tiny_pipeline("sd3")
    pipeline.text_encoder_3 = None
    with pytest.raises(ModelNotUsable, match="has no text_encoder_3"):
        t2iedit.open_model(pipeline)
    pipeline = tiny_pipeline("flux")
    pipeline.transformer.register_to_config(guidance_embeds=False)
    defaults = t2iedit.open_model(pipeline).defaults
    assert (defaults.steps, defaults.guidance_scale) == (4, 0.0)
