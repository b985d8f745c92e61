"""The trainer: resumes exactly, and makes a folder that plain diffusers runs."""

import json

import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from torch import nn

from t2iedit.shapes.train import SMOKE, train_all
from t2iedit.shapes.training.loop import Schedule, train
from t2iedit.shapes.training.scenes_by_step import caption_of, picture, scene
from t2iedit.shapes.training.tokenizer import learn_tokenizer

SCHEDULE = Schedule(
    steps=7, batch_size=2, learning_rate=0.1, warmup=2, ema_decay=0.5, save_every=2, log_every=1
)


class Killed(Exception):
    pass


def run(folder, *, dies_at=None):
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def make_batch(step):
        return {"x": torch.randn(2, 3, generator=torch.Generator().manual_seed(step))}

    def losses(module, batch, step):
        if step == dies_at:
            raise Killed
        return {"square": module(batch["x"]).square().mean()}

    train(Accelerator(cpu=True), module, make_batch, losses, SCHEDULE, folder)
    return module.state_dict()


def test_killed_run_ends_as_the_unbroken_one(tmp_path):
    unbroken = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "broken", dies_at=5)
    resumed = run(tmp_path / "broken")
    assert all(torch.equal(unbroken[key], resumed[key]) for key in unbroken)
    rows = [
        json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert {"square", "images_per_second"} <= set(rows[0])


def test_finished_run_is_not_trained_again(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path, dies_at=0)
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_scene_of_a_number_is_always_the_same():
    assert scene(7) == scene(7) != scene(8)
    assert (picture(7, 32) == picture(7, 32)).all()
    assert caption_of(7, 1) == caption_of(7, 1)
    assert len({caption_of(7, step) for step in range(8)}) > 1


def test_tokenizer_knows_the_worlds_words_whole_and_splits_others():
    tokenizer = learn_tokenizer(2000)
    world = "a striped purple triangle left of an orange diamond on a brown background"
    assert len(tokenizer.tokenize(world)) == len(world.split())
    assert len(tokenizer.tokenize("hexagonal")) > 1
    encoded = tokenizer(world, padding="max_length", return_offsets_mapping=True)
    assert len(encoded.input_ids) == 77 and encoded.input_ids[-1] == tokenizer.eos_token_id
    assert encoded.offset_mapping[2] == (2, 9)


@pytest.mark.slow
def test_smoke_run_makes_a_folder_that_plain_diffusers_paints_with(tmp_path):
    folder = train_all(SMOKE, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red circle", num_inference_steps=2).images[0]
    assert image.size == (128, 128)
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 40e6
    assert train_all(SMOKE, tmp_path) == folder
