"""What made an image stands in the image, and can be repeated."""

import json
import random
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import t2iedit
from t2iedit.errors import OutputNotWritable, RecipeNotUsable
from t2iedit.opening import open_model
from t2iedit.plugins import installed
from t2iedit.provenance import read_recipe, save_image
from t2iedit.repeating import differences, recorded
from t2iedit.tiny import tiny_pipeline

Decor = installed().edit("decor")
Zero = installed().edit("t2i_zero")
EDITS = (Decor(undesired=["fög"], alpha=0.5, start=0.25), Zero(concepts=["red cat"]))


@pytest.fixture
def made(sd1, tmp_path):
    request = t2iedit.Request(
        "a red cat",
        negative="a dög",
        steps=2,
        guidance_scale=3,
        seeds=(7,),
        size=(72, 64),
        edits=EDITS,
    )
    result = t2iedit.generate(sd1, request)
    path = tmp_path / "made.png"
    save_image(result.image, path)
    return path, result


def test_recipe_holds_the_whole_request_for_one_seed(made):
    path, _ = made
    recipe = read_recipe(path)
    assert recipe["seeds"] == [7] and recipe["size"] == [72, 64] and recipe["steps"] == 2
    assert [edit["name"] for edit in recipe["edits"]] == ["decor", "t2i_zero"]
    assert recipe["edits"][0]["options"] == {"undesired": ["fög"], "alpha": 0.5, "start": 0.25}
    made_with = recipe["made_with"]
    assert made_with["scheduler"] == "DDIMScheduler" and made_with["threads"] >= 1
    assert {"torch", "diffusers", "transformers", "t2iedit"} <= set(made_with["versions"])
    assert made_with["plugins"]["decor"].startswith("t2iedit ")


def test_recorded_request_repeats_the_image_bit_for_bit(made):
    path, result = made
    request, made_with = recorded(path)
    model = open_model(tiny_pipeline("sd1"))
    again = t2iedit.generate(model, request)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(again.image), np.asarray(image))
    assert request.edits == EDITS
    assert differences(model, request, made_with) == []


def test_parameters_are_as_a1111_writes_them(made):
    path, _ = made
    with Image.open(path) as image:
        lines = image.info["parameters"].split("\n")
    assert lines[0] == "a red cat" and lines[1] == "Negative prompt: a dög"
    assert lines[2].startswith(
        "Steps: 2, Sampler: DDIM, CFG scale: 3, Seed: 7, Size: 72x64, Model hash: "
    )
    assert 't2iedit: "decor(' in lines[2]


def test_every_difference_is_said(made, sd1):
    path, _ = made
    request, made_with = recorded(path)
    made_with |= {"fingerprint": "0" * 12, "threads": 99, "device": "cuda", "scheduler": "Other"}
    made_with["versions"]["torch"] = "1.0"
    sentences = differences(sd1, request, made_with)
    assert len(sentences) == 5
    for name in ("weights", "scheduler", "device", "number of threads", "torch"):
        assert any(f"the recorded {name} was" in sentence for sentence in sentences)


def rewritten(path, change):
    """The image with its recipe changed by `change`."""
    with Image.open(path) as image:
        image.load()
    recipe = json.loads(image.info["t2iedit"])
    text = change(recipe)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("t2iedit", json.dumps(recipe) if text is None else text)
    image.save(path, pnginfo=chunks)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: "{", "is not valid JSON"),
        (lambda r: "[]", "has no prompt"),
        (lambda r: r.update(prompt=3), "has no prompt"),
        (lambda r: r.update(made_with=3), "made_with is no object"),
        (lambda r: r.update(steps="many"), "cannot be repeated: steps='many'"),
        (lambda r: r.update(surprise=1), 'a request has no "surprise"'),
        (lambda r: r["edits"][0]["options"].update(alpha=7), "decor cannot take alpha=7"),
        (lambda r: r.update(edits=[3]), "cannot be repeated"),
    ],
)
def test_unusable_recipe_is_one_sentence(made, change, sentence):
    path, _ = made
    rewritten(path, change)
    with pytest.raises(RecipeNotUsable, match=sentence):
        recorded(path)


ODD = (None, True, 3, 0.5, "x", [], ["x"], [[]], {}, {"a": 1})


def places(value, path=()):
    """The path to everything inside a JSON value."""
    yield path
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in inside:
        yield from places(part, (*path, key))


def put(recipe, path, odd):
    *above, last = path
    for key in above:
        recipe = recipe[key]
    recipe[last] = odd


def test_recipe_damaged_anywhere_is_read_or_refused_in_one_sentence(made, sd1):
    """A PNG may come from anywhere: no value in it makes anything but a `UserError`."""
    path, _ = made
    with Image.open(path) as image:
        image.load()
    paths = list(places(json.loads(image.info["t2iedit"])))[1:]
    refused = 0
    for place in paths:
        for odd in ODD:
            recipe = json.loads(image.info["t2iedit"])
            put(recipe, place, odd)
            # A picture of one pixel, since only its text matters.
            chunks = PngImagePlugin.PngInfo()
            chunks.add_itxt("t2iedit", json.dumps(recipe))
            Image.new("RGB", (1, 1)).save(path, pnginfo=chunks)
            try:
                request, made_with = recorded(path)
                differences(sd1, request, made_with)
            except t2iedit.UserError as error:
                assert "\n" not in str(error)
                refused += 1
    assert len(paths) > 30 and refused > len(paths)


@pytest.mark.parametrize("key", ["versions", "loras", "plugins", "inputs", "memory_format"])
def test_damaged_circumstances_are_named(made, key):
    path, _ = made
    rewritten(path, lambda recipe: recipe["made_with"].update({key: 3}))
    with pytest.raises(RecipeNotUsable, match=f"is damaged: {key} is no"):
        recorded(path)


def test_bottomless_recipe_and_endless_picture_are_refused(made):
    path, _ = made
    small = path.read_bytes()
    rewritten(path, lambda recipe: "[" * 100_000)
    with pytest.raises(RecipeNotUsable, match="is not valid JSON"):
        recorded(path)
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + small[24:29]
    path.write_bytes(small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:])
    with pytest.raises(RecipeNotUsable, match="cannot be read as a PNG"):
        recorded(path)


def test_png_damaged_anywhere_is_read_or_refused_in_one_sentence(made):
    path, _ = made
    whole = path.read_bytes()
    chance = random.Random(0)
    for _ in range(150):
        data = bytearray(whole)
        at = chance.randrange(len(data))
        if chance.random() < 0.5:
            del data[at : at + chance.choice((1, 4, len(data)))]
        else:
            data[at] ^= chance.randrange(1, 256)
        path.write_bytes(data)
        with suppress(RecipeNotUsable):
            recorded(path)


def test_missing_plugin_is_named_with_its_distribution(made):
    path, _ = made

    def change(recipe):
        recipe["edits"][0]["name"] = "fog_machine"
        recipe["made_with"]["plugins"]["fog_machine"] = "t2iedit-fog 2.1"

    rewritten(path, change)
    with pytest.raises(RecipeNotUsable, match='not installed: "fog_machine" of t2iedit-fog 2.1'):
        recorded(path)


def test_foreign_missing_and_broken_images_are_one_sentence(made, tmp_path):
    path, _ = made
    foreign, broken, text = (tmp_path / name for name in ("foreign.png", "broken.png", "text.png"))
    Image.new("RGB", (8, 8)).save(foreign)
    broken.write_bytes(path.read_bytes()[:2000])
    text.write_text("hello")
    for wrong, sentence in (
        (foreign, "holds no t2iedit recipe"),
        (broken, "cannot be read as a PNG"),
        (text, "cannot be read as a PNG"),
        (tmp_path / "none.png", "there is no file"),
        (tmp_path, "cannot be read as a PNG"),
    ):
        with pytest.raises(RecipeNotUsable, match=sentence):
            recorded(wrong)


def test_failed_save_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_text("old")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputNotWritable, match="No space left on device"):
        save_image(Image.new("RGB", (8, 8)), path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
