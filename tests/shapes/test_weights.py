"""The bundled model: plain diffusers runs it, t2iedit opens it by name, and it paints what it is asked."""

from random import Random

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline

import t2iedit
from t2iedit.opening import BUNDLED
from t2iedit.plugins import installed
from t2iedit.shapes.detector import detect
from t2iedit.shapes.scoring import score
from t2iedit.shapes.tasks import make_tasks

FOLDER = BUNDLED["shapes"]


@pytest.fixture(scope="module")
def shapes():
    return t2iedit.open_model("shapes")


def test_weights_are_small_enough_for_the_wheel():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 40e6


def test_plain_diffusers_paints_what_t2iedit_paints(shapes):
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    plain = pipeline("a red circle", num_inference_steps=4, guidance_scale=4.0, generator=generator)
    request = t2iedit.Request("a red circle", seed=1, steps=4, guidance_scale=4.0)
    ours = t2iedit.generate(shapes, request).image
    assert ours.size == (128, 128)
    assert np.array_equal(np.asarray(ours), np.asarray(plain.images[0]))


def test_defaults_come_from_the_folder(shapes):
    assert shapes.defaults.steps == 20 and shapes.defaults.guidance_scale > 1
    assert shapes.dtype == torch.float32 and shapes.memory_format == "contiguous"


def test_world_words_are_single_tokens(shapes):
    prompt = "a striped red circle left of a purple diamond on a brown background"
    assert len(shapes.encoders[0].tokenize(prompt).words) == len(prompt.split())


def test_single_objects_are_mostly_right(shapes):
    tasks = make_tasks(24, Random(5))[:24]
    right = 0
    for seed, task in enumerate(tasks):
        image = t2iedit.generate(shapes, t2iedit.Request(task.prompt, seed=seed)).image
        right += score(detect(image), task.wanted).right
    assert right >= 22


def test_decor_takes_the_undesired_colour_out_of_a_prompt(shapes):
    decor = installed().edit("decor")(undesired=["red"])

    def reds(*edits):
        request = t2iedit.Request("a red circle on a white background", seeds=range(6), edits=edits)
        images = t2iedit.generate(shapes, request).images
        return sum(any(item.color == "red" for item in detect(image).objects) for image in images)

    assert reds() >= 4
    assert reds(decor) < reds()


few_steps = pytest.mark.skipif(
    "shapes-turbo" not in BUNDLED, reason="the few-step sibling is not trained yet"
)


@pytest.fixture(scope="module")
def turbo():
    return t2iedit.open_model("shapes-turbo")


@few_steps
def test_the_few_step_sibling_paints_in_four_steps_without_guidance(turbo):
    assert turbo.defaults.steps == 4 and not turbo.guided(turbo.defaults.guidance_scale)
    tasks = make_tasks(24, Random(6))[:24]
    right = 0
    for seed, task in enumerate(tasks):
        image = t2iedit.generate(turbo, t2iedit.Request(task.prompt, seed=seed)).image
        right += score(detect(image), task.wanted).right
    assert right >= 14


@few_steps
def test_plain_diffusers_loads_the_few_step_lora(turbo):
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(FOLDER / "turbo")
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(1)
    plain = pipeline("a red circle", num_inference_steps=4, guidance_scale=1.0, generator=generator)
    ours = t2iedit.generate(turbo, t2iedit.Request("a red circle", seed=1)).image
    difference = np.asarray(ours).astype(int) - np.asarray(plain.images[0])
    # Merged weights round otherwise than added ones.
    assert abs(difference).max() <= 3
