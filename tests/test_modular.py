"""The block for modular diffusers, in modular pipelines of the tiny models' parts."""

import numpy as np
import pytest
import torch

import t2iedit
from t2iedit.errors import ConditioningNotUsable
from t2iedit.modular import ConditioningStep
from t2iedit.plugins import installed
from t2iedit.testing import tiny_model

Decor = installed().edit("decor")
pytestmark = pytest.mark.filterwarnings("ignore")
PROMPT, STEPS = "a red cat and a blue dog", 3


def modular(model, block=True):
    from diffusers import ClassifierFreeGuidance, modular_pipelines

    name = {"sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3", "flux": "Flux"}[model.family]
    blocks = getattr(modular_pipelines, f"{name}AutoBlocks")()
    if block:
        blocks.sub_blocks.insert("conditioning", ConditioningStep(), 1)
    pipeline = blocks.init_pipeline()
    parts = {k: v for k, v in model.pipeline.components.items() if v is not None}
    if model.family != "flux":
        guidance = model.defaults.guidance_scale
        parts["guider"] = ClassifierFreeGuidance(guidance_scale=guidance)
    pipeline.update_components(**parts)
    return pipeline


def painted(pipeline, *seeds, **values):
    images = pipeline(
        prompt=PROMPT,
        num_inference_steps=STEPS,
        height=64,
        width=64,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        num_images_per_prompt=len(seeds),
        output="images",
        **values,
    )
    return [np.asarray(image).astype(int) for image in images]


def far(images, others):
    pairs = zip(images, others, strict=True)
    return max(np.abs(np.asarray(image).astype(int) - other).max() for image, other in pairs)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_block_says_what_the_conditioning_says(family):
    model = tiny_model(family)
    pipeline = modular(model)
    edits = [Decor(undesired=["a red cat"])]
    request = t2iedit.Request(PROMPT, edits=edits, steps=STEPS, seeds=(3, 4), size=(64, 64))
    edited = painted(pipeline, 3, 4, conditioning=t2iedit.encode(model, request))
    assert far(t2iedit.generate(model, request).images, edited) <= 2
    # Without a conditioning it is as if the block were not there.
    plain = painted(pipeline, 3, 4)
    assert far(plain, edited) > 2
    assert far(painted(modular(model, block=False), 3, 4), plain) == 0


def test_block_refuses_a_conditioning_that_changes(sdxl):
    held = t2iedit.encode(sdxl, PROMPT, edits=[Decor(undesired=["fog"], start=0.5)])
    with pytest.raises(ConditioningNotUsable, match="changes during the denoising"):
        painted(modular(sdxl), 3, conditioning=held)
