"""Model folders: whatever is missing or damaged is one sentence, and nothing is made up in its place."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2iedit.errors import ModelNotUsable
from t2iedit.opening import open_model, set_memory_format
from t2iedit.tiny import tiny_pipeline

ENCODER = "text_encoder/model.safetensors"
DECODER = "vae/diffusion_pytorch_model.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
NO_OBJECTS = ("", "{", "[]", "null", "3", '"x"', "[" * 100_000)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders") / "sd2"
    tiny_pipeline("sd2").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def refusal(folder):
    with pytest.raises(ModelNotUsable) as caught:
        open_model(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence and str(folder) in sentence
    return sentence


@pytest.mark.parametrize("text", NO_OBJECTS)
def test_configuration_that_is_no_json_object_is_named(folder, text, monkeypatch):
    """Libraries read some of these as the name of a model, and ask the hub for it."""
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("asked the network"))
    for file in ("model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json"):
        whole = (folder / file).read_text()
        (folder / file).write_text(text)
        assert f"has no readable {file}" in refusal(folder)
        (folder / file).write_text(whole)
    open_model(folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        *((text, "has no readable t2iedit.json") for text in NO_OBJECTS),
        ('{"steps": "many"}', "says steps='many'"),
        ('{"steps": 0}', "says steps=0"),
        ('{"guidance_scale": NaN}', "says guidance_scale=nan"),
        ('{"guidance_scale": -1}', "says guidance_scale=-1"),
    ],
)
def test_damaged_settings_are_refused(folder, text, sentence):
    (folder / "t2iedit.json").write_text(text)
    assert sentence in refusal(folder)


def test_settings_may_say_one_thing_or_others(folder):
    (folder / "t2iedit.json").write_text('{"steps": 3, "colour": "red"}')
    defaults = open_model(folder).defaults
    assert (defaults.steps, defaults.guidance_scale) == (3, 7.5)


def test_tokenizer_without_its_vocabulary_is_refused(folder):
    """transformers would make up an empty one, and every word would be the same token."""
    (folder / "tokenizer" / "tokenizer.json").unlink()
    assert "lacks merges.txt and vocab.json of its tokenizer" in refusal(folder)


def test_tokenizer_in_files_of_the_older_kind_opens_and_needs_both(folder):
    expected = open_model(folder).encoders[0].tokenize("a red cat").ids
    whole = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(whole["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in whole["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    assert torch.equal(open_model(folder).encoders[0].tokenize("a red cat").ids, expected)
    (folder / "tokenizer" / "merges.txt").unlink()
    assert "cannot be loaded" in refusal(folder)


def test_tokenizer_without_its_configuration_is_refused(folder):
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(ModelNotUsable, match="does not say how many tokens"):
        open_model(folder)


@pytest.mark.parametrize("file", [ENCODER, DECODER, UNET])
def test_weights_with_a_tensor_missing_are_refused(folder, file):
    """transformers would fill in random values, without a word."""
    weights = load_file(folder / file)
    del weights[sorted(weights)[0]]
    save_file(weights, folder / file)
    assert ("lacks 1 of the" if file == ENCODER else "cannot be loaded") in refusal(folder)


@pytest.mark.parametrize(("file", "other"), [(ENCODER, DECODER), (DECODER, UNET), (UNET, ENCODER)])
def test_weights_of_another_part_are_refused(folder, file, other):
    shutil.copy(folder / other, folder / file)
    assert "lacks" in refusal(folder) or "cannot be loaded" in refusal(folder)


def test_encoder_with_more_layers_than_weights_is_refused(folder):
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    (folder / "text_encoder" / "config.json").write_text(
        json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] + 1})
    )
    assert "of its text_encoder; fetch or copy it again" in refusal(folder)


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_whole_folders_of_every_family_open(family, tmp_path):
    """Weights that are tied, as T5's are, stand in the file once."""
    pipeline = tiny_pipeline(family)
    pipeline.save_pretrained(tmp_path / "model")
    assert open_model(tmp_path / "model").fingerprint == open_model(pipeline).fingerprint


def test_pipeline_without_its_text_encoder_is_refused():
    pipeline = tiny_pipeline("sdxl")
    pipeline.text_encoder = None
    with pytest.raises(ModelNotUsable, match="XLPipeline has no text_encoder; open it with all"):
        open_model(pipeline)


def test_unknown_memory_format_is_refused(sd1):
    with pytest.raises(
        ModelNotUsable, match='memory_format is contiguous or channels_last, not "x"'
    ):
        set_memory_format(sd1.denoiser, "x")


def test_unknown_encoder_is_named_with_those_there_are(sdxl):
    with pytest.raises(ValueError, match='no encoder "t5"; it has clip_l, clip_g'):
        sdxl.encoder("t5")


def test_what_is_no_weights_among_the_weights_is_damage(folder):
    (folder / "text_encoder" / "copy.safetensors").write_bytes(b"half a file")
    assert "cannot be loaded" in refusal(folder)


def test_size_that_a_configuration_leaves_out_is_64_latents(folder):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": None}))
    model = open_model(folder)
    assert model.defaults.size == (64 * model.pipeline.vae_scale_factor,) * 2
