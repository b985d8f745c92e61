"""Learning: the losses, the schedule, resuming exactly, what is saved when it stops, and what cannot be learned."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from random import Random

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from PIL import Image, ImageDraw
from t2iedit_context import inversion
from t2iedit_context.checks import check_settings
from t2iedit_context.diagnostics import mean_similarity
from t2iedit_context.embeddings import read_concept
from t2iedit_context.inversion import EmbeddingStage, initial_vectors
from t2iedit_context.latents import encode_pictures
from t2iedit_context.learning import learn
from t2iedit_context.loop import LearningFailed, LearningInterrupted, Setup
from t2iedit_context.objective import encoded, noise_schedule, predicted
from t2iedit_context.pictures import PicturesNotUsable, prepared, read_pictures
from t2iedit_context.prompts import filled, instance_prompt, read_prompts, regularisation_prompts
from t2iedit_context.settings import PRESETS, Settings

import t2iedit
import t2iedit.cli
from t2iedit import OutputNotWritable, UserError
from t2iedit.plugins import installed
from t2iedit.testing import tiny_model
from t2iedit.tiny import tiny_pipeline

Core = installed().edit("core")
QUICK = {
    "placeholder": "<toy>",
    "category": "cat",
    "batch_size": 2,
    "crops": 4,
    "prompts": ("a red {}", "a {} and a blue dog"),
    "instance": "a photo of a {}",
}


PLAIN = {"embedding_weight": 0, "attention_weight": 0}


def settings(**values):
    return Settings(**(QUICK | {"steps": 4} | values))


def pictures(count=2):
    found = []
    for number in range(count):
        image = Image.new("RGB", (80, 72), (230, 230, 230))
        ImageDraw.Draw(image).ellipse((10 + number, 8, 60, 60), fill=(200, 30 * number, 40))
        found.append(image)
    return found


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    path.mkdir()
    for number, image in enumerate(pictures()):
        image.save(path / f"{number}.png")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learning") / "tiny"
    tiny_pipeline("sd1").save_pretrained(folder)
    (folder / "t2iedit.json").write_text('{"steps": 2, "guidance_scale": 3.0}')
    return str(folder)


def weights(model):
    modules = [c for c in model.pipeline.components.values() if isinstance(c, torch.nn.Module)]
    return {f"{i}.{k}": v.clone() for i, m in enumerate(modules) for k, v in m.state_dict().items()}


def as_before(model, before, processors):
    now = weights(model)
    assert now.keys() == before.keys()
    assert all(torch.equal(now[key], before[key]) for key in before)
    assert model.denoiser.attn_processors == processors
    modules = [c for c in model.pipeline.components.values() if isinstance(c, torch.nn.Module)]
    parameters = [p for m in modules for p in m.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in parameters)
    assert not model.denoiser.is_gradient_checkpointing


def vectors(model, tmp_path, name, given, **options):
    """The learned vectors of a run of its own."""
    path = tmp_path / f"{name}.safetensors"
    return learn(model, pictures(), given, path, **options).concept.vectors


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


# What it does.


def test_concept_is_learned_and_the_model_is_left_as_it_was(model, folder, tmp_path):
    before, processors = weights(model), dict(model.denoiser.attn_processors)
    output = tmp_path / "toy.safetensors"
    learned = learn(model, folder, settings(), output)
    as_before(model, before, processors)
    concept = read_concept(output)
    assert (concept.placeholder, concept.category) == ("<toy>", "cat")
    started = initial_vectors(model, settings())
    for name, value in concept.vectors.items():
        assert torch.equal(value, learned.concept.vectors[name])
        assert (value - started[name]).abs().max() > 1e-3
    assert concept.made["fingerprint"] == model.fingerprint and concept.made["steps done"] == 4
    report = json.loads((tmp_path / "toy.run" / "report.json").read_text())
    assert report == learned.report
    assert set(report["losses"]["embedding"]) == {"diffusion", "embedding", "attention"}
    for facts in report["encoders"].values():
        assert facts["context similarity before"] == 1.0
        assert facts["context similarity after"] < 1.0
    assert not (tmp_path / "toy.run" / "checkpoint.pt").exists()
    request = t2iedit.Request("a red <toy>", steps=2, edits=[Core(concept=[str(output)])])
    assert t2iedit.generate(model, request).report["warnings"] == []


def test_weights_at_zero_are_plain_textual_inversion(sd1, tmp_path, monkeypatch):
    def never(*arguments):
        raise AssertionError("plain inversion has no context losses")

    monkeypatch.setattr(inversion, "context_losses", never)
    plain = settings(**PLAIN)
    report = learn(sd1, pictures(), plain, tmp_path / "x.safetensors").report
    assert list(report["losses"]["embedding"]) == ["diffusion"]


def test_plain_inversion_is_not_rescaled():
    assert settings().rescaling == settings(embedding_weight=0).rescaling == (120, 180)
    for given in (settings(**PLAIN), settings(rescale=(2, 4), **PLAIN)):
        assert given.rescaling == (0, 0)


def stage_of(model, **own):
    given = settings(**own)
    bank = encode_pictures(model, pictures(), 64, 4, 0, augment=True)
    return EmbeddingStage(Setup(model, given, bank, nullcontext, torch.float32))


@pytest.mark.parametrize(
    ("own", "denoised", "encoded_prompts"),
    [
        # The category's side of a pair needs no graph, and is encoded once for all steps.
        ({}, [(4, True), (2, False), (2, True)], 2),
        ({"attention_batch": 4}, [(4, True), (4, False), (4, True)], 2),
        ({"attention_weight": 0}, [(4, True)], 2),
        (PLAIN, [(4, True)], 1),
    ],
)
def test_step_has_as_few_passes_as_it_can(sd1, own, denoised, encoded_prompts):
    stage, seen, read = stage_of(sd1, batch_size=4, prompts=("a red {}",), **own), [], []
    stage.losses(0, 0)
    processors = dict(sd1.denoiser.attn_processors)

    def look(module, args, kwargs):
        rows = kwargs["encoder_hidden_states"]
        seen.append((len(args[0]), rows.requires_grad and torch.is_grad_enabled()))
        opened.append(module.attn_processors != processors)

    opened = []
    sd1.denoiser.register_forward_pre_hook(look, with_kwargs=True)
    sd1.encoders[0].transformer.register_forward_pre_hook(lambda *_: read.append(1))
    stage.losses(1, 0)
    assert seen == denoised and len(read) == encoded_prompts
    # The diffusion loss has the denoiser as it is.
    assert opened == [False] + [True] * (len(denoised) - 1)
    assert sd1.denoiser.attn_processors == processors


def test_denoiser_is_as_before_when_a_step_breaks(sd1, monkeypatch):
    stage, processors = stage_of(sd1), dict(sd1.denoiser.attn_processors)

    def breaks(*arguments):
        if len(arguments[0].shape) == 0 and sd1.denoiser.attn_processors != processors:
            raise RuntimeError

    monkeypatch.setattr(inversion, "accumulate", breaks)
    with pytest.raises(RuntimeError) as kept:
        stage.losses(0, 0)
    # Also while somebody still looks at the traceback.
    assert kept.tb is not None and sd1.denoiser.attn_processors == processors


def test_each_term_has_its_own_effect(sd1, tmp_path):
    given = {
        "full": {},
        "no cer": {"embedding_weight": 0},
        "no car": {"attention_weight": 0},
        "code cer": {"embedding_form": "code"},
        "code car": {"attention_form": "code"},
        "whole batch": {"attention_batch": 2},
    }
    large = {"embedding_weight": 1.0, "attention_weight": 1e4}
    found = [
        vectors(sd1, tmp_path, name, settings(**(large | own)))["clip"]
        for name, own in given.items()
    ]
    for index, one in enumerate(found):
        assert all(not torch.equal(one, other) for other in found[:index])


def test_regularised_concept_lives_better_with_its_context(sd1, tmp_path):
    (encoder,) = sd1.encoders
    prompts = [prompt.replace("{}", "<toy>") for prompt in QUICK["prompts"]]

    def similarity(name, **own):
        given = settings(steps=25, learning_rate=0.05, attention_weight=0, **own)
        found = vectors(sd1, tmp_path, name, given)["clip"]
        return mean_similarity(encoder, prompts, "<toy>", found, "cat")

    plain, regularised = (
        similarity("plain", embedding_weight=0),
        similarity("x", embedding_weight=10),
    )
    assert regularised > plain + 0.01


def test_learning_lowers_the_diffusion_loss(sd1, tmp_path):
    given = settings(steps=40, learning_rate=0.05, **PLAIN)
    bank = encode_pictures(sd1, pictures(), 64, 4, 0, augment=True)
    noisy = bank.draw(16, noise_schedule(sd1), Random(1))

    @torch.no_grad()
    def loss(own):
        stage = EmbeddingStage(Setup(sd1, given, bank, nullcontext, torch.float32))
        embeddings = encoded(sd1, stage._pair("a photo of a {}").tokens, {"<toy>": own})
        return (predicted(sd1, embeddings, noisy) - noisy.target).square().mean().item()

    learned = vectors(sd1, tmp_path, "x", given)
    assert loss(learned) < loss(initial_vectors(sd1, given)) - 1e-4


def test_norm_is_kept_in_the_rescaling_window_only(sd1, tmp_path):
    norms = []
    given = settings(steps=6, rescale=(2, 4), learning_rate=0.5)
    bank = encode_pictures(sd1, pictures(), 64, 4, 0, augment=True)
    stage = EmbeddingStage(Setup(sd1, given, bank, nullcontext, torch.float32))
    for step in range(6):
        with torch.no_grad():
            stage.leaves[0].mul_(1.5)
        stage.finish(step + 1)
        norms.append(stage.leaves[0].norm().item())
    ratios = [b / a for a, b in zip(norms, norms[1:], strict=False)]
    assert ratios == pytest.approx([1.5, 1.0, 1.0, 1.5, 1.5])


def test_several_vectors_and_several_batches_a_step(sd1, tmp_path):
    given = settings(vectors=3, accumulation=2, precision="bf16", steps=2)
    learned = learn(sd1, pictures(), given, tmp_path / "x.safetensors").concept
    assert learned.vectors["clip"].shape == (3, 32) and learned.vectors["clip"].isfinite().all()


def test_accumulated_gradient_is_the_mean_of_the_batches(sd1):
    given = settings(accumulation=2, **PLAIN)
    bank = encode_pictures(sd1, pictures(), 64, 4, 0, augment=True)
    stage = EmbeddingStage(Setup(sd1, given, bank, nullcontext, torch.float32))
    stage.losses(5, 0)
    parts = []
    for part in range(2):
        ((losses),) = stage._passes(Random(f"{given.seed} embedding 5 {part} 0"))
        parts.append(torch.autograd.grad(losses["diffusion"], stage.leaves)[0])
    assert torch.allclose(stage.leaves[0].grad, sum(parts) / 2, rtol=1e-4, atol=1e-9)


def test_processes_learn_from_different_batches(sd1):
    given = settings(**PLAIN)
    bank = encode_pictures(sd1, pictures(), 64, 4, 0, augment=True)
    stage = EmbeddingStage(Setup(sd1, given, bank, nullcontext, torch.float32))
    first, again, other = (stage.losses(0, process) for process in (0, 0, 1))
    assert first == again != other


def test_previews_are_strips_of_the_concept_so_far(sd1, tmp_path):
    sd1.defaults = type(sd1.defaults)(1, 1.0, sd1.defaults.size)
    learn(sd1, pictures(), settings(), tmp_path / "x.safetensors", previews=2)
    strips = sorted((tmp_path / "x.run" / "previews").glob("*.png"))
    assert [path.stem for path in strips] == ["embedding-000002", "embedding-000004"]
    with Image.open(strips[0]) as first, Image.open(strips[1]) as second:
        assert first.width > 3 * 64 and first.tobytes() != second.tobytes()


# The second stage.


def test_lora_stage_is_a_file_that_diffusers_loads(tmp_path):
    sd1 = tiny_model("sd1")
    before, processors = weights(sd1), dict(sd1.denoiser.attn_processors)
    given = settings(finetune_unet="lora", finetune_steps=3, lora_rank=2, finetune_batch_size=2)
    learned = learn(sd1, pictures(), given, tmp_path / "x.safetensors")
    as_before(sd1, before, processors)
    assert learned.unet == tmp_path / "x.lora.safetensors"
    pipeline = tiny_pipeline("sd1")
    request = t2iedit.Request("a red cat", steps=2)
    plain = t2iedit.generate(t2iedit.open_model(pipeline), request).image
    pipeline.load_lora_weights(str(tmp_path), weight_name="x.lora.safetensors")
    tuned = t2iedit.generate(t2iedit.open_model(pipeline), request).image
    assert plain.tobytes() != tuned.tobytes()
    assert set(learned.report["losses"]) == {"embedding", "denoiser"}


def test_full_stage_is_a_model_folder(tmp_path):
    sd1 = tiny_model("sd1")
    before, processors = weights(sd1), dict(sd1.denoiser.attn_processors)
    given = settings(finetune_unet="full", finetune_steps=2, finetune_learning_rate=1e-3)
    learned = learn(sd1, pictures(), given, tmp_path / "x.safetensors")
    as_before(sd1, before, processors)
    tuned = t2iedit.open_model(learned.unet)
    assert tuned.defaults == sd1.defaults
    assert tuned.fingerprint != sd1.fingerprint
    assert isinstance(tuned.pipeline, StableDiffusionPipeline)


# Stopping and going on.


@pytest.mark.parametrize("own", [{}, {"finetune_unet": "lora", "finetune_steps": 4}])
def test_run_that_broke_off_goes_on_exactly(tmp_path, own):
    sd1 = tiny_model("sd1")
    given = settings(rescale=(2, 3), **own)
    whole = learn(sd1, pictures(), given, tmp_path / "whole.safetensors")
    output = tmp_path / "broken.safetensors"
    stage = "denoiser" if own else "embedding"

    class Crash(Exception):
        pass

    def crash(progress):
        if (progress.stage, progress.step) == (stage, 3):
            raise Crash

    with pytest.raises(Crash):
        learn(sd1, pictures(), given, output, save_every=2, on_step=crash)
    assert not output.exists()
    with pytest.raises(UserError, match="unfinished run"):
        learn(sd1, pictures(), given, output)
    resumed = learn(sd1, pictures(), given, output, resume=True)
    assert equal(whole.concept.vectors, resumed.concept.vectors)
    assert whole.report["losses"] == resumed.report["losses"]
    if own:
        assert whole.unet.read_bytes() == resumed.unet.read_bytes()
    again = learn(sd1, pictures(), given, output, resume=True)
    assert again.report == resumed.report and again.notes == ["it was learned already"]


def test_ctrl_c_saves_after_the_step_under_way(sd1, tmp_path):
    output = tmp_path / "x.safetensors"

    def interrupt(progress):
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(LearningInterrupted, match="stopped after step 3 of 4"):
        learn(sd1, pictures(), settings(), output, on_step=interrupt)
    assert signal.getsignal(signal.SIGINT) == before
    assert read_concept(output).made["steps done"] == 3
    resumed = learn(sd1, pictures(), settings(), output, resume=True).concept
    assert equal(resumed.vectors, vectors(sd1, tmp_path, "whole", settings()))


def test_more_steps_can_be_added_when_resuming(sd1, tmp_path):
    output = tmp_path / "x.safetensors"

    def interrupt(progress):
        if progress.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(LearningInterrupted):
        learn(sd1, pictures(), settings(), output, on_step=interrupt)
    longer = learn(sd1, pictures(), settings(steps=6), output, resume=True)
    assert equal(longer.concept.vectors, vectors(sd1, tmp_path, "whole", settings(steps=6)))


def test_loss_that_is_no_number_keeps_the_last_good_concept(sd1, tmp_path, monkeypatch):
    original, calls = inversion.diffusion_loss, []

    def spoiled(*arguments):
        calls.append(1)
        return original(*arguments) * (float("nan") if len(calls) == 3 else 1)

    good = vectors(sd1, tmp_path, "good", settings(steps=2))
    monkeypatch.setattr(inversion, "diffusion_loss", spoiled)
    output = tmp_path / "x.safetensors"
    with pytest.raises(LearningFailed, match="step 3 of 4 .*not finite"):
        learn(sd1, pictures(), settings(), output)
    kept = read_concept(output)
    assert equal(kept.vectors, good) and kept.made["steps done"] == 2


def test_denoiser_that_lets_no_gradient_through_is_refused(sd1, tmp_path):
    def detach(module, args, kwargs):
        return args, kwargs | {"encoder_hidden_states": kwargs["encoder_hidden_states"].detach()}

    sd1.denoiser.register_forward_pre_hook(detach, with_kwargs=True)
    with pytest.raises(UserError, match="no gradient"):
        learn(sd1, pictures(), settings(), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_run_of_other_settings_is_not_taken_up(sd1, tmp_path):
    output = tmp_path / "x.safetensors"

    def interrupt(progress):
        if progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(LearningInterrupted):
        learn(sd1, pictures(), settings(), output, on_step=interrupt)
    for other, sentence in (
        ((pictures(), settings(seed=1)), "had seed=0 and now it is 1"),
        ((pictures(3), settings()), "had pictures="),
    ):
        with pytest.raises(UserError, match=sentence):
            learn(sd1, *other, output, resume=True)
    (tmp_path / "x.run" / "checkpoint.pt").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="damaged"):
        learn(sd1, pictures(), settings(), output, resume=True)


def test_learning_works_outside_the_main_thread(sd1, tmp_path):
    done = []
    thread = threading.Thread(
        target=lambda: done.append(vectors(sd1, tmp_path, "thread", settings(steps=2)))
    )
    thread.start()
    thread.join()
    assert equal(done[0], vectors(sd1, tmp_path, "main", settings(steps=2)))


# What cannot be learned.


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"placeholder": "dog"}, 'placeholder "dog" is a word'),
        ({"placeholder": "my toy"}, "without spaces"),
        ({"placeholder": ""}, "cannot be a placeholder"),
        ({"category": "zeppelin"}, "tokens for the encoder"),
        ({"category": ""}, "is 0 tokens"),
        ({"prompts": ("a <toy> and a {}",)}, "holds the placeholder itself"),
        ({"prompts": ("a " * 80 + "{}",)}, "too long"),
        ({"resolution": 60}, "multiples of"),
    ],
)
def test_what_the_encoders_cannot_take_is_refused(model, own, sentence):
    with pytest.raises(UserError, match=sentence):
        check_settings(model, settings(**own))


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"steps": 0}, "steps=0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"prompts": ("a toy",)}, "exactly once"),
        ({"prompts": ("{} {}",)}, "exactly once"),
        ({"rescale": (5, 4)}, "rescale=5..4"),
        ({"rescale": (-1, 4)}, "rescale=-1..4"),
        ({"attention_batch": 3}, "more than batch_size"),
        ({"kind": "alien"}, "kind='alien'"),
        ({"colour": 1}, 'no setting "colour"'),
    ],
)
def test_settings_that_cannot_be_are_refused(own, sentence):
    with pytest.raises(UserError, match=sentence):
        settings(**own)


def test_pictures_that_cannot_be_read_are_named(folder):
    (folder / "notes.txt").write_text("not a picture")
    (folder / "1b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(PicturesNotUsable, match="1b.png.*--skip-broken"):
        read_pictures(folder)
    found, notes = read_pictures(folder, skip_broken=True)
    assert len(found) == 2 and len(notes) == 1 and "1b.png" in notes[0]


def test_folder_without_pictures_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(PicturesNotUsable):
            read_pictures(path)
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(PicturesNotUsable, match="no readable pictures"):
        read_pictures(tmp_path, skip_broken=True)


def test_output_that_cannot_be_written_is_refused_first(sd1, tmp_path):
    (tmp_path / "file").write_text("")
    closed = Path("/proc/x.safetensors")
    for output in (tmp_path, tmp_path / "file" / "x.safetensors", tmp_path / "x.png", closed):
        with pytest.raises(OutputNotWritable):
            learn(sd1, pictures(), settings(), output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_prompts_are_read_from_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# mine\n\na red {}\n  a {} in fog  \n")
    assert read_prompts(path) == ("a red {}", "a {} in fog")
    for text, sentence in (("", "0 prompts"), ("a red {}\na cat\n", "line 2")):
        path.write_text(text)
        with pytest.raises(UserError, match=sentence):
            read_prompts(path)
    with pytest.raises(UserError, match="cannot read the prompts"):
        read_prompts(tmp_path / "missing")


def test_full_disc_stops_the_run_and_leaves_no_rest(sd1, tmp_path):
    output = tmp_path / "x.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OutputNotWritable, match="checkpoint.pt"):
            learn(sd1, pictures(), settings(), output, save_every=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not any(".attn2." in n and "Opened" in repr(p) for n, p in processors(sd1))


def test_disc_that_fills_up_later_leaves_the_last_checkpoint(sd1, tmp_path):
    output = tmp_path / "x.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress):
        if progress.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))

    try:
        with pytest.raises(OutputNotWritable, match="last checkpoint is kept"):
            learn(sd1, pictures(), settings(), output, save_every=2, on_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resumed = learn(sd1, pictures(), settings(), output, resume=True).concept
    assert equal(resumed.vectors, vectors(sd1, tmp_path, "whole", settings()))


def processors(model):
    return model.denoiser.attn_processors.items()


# What it learns from.


@pytest.mark.parametrize("kind", ["animate", "inanimate", "style", "shape", "texture"])
def test_every_kind_has_prompts_of_its_own(kind):
    prompts = regularisation_prompts(kind)
    assert len(prompts) == len(set(prompts)) >= 50
    assert all(prompt.count("{}") == 1 for prompt in (*prompts, instance_prompt(kind)))


def test_article_is_that_of_what_is_said():
    assert filled("a photo of a {}", "owl") == "a photo of an owl"
    assert filled("a {} and a cat", "<x>", "owl") == "an <x> and a cat"
    assert filled("a {}", "<owl>") == "a <owl>"


def test_pictures_are_turned_but_keep_size_and_range():
    image = pictures()[0]
    plain = prepared(image, 64, None)
    turned = [prepared(image, 64, Random(seed)) for seed in range(4)]
    for made in (plain, *turned):
        assert made.shape == (3, 64, 64) and made.min() >= -1 and made.max() <= 1
    assert all(not torch.equal(plain, made) for made in turned)
    assert torch.equal(prepared(image, 64, Random(2)), turned[2])
    # What turning lays bare is filled from the picture, not with black.
    assert min(made.mean(dim=0).min().item() for made in turned) > -0.99


def test_presets_are_settings():
    for values in PRESETS.values():
        Settings(**({"placeholder": "<toy>", "category": "cat"} | values))


# Test-time optimisation.


def test_test_time_optimisation_fits_the_concept_into_its_prompt(model, tmp_path):
    output = tmp_path / "x.safetensors"
    learn(model, pictures(), settings(learning_rate=0.5, embedding_weight=0), output)
    before, processors = weights(model), dict(model.denoiser.attn_processors)

    def run(**own):
        edit = Core(concept=[str(output)], **own)
        request = t2iedit.Request("a red <toy>", steps=2, edits=[edit], negative="a <toy>")
        started = t2iedit.start(model, request)
        return t2iedit.condition([started])[0], started.report["edits"][0]

    fitted, report = run(optimise=5, learning_rate=0.02, embedding_weight=1, attention_weight=0)
    told = report["optimised"]
    assert told["losses after"]["embedding"] < told["losses before"]["embedding"]
    plain, _ = run()
    assert not torch.equal(fitted.prompt[0].hidden, plain.prompt[0].hidden)
    assert torch.equal(fitted.negative[0].hidden, plain.negative[0].hidden)
    as_before(model, before, processors)
    both, report = run(optimise=1)
    assert set(report["optimised"]["losses before"]) == {"embedding", "attention"}
    assert not torch.equal(both.prompt[0].hidden, plain.prompt[0].hidden)
    as_before(model, before, processors)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_family_without_a_unet_is_refused(family):
    with pytest.raises(UserError, match=f'"{family}" cannot learn concepts; give one of SD 1.x'):
        check_settings(tiny_model(family), settings())


def test_denoiser_of_an_inpainting_checkpoint_is_refused(sd1):
    sd1.denoiser.register_to_config(in_channels=9)
    with pytest.raises(UserError, match="reads 9 channels and a picture has 4"):
        check_settings(sd1, settings())


def test_test_time_optimisation_needs_a_category_and_an_unchanged_denoiser(sd1, tmp_path):
    output = tmp_path / "x.bin"
    learn(sd1, pictures(), settings(steps=1), output)
    request = t2iedit.Request("a <toy>", edits=[Core(concept=[str(output)], optimise=1)])
    with pytest.raises(t2iedit.EditNotSupported, match="names no category"):
        t2iedit.start(sd1, request)

    class Patch(t2iedit.Edit):
        name = "patch"

        def patch_model(self, model):
            return None

    request = request.model_copy(update={"edits": (*request.edits, Patch())})
    with pytest.raises(t2iedit.EditNotSupported, match="that patch has changed"):
        t2iedit.start(sd1, request)


# The command line.


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = t2iedit.cli.main(["core", *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


LEARN = ("--placeholder", "<toy>", "--category", "cat", "--crops", "2", "--batch-size", "2")


def test_commands_learn_show_and_convert(cli, folder, tiny):
    code, out, err = cli(
        "learn",
        folder,
        *LEARN,
        "-m",
        tiny,
        "--steps",
        "2",
        "-o",
        "toy.safetensors",
        "--previews",
        0,
    )
    assert (code, out, err) == (0, "toy.safetensors\n", "")
    code, out, _ = cli("show", "toy.safetensors", "-m", tiny, "--json")
    shown = json.loads(out)
    assert shown["placeholder"] == "<toy>" and shown["vectors"] == {"clip": [1, 32]}
    assert shown["made"]["steps done"] == 2 and "cat" in str(shown["clip"]["nearest words"])
    assert cli("convert", "toy.safetensors", "-o", "toy.pt", "--placeholder", "<it>")[0] == 0
    assert cli("convert", "toy.pt", "-o", "back.safetensors", "--category", "cat")[0] == 0
    back, first = read_concept("back.safetensors"), read_concept("toy.safetensors")
    assert (back.placeholder, back.category) == ("<it>", "cat") and equal(
        back.vectors, first.vectors
    )


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        (("--category", "zeppelin"), "tokens for the encoder"),
        (("--rescale", "now"), "--rescale now"),
        (("--steps", "0"), "steps=0"),
        (("--save-every", "0"), "--save-every 0"),
        (("--prompts", "missing.txt"), "cannot read the prompts"),
    ],
)
def test_mistakes_cost_one_sentence(cli, folder, tiny, own, sentence):
    code, out, err = cli("learn", folder, *LEARN, "-m", tiny, "-o", "x.safetensors", *own)
    assert (code, out) == (2, "") and sentence in err and err.count("\n") == 1


def command(tiny, folder, output, *own, steps=150):
    return [
        *("-m", "t2iedit", "core", "learn", str(folder), *LEARN, "-m", tiny, "--previews", "0"),
        *("--steps", str(steps), "--save-every", "5", "-o", str(output), *own),
    ]


@pytest.mark.slow
def test_killed_run_goes_on_as_if_unbroken(tmp_path, folder, tiny):
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    subprocess.run([sys.executable, *command(tiny, folder, whole)], check=True)
    process = subprocess.Popen([sys.executable, *command(tiny, folder, killed)])
    while not (tmp_path / "killed.run" / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not killed.exists()
    subprocess.run([sys.executable, *command(tiny, folder, killed, "--resume")], check=True)
    assert equal(read_concept(whole).vectors, read_concept(killed).vectors)


@pytest.mark.slow
def test_two_processes_learn_together(tmp_path, folder, tiny):
    output = tmp_path / "x.safetensors"
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    arguments = command(tiny, folder, output, steps=4)
    subprocess.run([sys.executable, *launch, *arguments], check=True, env=environment)
    concept = read_concept(output)
    assert concept.made["processes"] == 2 and concept.made["steps done"] == 4
    log = [json.loads(line) for line in (tmp_path / "x.run" / "log.jsonl").read_text().splitlines()]
    alone = tmp_path / "alone.safetensors"
    subprocess.run([sys.executable, *command(tiny, folder, alone, steps=4)], check=True)
    assert not equal(concept.vectors, read_concept(alone).vectors)
    assert [row["step"] for row in log] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [
        (Image.new("RGB", (8, 4000)), "times as long"),
        (Image.new("I;16", (64, 64)), "more than 8 bits"),
    ],
)
def test_pictures_that_would_be_misread_or_fill_the_memory_are_refused(tmp_path, picture, sentence):
    picture.save(tmp_path / "x.png")
    with pytest.raises(PicturesNotUsable, match=sentence):
        read_pictures(tmp_path)


def test_lora_of_ones_own_is_not_lost(tmp_path):
    pipeline = tiny_pipeline("sd1")
    pipeline.unet.add_adapter(LoraConfig(target_modules=["to_q"]), adapter_name="mine")
    model = t2iedit.open_model(pipeline)
    with pytest.raises(UserError, match="LoRA is on this denoiser"):
        learn(model, pictures(), settings(finetune_unet="lora"), tmp_path / "x.safetensors")
    assert any("lora" in name for name in pipeline.unet.state_dict())


def test_run_that_stops_early_leaves_an_earlier_concept_alone(sd1, tmp_path):
    output = tmp_path / "x.safetensors"
    good = learn(sd1, pictures(), settings(steps=2), output).concept

    def interrupt(progress):
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)

    other = settings(steps=4, seed=5)
    with pytest.raises(LearningInterrupted, match="unfinished.safetensors"):
        learn(sd1, pictures(), other, output, on_step=interrupt)
    assert equal(read_concept(output).vectors, good.vectors)
    unfinished = output.with_name("x.run") / "unfinished.safetensors"
    assert read_concept(unfinished).made["steps done"] == 3
    done = learn(sd1, pictures(), other, output, resume=True).concept
    assert equal(read_concept(output).vectors, done.vectors) and not unfinished.exists()
