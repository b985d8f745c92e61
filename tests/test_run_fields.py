"""How a run is run: schedulers, layers, pipelines that their owners changed, weights that wait elsewhere."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image
from torch import nn

import t2iedit
from t2iedit.errors import EditNotSupported, InvalidRequest, ModelNotUsable
from t2iedit.plugins import installed
from t2iedit.testing import tiny_model
from t2iedit.tiny import tiny_pipeline

Decor = installed().edit("decor")
PROMPT = "a red cat and a blue dog"


def pixels(image):
    return np.asarray(image).astype(int)


def painted(model, *edits, **values):
    return pixels(
        t2iedit.generate(model, t2iedit.Request(PROMPT, steps=3, edits=edits, **values)).image
    )


# Schedulers.


@pytest.mark.parametrize(
    "name", ["euler_a", "EulerAncestralDiscrete", "EulerAncestralDiscreteScheduler"]
)
def test_scheduler_is_used_and_put_back(model, name):
    own = model.pipeline.scheduler
    image = painted(model, scheduler=name, seed=4)
    assert model.pipeline.scheduler is own
    model.pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(own.config)
    expected = model.pipeline(
        PROMPT, num_inference_steps=3, generator=torch.Generator().manual_seed(4)
    ).images[0]
    assert np.array_equal(image, pixels(expected))


# The numerical libraries behind single schedulers warn of each other.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_short_name_works_or_says_what_it_needs(sd1):
    from t2iedit.schedulers import SHORT

    for name in SHORT:
        report = t2iedit.generate(sd1, t2iedit.Request(PROMPT, steps=4, scheduler=name)).report
        assert report["run"]["scheduler"].startswith(SHORT[name][0])
    karras = painted(sd1, scheduler="euler_karras")
    assert not np.array_equal(karras, painted(sd1, scheduler="euler"))


def test_scheduler_is_put_back_after_a_failure_and_an_unknown_one_refused(sd1):
    own = sd1.pipeline.scheduler

    def fail(progress):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        t2iedit.generate(sd1, t2iedit.Request(PROMPT, scheduler="heun"), on_step=fail)
    assert sd1.pipeline.scheduler is own
    with pytest.raises(InvalidRequest, match='"eular"; did you mean "euler"'):
        painted(sd1, scheduler="eular")


def test_own_scheduler_of_a_live_pipeline_is_kept():
    pipeline = tiny_pipeline("sd1")
    pipeline.scheduler = mine = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    model = t2iedit.open_model(pipeline)
    result = t2iedit.generate(model, t2iedit.Request(PROMPT, steps=2))
    assert (
        pipeline.scheduler is mine and result.report["run"]["scheduler"] == "EulerDiscreteScheduler"
    )


# Layers.


def test_clip_skip_reads_what_a_shorter_encoder_gives(sd1):
    skipped = t2iedit.encode(sd1, PROMPT, clip_skip=1).prompt[0].hidden
    transformer = sd1.pipeline.text_encoder
    holder = getattr(transformer, "text_model", transformer)
    holder.encoder.layers = nn.ModuleList(list(holder.encoder.layers)[:-1])
    shorter = t2iedit.encode(sd1, PROMPT).prompt[0].hidden
    assert torch.allclose(skipped, shorter, atol=1e-5)


def test_clip_skip_on_sdxl_is_diffusers_own(sdxl):
    image = painted(sdxl, clip_skip=1, seed=2)
    expected = sdxl.pipeline(
        PROMPT, clip_skip=1, num_inference_steps=3, generator=torch.Generator().manual_seed(2)
    ).images[0]
    # diffusers skips layers of the prompt alone; t2iedit of both sides, so compare where there is no other side.
    assert not np.array_equal(image, painted(sdxl, seed=2))
    unguided = painted(sdxl, clip_skip=1, seed=2, guidance_scale=1)
    direct = sdxl.pipeline(
        PROMPT,
        clip_skip=1,
        guidance_scale=1,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(2),
    ).images[0]
    assert np.array_equal(unguided, pixels(direct))
    assert np.array_equal(image, pixels(expected))


def test_layers_are_read_again_as_before_after_a_failure(model):
    before = model.encoders
    with pytest.raises(RuntimeError, match="stop"), model.skipping(1):
        assert model.encoders != before
        raise RuntimeError("stop")
    assert model.encoders is before


def test_clip_skip_of_nothing_changes_nothing_and_of_too_much_is_refused(model):
    assert np.array_equal(painted(model, clip_skip=0), painted(model))
    with pytest.raises(InvalidRequest, match="has 3 layers; skip fewer"):
        painted(model, clip_skip=4)
    assert all(encoder.layer in (None, -2) for encoder in model.encoders)


def test_edits_see_the_layer_that_is_read(sd1):
    held = t2iedit.encode(
        sd1, PROMPT, clip_skip=1, edits=[Decor(undesired=["a red cat"], alpha=1.0)]
    )
    with sd1.skipping(1):
        encoder = sd1.encoder("clip")
        unwanted = encoder.encode(encoder.tokenize("a red cat"))
    words = unwanted.hidden[unwanted.tokens.words]
    product = held.prompt[0].hidden[1:].double() @ words.double().T
    assert product.abs().max() < 1e-3
    assert held.origin.encoders[0].layer == -2


def test_runs_of_different_layers_are_encoded_apart(sd1):
    requests = [t2iedit.Request(PROMPT, steps=1, clip_skip=skip) for skip in (None, 1, None)]
    together = t2iedit.condition([t2iedit.start(sd1, request) for request in requests])
    for request, mine in zip(requests, together, strict=True):
        assert torch.allclose(
            mine.prompt[0].hidden, t2iedit.encode(sd1, request).prompt[0].hidden, atol=1e-5
        )


# Pipelines that begin from something.


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("sd1", StableDiffusionImg2ImgPipeline),
        ("sd1", StableDiffusionInpaintPipeline),
        ("sdxl", StableDiffusionXLImg2ImgPipeline),
        ("sdxl", StableDiffusionXLInpaintPipeline),
    ],
)
def test_image_to_image_and_inpainting_go_through_the_same_call(family, kind):
    base = tiny_pipeline(family)
    extra = {"requires_safety_checker": False} if family == "sd1" else {}
    pipeline = kind(**base.components, **extra)
    pipeline.set_progress_bar_config(disable=True)
    model = t2iedit.open_model(pipeline)
    inputs = {"image": Image.new("RGB", (64, 64), "red"), "strength": 0.7}
    if "Inpaint" in kind.__name__:
        inputs["mask_image"] = Image.new("L", (64, 64), 255)
    request = t2iedit.Request(PROMPT, steps=6, seed=3)
    mine = pixels(t2iedit.generate(model, request, **inputs).image)
    direct = pipeline(
        PROMPT, num_inference_steps=6, generator=torch.Generator().manual_seed(3), **inputs
    ).images[0]
    assert np.array_equal(mine, pixels(direct))
    windowed = request.model_copy(update={"edits": (Decor(undesired=["fog"], start=0.5),)})
    assert not np.array_equal(mine, pixels(t2iedit.generate(model, windowed, **inputs).image))


def test_what_a_pipeline_does_not_take_is_refused(sd1):
    with pytest.raises(InvalidRequest, match="takes no strength"):
        t2iedit.generate(sd1, t2iedit.Request(PROMPT), strength=0.5)


def test_controlnet_goes_through_the_same_call():
    base = tiny_pipeline("sd1")
    pipeline = StableDiffusionControlNetPipeline(
        **base.components,
        controlnet=ControlNetModel.from_unet(base.unet, conditioning_channels=3),
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        for parameter in pipeline.controlnet.parameters():
            parameter.add_(0.02)
    model = t2iedit.open_model(pipeline)
    picture = Image.new("RGB", (64, 64), "blue")
    request = t2iedit.Request(PROMPT, steps=2, seed=3)
    mine = pixels(t2iedit.generate(model, request, image=picture).image)
    direct = pipeline(
        PROMPT, image=picture, num_inference_steps=2, generator=torch.Generator().manual_seed(3)
    ).images[0]
    assert np.array_equal(mine, pixels(direct))


def with_ip_adapter(pipeline):
    """An IP-Adapter of random weights, loaded the way diffusers loads one from a file."""
    unet, width = pipeline.unet, pipeline.unet.config.cross_attention_dim
    channels, layers = unet.config.block_out_channels, {}
    cross = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(cross):
        place, block = name.split(".")[:2]
        side = list(reversed(channels)) if place == "up_blocks" else channels
        size = channels[-1] if place == "mid_block" else side[int(block)]
        for part in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * number + 1}.{part}.weight"] = torch.randn(size, width)
    projection = {
        "proj.weight": torch.randn(4 * width, width),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": layers}])
    return [torch.randn(2, 1, width)]


def test_loaded_ip_adapter_goes_through_the_same_call_and_stays():
    torch.manual_seed(0)
    pipeline = tiny_pipeline("sd1")
    embeds = with_ip_adapter(pipeline)
    before = dict(pipeline.unet.attn_processors)
    model = t2iedit.open_model(pipeline)
    request = t2iedit.Request(PROMPT, steps=2, seed=3)
    mine = pixels(t2iedit.generate(model, request, ip_adapter_image_embeds=embeds).image)
    direct = pipeline(
        PROMPT,
        ip_adapter_image_embeds=embeds,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert np.array_equal(mine, pixels(direct))
    edits = (
        Decor(undesired=["fog"], start=0.5),
        installed().edit("t2i_zero")(concepts=["red cat", "blue dog"], suppression=0.5),
    )
    edited = request.model_copy(update={"edits": edits})
    other = pixels(t2iedit.generate(model, edited, ip_adapter_image_embeds=embeds).image)
    assert not np.array_equal(mine, other)
    assert pipeline.unet.attn_processors == before


# Weights that wait elsewhere.


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_weights_offloaded_in_parts_are_still_known(family):
    plain, pipeline = tiny_model(family), tiny_pipeline(family)
    pipeline.enable_sequential_cpu_offload(device="cpu")
    assert next(pipeline.unet.parameters()).is_meta
    model = t2iedit.open_model(pipeline)
    assert model.fingerprint == plain.fingerprint and model.marks == plain.marks
    assert all(encoder.device == torch.device("cpu", 0) for encoder in model.encoders)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="accelerate offloads to a GPU only")
@pytest.mark.parametrize("how", ["model", "sequential"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_offload_paints_the_same_with_edits_on_a_gpu(family, how):
    edits = [Decor(undesired=["fog"], start=0.4)]
    expected = painted(t2iedit.open_model(tiny_pipeline(family), device="cuda"), *edits)
    model = t2iedit.open_model(tiny_pipeline(family), device="cuda", offload=how)
    assert np.abs(painted(model, *edits) - expected).max() <= 2
    assert model.device.type == "cuda"


EDITS = {
    "decor": {"undesired": ["fog"], "start": 0.4},
    "t2i_zero": {"concepts": ["red cat", "blue dog"], "suppression": 0.5},
    "mixdq": {},
}


@pytest.mark.parametrize("name", EDITS)
def test_model_offload_paints_the_same_with_edits_and_patches(name):
    edit = installed().edit(name)(**EDITS[name])
    plain, pipeline = tiny_model("sd1"), tiny_pipeline("sd1")
    pipeline.enable_model_cpu_offload(device="cpu")
    offloaded = t2iedit.open_model(pipeline)
    assert np.array_equal(painted(offloaded, edit), painted(plain, edit))
    assert np.array_equal(painted(offloaded), painted(plain))


def test_patches_of_weights_that_sequential_offload_keeps_elsewhere_are_refused():
    pipeline = tiny_pipeline("sd1")
    pipeline.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(EditNotSupported, match="use --offload model"):
        painted(t2iedit.open_model(pipeline), installed().edit("mixdq")())


def test_offload_without_a_gpu_is_refused():
    with pytest.raises(ModelNotUsable, match="there is none here"):
        t2iedit.open_model(tiny_pipeline("sd1"), offload="model", device="cpu")
    with pytest.raises(ModelNotUsable, match='"model" or "sequential"'):
        t2iedit.open_model(tiny_pipeline("sd1"), offload="disc")


def test_diffusers_still_has_the_pipelines_of_the_families():
    from t2iedit.families import FAMILIES

    for pipelines in FAMILIES.values():
        assert all(getattr(diffusers, pipeline.__name__) is pipeline for pipeline in pipelines)
