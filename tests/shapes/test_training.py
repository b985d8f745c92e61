"""The trainer: resumes exactly, and makes a folder that plain diffusers runs."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, LCMScheduler, StableDiffusionPipeline
from torch import nn

import t2iedit.shapes.train
from t2iedit.errors import InvalidRequest
from t2iedit.shapes.train import SMOKE, new_accelerator, train_all
from t2iedit.shapes.training.denoiser import (
    new_scheduler,
    new_unet,
    optimizers_for,
    timestep_chances,
)
from t2iedit.shapes.training.loop import Schedule, train
from t2iedit.shapes.training.optimizers import OUTER, FlatMuon, adamw, muon
from t2iedit.shapes.training.scenes_by_step import caption_of, picture, scene
from t2iedit.shapes.training.tokenizer import learn_tokenizer
from t2iedit.shapes.training.turbo import consistency_loss, consistent, from_velocity, levels
from t2iedit.shapes.training.vae import moved

SCHEDULE = Schedule(
    steps=7, batch_size=2, learning_rate=0.1, warmup=2, ema_decay=0.5, save_every=2, log_every=1
)


@pytest.fixture(autouse=True)
def accelerates_anew():
    """accelerate remembers the first accelerator's precision for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Killed(Exception):
    pass


def run(folder, *, dies_at=None, make_optimizers=adamw):
    torch.manual_seed(0)
    module = nn.Linear(3, 1)

    def make_batch(step):
        return {"x": torch.randn(2, 3, generator=torch.Generator().manual_seed(step))}

    def losses(module, batch, step):
        if step == dies_at:
            raise Killed
        return {"square": module(batch["x"]).square().mean()}

    accelerator = Accelerator(cpu=True)
    train(
        accelerator, module, make_batch, losses, SCHEDULE, folder, make_optimizers=make_optimizers
    )
    return module.state_dict()


@pytest.mark.parametrize("make_optimizers", [adamw, muon])
def test_killed_run_ends_as_the_unbroken_one(tmp_path, make_optimizers):
    unbroken = run(tmp_path / "whole", make_optimizers=make_optimizers)
    with pytest.raises(Killed):
        run(tmp_path / "broken", dies_at=5, make_optimizers=make_optimizers)
    resumed = run(tmp_path / "broken", make_optimizers=make_optimizers)
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


def test_a_run_begun_with_other_optimizers_is_not_resumed_with_these(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, dies_at=5, make_optimizers=muon)
    with pytest.raises(InvalidRequest, match="begun with other optimizers"):
        run(tmp_path, make_optimizers=adamw)


@pytest.mark.parametrize(
    ("bfloat16", "precision", "optimizers"), [(True, "bf16", muon), (False, "no", adamw)]
)
def test_a_cpu_without_bfloat16_trains_in_float32_by_adamw(
    monkeypatch, bfloat16, precision, optimizers
):
    monkeypatch.setattr(t2iedit.shapes.train, "computes_in_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    accelerator = new_accelerator()
    assert accelerator.mixed_precision == precision
    assert optimizers_for(accelerator.mixed_precision) is optimizers


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
    few_steps(pipeline, folder)
    further = train_all(SMOKE, tmp_path / "further", start=folder)
    same = [
        (base / "text_encoder" / "model.safetensors").read_bytes() for base in (folder, further)
    ]
    assert same[0] == same[1]
    on = train_all(SMOKE, tmp_path / "on", start=folder, keep_vae=False)
    old, new = (AutoencoderKL.from_pretrained(base / "vae") for base in (folder, on))
    assert old.config.scaling_factor == new.config.scaling_factor
    assert not torch.equal(old.encoder.conv_in.weight, new.encoder.conv_in.weight)


def few_steps(pipeline, folder):
    """The LoRA beside the model loads in plain diffusers too."""
    pipeline.load_lora_weights(folder / "turbo")
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    image = pipeline("a red circle", num_inference_steps=2, guidance_scale=1.0).images[0]
    assert image.size == (128, 128)
    assert sum(path.stat().st_size for path in (folder / "turbo").iterdir()) < 3e6


def test_only_latents_of_plain_scenes_are_held_where_they_were():
    before = torch.zeros(3, 1, 2, 2)
    latents = before + torch.tensor([1.0, 5.0, 3.0]).view(3, 1, 1, 1)
    assert moved(latents, before, torch.tensor([True, False, True])) == (1 + 9) / 2
    assert moved(latents, before, torch.tensor([False] * 3)) == 0


def test_consistency_function_is_the_latents_themselves_at_time_nought():
    student = Guess()
    noisy = torch.randn(2, 4, 3, 3)
    times = torch.tensor([0, 999])
    answer = consistent(student, new_scheduler(), noisy, times, torch.zeros(2))
    assert torch.equal(answer[0], noisy[0])
    # At zero SNR the picture is what the velocity says, -v.
    assert torch.allclose(answer[1], -torch.ones(4, 3, 3), atol=1e-3)


def test_velocity_gives_back_the_picture_and_the_noise():
    scheduler = new_scheduler()
    clean, noise = torch.randn(2, 3, 4, 2, 2)
    times = torch.tensor([19, 499, 999])
    noisy = scheduler.add_noise(clean, noise, times)
    velocity = scheduler.get_velocity(clean, noise, times)
    found = from_velocity(scheduler, noisy, velocity, times)
    assert torch.allclose(found[0], clean, atol=1e-5)
    assert torch.allclose(found[1], noise, atol=1e-5)


class Guess(torch.nn.Module):
    """A denoiser that always answers one."""

    def forward(self, noisy, times, rows):
        return SimpleNamespace(sample=torch.ones_like(noisy))


class Scaled(torch.nn.Module):
    """A denoiser with something to learn."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, noisy, times, rows):
        return SimpleNamespace(sample=self.factor * noisy)


class Knows(torch.nn.Module):
    """A denoiser of the one picture -1 from the one noise .5: v = alpha .5 + sigma."""

    def forward(self, noisy, times, rows):
        alpha, sigma = levels(new_scheduler(), times)
        return SimpleNamespace(sample=alpha * 0.5 + sigma)


def test_a_student_that_knows_the_picture_has_no_loss():
    clean = -torch.ones(20, 1, 1, 1)
    batch = {"latents": clean, "noise": clean * -0.5, "stages": torch.arange(20)}
    rows = torch.zeros(20, 2, 3)
    told = new_scheduler(), batch, rows, rows
    assert consistency_loss(Knows(), Knows(), Knows(), *told) < 1e-4
    assert consistency_loss(Guess(), Knows(), Knows(), *told) > 3e-3


def test_the_target_is_the_averages_answer_and_teaches_nobody_but_the_student():
    clean = -torch.ones(20, 1, 1, 1)
    batch = {"latents": clean, "noise": clean * -0.5, "stages": torch.arange(20)}
    rows = torch.zeros(20, 2, 3)
    student, average = Scaled(), Scaled()
    told = new_scheduler(), batch, rows, rows
    assert consistency_loss(Knows(), average, Knows(), *told) > 1e-3
    consistency_loss(student, average, Knows(), *told).backward()
    assert student.factor.grad is not None and average.factor.grad is None


def test_timesteps_are_drawn_where_shapes_are_decided():
    scheduler = new_scheduler()
    chances = timestep_chances(scheduler)
    assert chances.sum() == pytest.approx(1)
    assert chances.min() >= 0.1 / 1000
    signal = scheduler.alphas_cumprod
    decisive = chances[(signal / (1 - signal) > 0.05) & (signal / (1 - signal) < 10)].sum()
    assert decisive > 0.75


def test_muon_steps_on_a_convolution_as_on_its_matrix():
    torch.manual_seed(0)
    convolution, matrix = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(27, 4, bias=False)
    matrix.weight.data = convolution.weight.data.reshape(4, 27).clone()
    gradient = torch.randn(4, 27)
    for module in (convolution, matrix):
        own = FlatMuon([module.weight], 0.1, 0.0)
        for _ in range(2):
            module.weight.grad = gradient.reshape(module.weight.shape).clone()
            own.step()
            own.zero_grad()
            assert module.weight.grad is None
    assert torch.equal(convolution.weight.reshape(4, 27), matrix.weight)


def test_muon_leaves_vectors_and_outer_layers_to_adamw():
    unet = new_unet(8, channels=(32, 32))
    outer, inner = muon(unet, 1e-3, 0.01)
    count = len(list(unet.parameters()))
    matrices = [name for name, each in unet.named_parameters() if each.ndim > 1]
    apart = [name for name in matrices if name.startswith(OUTER)]
    assert len(inner.flat) == len(matrices) - len(apart)
    assert sum(len(group["params"]) for group in outer.param_groups) == count - len(inner.flat)
    assert len(apart) == 4
