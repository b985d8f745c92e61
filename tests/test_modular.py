"""The block for modular diffusers, in a modular SDXL of the tiny model's parts."""

import numpy as np
import pytest
import torch

import t2iedit
from t2iedit.errors import ConditioningNotUsable
from t2iedit.modular import ConditioningStep
from t2iedit.plugins import installed

Decor = installed().edit("decor")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def pipeline(sdxl):
    from diffusers import ClassifierFreeGuidance
    from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

    blocks = StableDiffusionXLAutoBlocks()
    blocks.sub_blocks.insert("conditioning", ConditioningStep(), 1)
    made = blocks.init_pipeline()
    parts = {k: v for k, v in sdxl.pipeline.components.items() if v is not None}
    made.update_components(**parts, guider=ClassifierFreeGuidance(guidance_scale=5.0))
    return made


def painted(pipeline, **values):
    images = pipeline(
        num_inference_steps=3,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(3),
        output="images",
        **values,
    )
    return np.asarray(images[0]).astype(int)


def test_block_says_what_the_conditioning_says(sdxl, pipeline):
    request = t2iedit.Request("a cat", edits=[Decor(undesired=["fog"])], steps=3, seed=3)
    edited = painted(pipeline, prompt="a cat", conditioning=t2iedit.encode(sdxl, request))
    expected = np.asarray(t2iedit.generate(sdxl, request).image).astype(int)
    assert np.abs(edited - expected).max() <= 2
    assert np.abs(painted(pipeline, prompt="a cat") - edited).max() > 2


def test_block_refuses_a_conditioning_that_changes(sdxl, pipeline):
    held = t2iedit.encode(sdxl, "a cat", edits=[Decor(undesired=["fog"], start=0.5)])
    with pytest.raises(ConditioningNotUsable, match="changes during the denoising"):
        painted(pipeline, prompt="a cat", conditioning=held)
