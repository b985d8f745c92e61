"""Opening models, patches and their undoing."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import t2iedit
from t2iedit import opening
from t2iedit.errors import InvalidRequest, ModelNotUsable
from t2iedit.opening import faster_format, open_model, set_memory_format
from t2iedit.tiny import tiny_pipeline

REQUEST = t2iedit.Request("a red cat", steps=2)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sd1"
    tiny_pipeline("sd1").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


class Scale(t2iedit.Edit):
    """Multiplies the denoiser's last bias, to have something to undo."""

    name = "scale"

    class Options(t2iedit.Options):
        by: float = 2.0

    def patch_model(self, model):
        bias = model.denoiser.conv_out.bias
        before = bias.clone()
        log.append(("on", self.options.by))
        bias.add_(self.options.by)

        def undo():
            log.append(("off", self.options.by))
            bias.copy_(before)

        return undo


log: list = []


@pytest.fixture(autouse=True)
def _empty_log():
    log.clear()


def pixels(model, *edits):
    request = REQUEST.model_copy(update={"edits": edits})
    return np.asarray(t2iedit.generate(model, request).image)


def test_patch_stays_while_the_next_request_wants_it(sd1):
    pixels(sd1, Scale(by=2))
    pixels(sd1, Scale(by=2))
    assert log == [("on", 2)]


def test_patches_are_undone_in_reverse_down_to_the_first_difference(sd1):
    pixels(sd1, Scale(by=1), Scale(by=2), Scale(by=3))
    log.clear()
    pixels(sd1, Scale(by=1), Scale(by=4))
    assert log == [("off", 3), ("off", 2), ("on", 4)]


def test_patch_is_undone_bit_for_bit(sd1):
    before = pixels(sd1)
    assert not np.array_equal(before, pixels(sd1, Scale()))
    assert np.array_equal(before, pixels(sd1))


def test_patch_that_fails_half_way_leaves_those_before_undoable(sd1):
    class Fails(t2iedit.Edit):
        name = "fails"

        def patch_model(self, model):
            raise RuntimeError("no")

    before = pixels(sd1)
    with pytest.raises(RuntimeError, match="no"):
        pixels(sd1, Scale(), Fails())
    assert np.array_equal(before, pixels(sd1))


def test_opening_freezes_every_module(model):
    modules = [c for c in model.pipeline.components.values() if isinstance(c, torch.nn.Module)]
    assert modules and not any(m.training for m in modules)
    assert not any(p.requires_grad for m in modules for p in m.parameters())


def test_folder_opens_and_paints_what_the_pipeline_paints(saved):
    opened, live = open_model(saved), open_model(tiny_pipeline("sd1"))
    assert opened.fingerprint == live.fingerprint
    assert np.array_equal(pixels(opened), pixels(live))


def test_fingerprint_tells_weights_apart(sd1):
    assert sd1.fingerprint != open_model(tiny_pipeline("sd1", seed=1)).fingerprint
    assert sd1.fingerprint == open_model(tiny_pipeline("sd1")).fingerprint


def test_folder_may_say_its_steps_and_guidance(folder):
    (folder / "t2iedit.json").write_text(json.dumps({"steps": 4, "guidance_scale": 1.5}))
    defaults = open_model(folder).defaults
    assert (defaults.steps, defaults.guidance_scale, defaults.size) == (4, 1.5, (64, 64))


@pytest.mark.parametrize("text", ["{", "[]", '{"steps": 0}', '{"guidance_scale": "much"}'])
def test_settings_that_make_no_sense_are_one_sentence(folder, text):
    (folder / "t2iedit.json").write_text(text)
    with pytest.raises(ModelNotUsable, match="t2iedit.json"):
        open_model(folder)


def test_index_that_is_no_object_is_one_sentence(folder):
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(ModelNotUsable, match="no JSON object"):
        open_model(folder)


def test_defaults_are_the_pipelines_own(sd1, sdxl):
    assert (sd1.defaults.steps, sd1.defaults.guidance_scale) == (50, 7.5)
    assert (sdxl.defaults.steps, sdxl.defaults.guidance_scale) == (50, 5.0)


def test_turbo_scheduler_means_one_step_without_guidance():
    pipeline = tiny_pipeline("sdxl")
    pipeline.scheduler = type(pipeline.scheduler).from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    assert open_model(pipeline).defaults.steps == 1
    assert open_model(pipeline).defaults.guidance_scale == 0


def test_euler_from_pure_noise_is_no_turbo():
    pipeline = tiny_pipeline("sdxl")
    pipeline.scheduler = type(pipeline.scheduler).from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    assert open_model(pipeline).defaults.steps == 50


def test_dtype_and_format_are_as_asked(saved):
    model = open_model(saved, dtype="bfloat16", memory_format="channels_last")
    assert model.dtype == torch.bfloat16 and model.memory_format == "channels_last"


def test_memory_format_is_reported(model):
    for name in ("channels_last", "contiguous"):
        set_memory_format(model.denoiser, name)
        assert model.memory_format == name


def test_memory_format_of_large_denoisers_is_the_faster_by_far(model, monkeypatch):
    seconds = {"contiguous": 5.0, "channels_last": 1.0}
    monkeypatch.setattr(opening, "LARGE", 0)
    opening._time_once(model)
    monkeypatch.setattr(opening, "_time_once", lambda model: seconds[model.memory_format])
    assert faster_format(model) == "channels_last"
    seconds["channels_last"] = 4.9
    assert faster_format(model) == "contiguous"


def test_memory_format_of_small_denoisers_is_not_left_to_chance(sd1, monkeypatch):
    monkeypatch.setattr(opening, "_time_once", lambda model: pytest.fail("timed"))
    assert faster_format(sd1) == "contiguous"


@pytest.mark.parametrize("size", [(60, 64), (64, 4), (0, 64)])
def test_impossible_size_is_refused_with_the_nearest(sd1, size):
    with pytest.raises(InvalidRequest, match="multiples of 8, for instance"):
        t2iedit.start(sd1, t2iedit.Request("a cat", size=size))


def test_other_sizes_work(sd1):
    image = t2iedit.generate(sd1, t2iedit.Request("a cat", steps=1, size=(72, 40))).image
    assert image.size == (72, 40)


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere", "a/b/c", "/nowhere/at/all"])
def test_missing_model_is_one_sentence(name):
    with pytest.raises(ModelNotUsable, match="there is no model"):
        open_model(name)


def damage_nothing(folder):
    (folder / "model_index.json").unlink()


def damage_index(folder):
    (folder / "model_index.json").write_text("{")


def damage_missing_part(folder):
    shutil.rmtree(folder / "unet")


def damage_missing_weights(folder):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def damage_cut_weights(folder):
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def damage_config(folder):
    (folder / "vae" / "config.json").write_text("not json")


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing,
        damage_index,
        damage_missing_part,
        damage_missing_weights,
        damage_cut_weights,
        damage_config,
    ],
)
def test_damaged_checkpoint_is_one_sentence(folder, damage):
    damage(folder)
    with pytest.raises(ModelNotUsable, match="the model") as caught:
        open_model(folder)
    assert "\n" not in str(caught.value)


def test_foreign_pipeline_is_refused_by_name():
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    with pytest.raises(ModelNotUsable, match="is a DDPMPipeline, which no installed plugin knows"):
        open_model(DDPMPipeline(unet, DDPMScheduler()))


def test_unknown_dtype_is_refused(saved):
    with pytest.raises(ModelNotUsable, match='"float7" is no dtype'):
        open_model(saved, dtype="float7")
