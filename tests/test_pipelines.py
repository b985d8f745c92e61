"""Every pipeline of the families: painted as diffusers paints, edited, and told the same by a conditioning."""

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image

import t2iedit
from t2iedit.errors import ConditioningNotUsable, InvalidRequest
from t2iedit.families import FAMILIES
from t2iedit.plugins import installed
from t2iedit.tiny import tiny_pipeline

Decor, Swap = installed().edit("decor"), installed().edit("swap")
PROMPT, NEGATIVE = "a red cat and a blue dog", "fog"
TINY = {"sd": "sd1", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux"}
KINDS = [(family.family, kind) for family, kinds in FAMILIES.items() for kind in kinds]
PICTURE = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
STEPS = 4


@cache
def components(family):
    return tiny_pipeline(TINY[family]).components


@cache
def controlnet(family):
    made = ControlNetModel.from_unet(components(family)["unet"], conditioning_channels=3)
    with torch.no_grad():
        for parameter in made.parameters():
            # One that was never trained says nothing.
            parameter.add_(0.02)
    return made.eval()


def opened(family, kind):
    parts = dict(components(family))
    if "ControlNet" in kind.__name__:
        parts["controlnet"] = controlnet(family)
    if family == "sd":
        parts["requires_safety_checker"] = False
    pipeline = kind(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return t2iedit.open_model(pipeline)


def pictures_for(kind):
    """What the pipeline begins from, besides a prompt."""
    name, values = kind.__name__, {}
    begins = "Img2Img" in name or "Inpaint" in name
    if begins:
        values |= {"image": PICTURE, "strength": 0.8}
    if "Inpaint" in name:
        values["mask_image"] = Image.new("L", (64, 64), 255)
    if "ControlNet" in name:
        values["control_image" if begins else "image"] = PICTURE
    return values or {"width": 64, "height": 64}


def size_of(inputs):
    """Sizes belong to the request, and pictures to the pipeline."""
    size = (64, 64) if "width" in inputs else None
    return size, {key: value for key, value in inputs.items() if key not in ("width", "height")}


def painted(model, inputs, **values):
    size, pictures = size_of(inputs)
    request = t2iedit.Request(size=size, steps=STEPS, seed=3, **values)
    return pixels(t2iedit.generate(model, request, **pictures).image)


def direct(model, inputs, **told):
    generator = torch.Generator().manual_seed(3)
    called = inputs | told | {"num_inference_steps": STEPS, "generator": generator}
    return pixels(model.pipeline(**called).images[0])


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(("family", "kind"), KINDS, ids=lambda value: getattr(value, "__name__", value))  # fmt: skip
def test_pipeline_paints_as_it_would_by_itself_and_by_its_conditioning(family, kind):
    model, inputs = opened(family, kind), pictures_for(kind)
    plain = painted(model, inputs, prompt=PROMPT, negative=NEGATIVE)
    negative = {} if family == "flux" else {"negative_prompt": NEGATIVE}
    assert np.array_equal(plain, direct(model, inputs, prompt=PROMPT, **negative))
    values = {"prompt": PROMPT, "negative": NEGATIVE, "edits": [Decor(undesired=["a red cat"])]}
    edited = painted(model, inputs, **values)
    assert not np.array_equal(edited, plain)
    told = t2iedit.encode(model, t2iedit.Request(**values)).for_diffusers()
    assert np.array_equal(edited, direct(model, inputs, **told))


@pytest.mark.parametrize(("family", "kind"), KINDS, ids=lambda value: getattr(value, "__name__", value))  # fmt: skip
def test_pipeline_is_told_what_changes(family, kind):
    model, inputs = opened(family, kind), pictures_for(kind)
    edits = [Decor(undesired=["a red cat"], start=0.5)]
    values = {"prompt": PROMPT, "negative": NEGATIVE, "edits": edits}
    edited = painted(model, inputs, **values)
    whole = painted(model, inputs, **(values | {"edits": [Decor(undesired=["a red cat"])]}))
    assert not np.array_equal(edited, whole)
    told = t2iedit.encode(model, t2iedit.Request(**values)).for_diffusers()
    assert np.abs(edited - direct(model, inputs, **told)).max() <= 2
    assert not model.denoiser._forward_pre_hooks


def test_changing_pooled_vectors_are_told_where_they_can_be():
    edits = [Swap(phrase="red cat", to="photo of a car", start=0.5)]
    for family in ("sdxl", "sd3"):
        kind = kinds_of(family)[0]
        model = opened(family, kind)
        inputs = pictures_for(kind)
        told = t2iedit.encode(model, PROMPT, edits=edits).for_diffusers()
        mine = painted(model, inputs, prompt=PROMPT, edits=edits)
        assert np.abs(mine - direct(model, inputs, **told)).max() <= 2
    model = opened("flux", kinds_of("flux")[0])
    with pytest.raises(ConditioningNotUsable, match="cannot be told; use t2iedit.generate"):
        t2iedit.encode(model, PROMPT, edits=edits).for_diffusers()


def kinds_of(family):
    return [kind for name, kind in KINDS if name == family]


def test_picture_decides_the_size_unless_the_request_does():
    kind = next(k for k in kinds_of("sd") if k.__name__ == "StableDiffusionControlNetPipeline")
    model, wide = opened("sd", kind), PICTURE.resize((96, 64))
    request = t2iedit.Request(PROMPT, steps=1)
    result = t2iedit.generate(model, request, image=wide)
    assert result.image.size == (96, 64) and result.report["run"]["size"] == [96, 64]
    assert "Size: 96x64" in result.image.info["parameters"]
    sized = t2iedit.generate(model, request.model_copy(update={"size": (64, 64)}), image=wide)
    assert sized.image.size == (64, 64)


def test_controlnet_that_guesses_is_told_the_prompts_half():
    kind = next(k for k in kinds_of("sd") if k.__name__ == "StableDiffusionControlNetPipeline")
    model = opened("sd", kind)
    inputs = {"image": PICTURE, "guess_mode": True}
    edits = [Decor(undesired=["a red cat"], start=0.5)]
    edited = painted(model, inputs, prompt=PROMPT, edits=edits)
    told = t2iedit.encode(model, PROMPT, edits=edits).for_diffusers()
    assert np.abs(edited - direct(model, inputs, **told)).max() <= 2


@pytest.mark.parametrize(
    "name", ["num_inference_steps", "prompt_embeds", "callback_on_step_end", "output_type"]
)
def test_what_t2iedit_tells_the_pipeline_is_not_told_twice(name):
    model = opened("sd", kinds_of("sd")[0])
    with pytest.raises(InvalidRequest, match=f"{name} is t2iedit's to tell"):
        t2iedit.generate(model, t2iedit.Request(PROMPT), **{name: 3})
