"""A block for modular diffusers: what the text encoder said is replaced by a conditioning."""

# diffusers leaves the types of its blocks open.
# pyright: reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false

from typing import Any

import torch
from diffusers.modular_pipelines import ModularPipelineBlocks, PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam

from t2iedit.conditioning import Conditioning
from t2iedit.errors import ConditioningNotUsable

NAMES = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


class ConditioningStep(ModularPipelineBlocks):
    """Takes the input `conditioning`; place it after the text encoder of a modular SDXL, SD3 or FLUX pipeline.

    `blocks.sub_blocks.insert("conditioning", ConditioningStep(), 1)`; without a conditioning it changes nothing.
    """

    model_name = None

    @property
    def description(self) -> str:
        return "Replaces the text embeddings by those of a t2iedit conditioning"

    @property
    def inputs(self) -> list[InputParam]:
        given = InputParam("conditioning", type_hint=Conditioning, description="from t2iedit")
        return [given, *(InputParam(name, type_hint=torch.Tensor) for name in NAMES)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        fields = "denoiser_input_fields"
        return [OutputParam(name, type_hint=torch.Tensor, kwargs_type=fields) for name in NAMES]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Raises `ConditioningNotUsable` for one that changes while the denoiser works."""
        block_state: Any = self.get_block_state(state)
        given = block_state.conditioning
        if given is not None:
            if given.changes:
                raise ConditioningNotUsable(
                    "this conditioning changes during the denoising, which modular pipelines have no place for;"
                    " use t2iedit.generate"
                )
            device = components._execution_device
            for name, value in given.to(device).joined().items():
                setattr(block_state, name, value[None])
        self.set_block_state(state, block_state)
        return components, state
