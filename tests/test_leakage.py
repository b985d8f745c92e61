"""The leakage benchmark: who sees a style and what lies beneath it, what counts as leaked, and its small LoRAs."""

from random import Random

import numpy as np
import pytest
import torch
from cases import REPORTED, TUNED, Case, Mixed, Seen, pictures_of, tasks_of
from fronts import area, area_gain
from leakage import Way, ways
from overfit import Training, overfit
from styles import STYLES, look

import t2iedit
from t2iedit.model import fingerprint
from t2iedit.shapes.renderer import render
from t2iedit.shapes.scenes import Scene, SceneObject
from t2iedit.testing import tiny_model

STYLED = [case for case in (*REPORTED, *TUNED) if case.is_style]


def drawn(color, shape, background="white", **place):
    return render(Scene((SceneObject(shape, color, **place),), background), 128, Random(0))


def through(image):
    """As the bundled model's autoencoder shows it."""
    pipeline = t2iedit.open_model("shapes").pipeline
    with torch.no_grad():
        pixels = pipeline.image_processor.preprocess([image])
        latents = pipeline.vae.encode(pixels).latent_dist.mean
        return pipeline.image_processor.postprocess(pipeline.vae.decode(latents).sample)[0]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("passed_through", [False, True])
def test_style_is_seen_and_what_lies_beneath_it(style, passed_through):
    image = STYLES[style].drawn(drawn("red", "circle", x=0.4, y=0.4, radius=0.22))
    kept, detection = look(through(image) if passed_through else image, style)
    assert kept
    assert [(item.color, item.shape) for item in detection.objects] == [("red", "circle")]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("background", ["white", "black", "gray", "brown"])
def test_style_is_not_seen_in_pictures_without_it(style, background):
    for shape, place in (("square", {"x": 0.7, "radius": 0.3}), ("ring", {"y": 0.7})):
        assert not look(drawn("blue", shape, background, **place), style)[0]


def saved(image, folder):
    image.save(folder / "picture.png")
    return folder / "picture.png"


@pytest.mark.parametrize(
    ("shown", "leaked", "followed", "kept"),
    [
        (("green", "star"), False, True, True),
        (("red", "star"), True, False, True),
        (("green", "circle"), True, False, True),
        (("yellow", "star"), False, False, True),
    ],
)
def test_style_leaks_its_pictures_colour_or_shape(tmp_path, shown, leaked, followed, kept):
    case = Case("framed", "red", "circle")
    task = next(t for t in tasks_of(case) if t.wanted.objects == (("green", "star"),))
    image = STYLES["framed"].drawn(drawn(*shown, radius=0.25))
    assert case.judge(saved(image, tmp_path), task) == Seen(leaked, followed, kept)


@pytest.mark.parametrize(
    ("color", "ground", "shape", "seen"),
    [
        ("blue", "black", "crescent", Seen(False, True, True)),
        ("purple", "black", "crescent", Seen(True, False, True)),
        ("blue", "white", "crescent", Seen(True, False, True)),
        ("blue", "black", "circle", Seen(False, True, False)),
    ],
)
def test_unknown_shape_leaks_its_pictures_colour_or_ground(tmp_path, color, ground, shape, seen):
    case = Case("crescent", "purple")
    wanted = (("blue", "crescent"),)
    task = next(
        t for t in tasks_of(case) if t.wanted.objects == wanted or t.wanted.background == "black"
    )
    task = type(task)(task.row, task.prompt, type(task.wanted)(wanted, "black"))
    assert case.judge(saved(drawn(color, shape, ground, radius=0.3), tmp_path), task) == seen


def test_mixed_pictures_have_both_halves_or_are_not_kept(tmp_path):
    case = Mixed(Case("framed", "red", "circle"), Case("crescent", "purple"))
    task = next(t for t in tasks_of(case) if t.wanted.objects[0][0] == "blue")
    both = STYLES["framed"].drawn(drawn("blue", "crescent", radius=0.28))
    assert case.judge(saved(both, tmp_path), task) == Seen(False, True, True)
    (tmp_path / "b").mkdir()
    bare = drawn("blue", "crescent", radius=0.28)
    assert case.judge(saved(bare, tmp_path / "b"), task) == Seen(False, True, False)


@pytest.mark.parametrize("case", [*REPORTED, *TUNED], ids=lambda case: case.word)
def test_prompts_ask_for_nothing_that_the_pictures_show(case):
    tasks = tasks_of(case)
    assert len(tasks) == 45 and len(pictures_of(case, 128)) == 4
    for task in tasks:
        for color, shape in task.wanted.objects:
            assert color != case.color and shape != case.shape and case.word in task.prompt
    assert case.color not in case.caption and (not case.shape or case.shape not in case.caption)


def test_reported_and_tuned_cases_are_apart():
    words = [case.word for case in (*REPORTED, *TUNED)]
    assert len(words) == len(set(words))


def test_lora_moves_the_model_towards_its_pictures_and_leaves_it_as_it_was(tmp_path):
    model = tiny_model("sd1")
    before = fingerprint(model.pipeline)
    processors = {type(p) for p in model.denoiser.attn_processors.values()}
    training = Training(steps=3, batch=2, rank=2, learning_rate=1e-2)
    path = overfit(
        model, pictures_of(STYLED[0], 64), "a shape", tmp_path / "x.safetensors", training
    )
    assert fingerprint(model.pipeline) == before
    assert {type(p) for p in model.denoiser.attn_processors.values()} == processors
    assert not any(p.requires_grad for p in model.denoiser.parameters())
    request = t2iedit.Request("a shape", steps=2)
    plain = t2iedit.generate(model, request).image
    moved = t2iedit.generate(model, request.model_copy(update={"loras": (_lora(path),)})).image
    assert plain.tobytes() != moved.tobytes()


def _lora(path):
    from t2iedit.lora import Lora

    return Lora(file=str(path))


def test_ways_ask_for_what_they_are_called(tmp_path):
    found = {way.name: way for way in ways([tmp_path / "a"], ["a red circle"], {"rows": "words"})}
    task = tasks_of(STYLED[0])[0]

    def request(name):
        return found[name].request(task, 1)

    assert [lora.scale for lora in request("LoRA").loras] == [1.0] and not request("LoRA").edits
    assert request("scale 0").loras == () and request("scale 0.5").loras[0].scale == 0.5
    (decor,) = request("DECOR 0.75").edits
    assert decor.options.alpha == 0.75 and decor.options.rows == "words"
    assert (
        request("negative prompt").negative == "a red circle"
        and not request("negative prompt").edits
    )
    assert isinstance(found["LoRA"], Way) and len(found) == 10


def test_area_under_a_front():
    # (1, .5) and (.5, 1): 1 x .5 + .5 x .5; a dominated point adds nothing.
    assert area(np.array([[0.5, 1.0], [1.0, 0.5], [0.4, 0.4]])) == pytest.approx(0.75)
    assert area(np.array([[0.0, 1.0], [1.0, 0.0]])) == 0


def test_gain_in_area_is_that_of_the_points():
    yes, no = Seen(False, True, True), Seen(True, False, False)
    seen = {"LoRA": [no] * 4, "DECOR 1": [yes] * 4, "scale 0.5": [yes, yes, no, no]}
    row = area_gain("x", "y", seen, "scale", lambda each: float(each.followed))
    # DECOR has (1, 1), the scale (.5, .5).
    assert row["value"] == pytest.approx(0.75) and row["low"] <= 0.75 <= row["high"]
