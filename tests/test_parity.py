"""The backbone: without edits, images equal those of calling the pipeline directly, bit for bit."""

import numpy as np
import pytest
import torch

import t2iedit
from t2iedit.tiny import tiny_pipeline

PROMPT = "a red cat and a blue dog!"
NEGATIVES = [None, "", "a photo of fog"]


def direct(pipeline, negative, guidance, seed):
    return pipeline(
        PROMPT,
        negative_prompt=negative,
        guidance_scale=guidance,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]


@pytest.mark.parametrize("guidance", [7.5, 1.0, 0.0])
@pytest.mark.parametrize("negative", NEGATIVES)
def test_image_without_edits_equals_diffusers(model, negative, guidance):
    request = t2iedit.Request(
        PROMPT, negative=negative, guidance_scale=guidance, steps=3, seeds=(0, 7)
    )
    images = t2iedit.generate(model, request).images
    for seed, image in zip(request.seeds, images, strict=True):
        expected = direct(model.pipeline, negative, guidance, seed)
        assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_image_of_many_seeds_equals_the_seed_alone(model):
    many = t2iedit.generate(model, t2iedit.Request(PROMPT, steps=3, seeds=(3, 4, 5))).images
    alone = t2iedit.generate(model, t2iedit.Request(PROMPT, steps=3, seeds=(5,))).image
    assert np.array_equal(np.asarray(many[2]), np.asarray(alone))


def test_one_image_a_call_is_the_default_wherever_one_stands(sd1):
    run = t2iedit.start(sd1, t2iedit.Request(PROMPT, steps=1, seeds=(3, 4)))
    (conditioning,) = t2iedit.condition([run])
    for _ in t2iedit.denoise(run, conditioning):
        assert run.report["run"]["batch_size"] == 1
    report = t2iedit.generate(sd1, t2iedit.Request(PROMPT, steps=1, seeds=(3, 4))).report
    assert report["run"]["batch_size"] == 1


def test_batched_images_equal_singles_within_two_levels(model):
    request = t2iedit.Request(PROMPT, steps=3, seeds=(3, 4, 5))
    single = t2iedit.generate(model, request).images
    batched = t2iedit.generate(model, request, batch_size=2).images
    for one, other in zip(single, batched, strict=True):
        far = np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max()
        assert far <= 2


def test_zeroed_negative_differs_from_the_empty_one_on_sdxl(sdxl):
    def conditioning(negative):
        run = t2iedit.start(sdxl, t2iedit.Request(PROMPT, negative=negative, steps=3))
        return t2iedit.condition([run])[0]

    zeroed, empty = conditioning(None).negative, conditioning("").negative
    assert not any(e.hidden.any() or (e.pooled is not None and e.pooled.any()) for e in zeroed)
    assert all(e.hidden.any() for e in empty)


def test_pipeline_is_left_with_its_own_progress_bar_and_hooks():
    pipeline = tiny_pipeline("sd1")
    pipeline.set_progress_bar_config(desc="mine", disable=True)
    model = t2iedit.open_model(pipeline)
    t2iedit.generate(model, t2iedit.Request(PROMPT, steps=1))
    assert pipeline._progress_bar_config == {"desc": "mine", "disable": True}

    def fail(progress):
        raise RuntimeError("stop")

    pipeline.set_progress_bar_config(desc="mine")
    with pytest.raises(RuntimeError, match="stop"):
        t2iedit.generate(model, t2iedit.Request(PROMPT, steps=1), on_step=fail)
    assert pipeline._progress_bar_config == {"desc": "mine"}
