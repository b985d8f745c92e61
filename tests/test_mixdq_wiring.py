"""What is found in real UNets: layers, groups, split shortcuts and text layers."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from t2iedit_mixdq.architectures import ARCHITECTURES, example_inputs, hollow
from t2iedit_mixdq.bos import BosRows
from t2iedit_mixdq.calibration import weight_schemes
from t2iedit_mixdq.checkpoint import Found, unet_tensors
from t2iedit_mixdq.recipe import Recipe, uniform
from t2iedit_mixdq.simulation import Simulated, simulate
from t2iedit_mixdq.wiring import replace_layer, survey
from torch import nn

from t2iedit import EditNotSupported


@pytest.fixture(scope="module")
def sdxl_layers():
    return survey(hollow(ARCHITECTURES["sdxl"]), 64)


def test_sdxl_has_the_papers_layers(sdxl_layers):
    assert len(sdxl_layers) == 794
    groups = [layer.group for layer in sdxl_layers.values()]
    assert (groups.count("content"), groups.count("quality")) == (420, 374)
    assert sum(layer.text for layer in sdxl_layers.values()) == 140


def test_sdxl_groups_have_the_papers_sizes(sdxl_layers):
    """papers: r = content / quality is 2.2418 by weights and 1.2062 by activations at 512 pixels."""

    def ratio(attribute):
        total = {"content": 0, "quality": 0}
        for layer in sdxl_layers.values():
            total[layer.group] += getattr(layer, attribute)
        return total["content"] / total["quality"]

    assert ratio("weights") == pytest.approx(2.2418, abs=5e-4)
    assert ratio("inputs") == pytest.approx(1.2062, abs=5e-4)


def test_sdxl_shortcuts_split_where_the_released_table_says(sdxl_layers):
    split = {name: layer.split for name, layer in sdxl_layers.items() if layer.split}
    assert list(split) == [
        f"up_blocks.{block}.resnets.{index}.conv_shortcut"
        for block in range(3)
        for index in range(3)
    ]
    assert list(split.values()) == [1280, 1280, 1280, 1280, 640, 640, 640, 320, 320]


def test_sd15_is_another_architecture_and_found_all_the_same(sdxl_layers):
    layers = survey(hollow(ARCHITECTURES["sd15"]))
    assert sum(bool(layer.split) for layer in layers.values()) == 12
    assert sum(layer.text for layer in layers.values()) == 32
    # Surveying one model must not shift what another one gets (the released code counts globally).
    again = survey(hollow(ARCHITECTURES["sdxl"]), 64)
    assert again == sdxl_layers


@pytest.mark.parametrize("cross", [True, False])
def test_split_is_what_a_real_forward_pass_concatenates(cross):
    block = "CrossAttnUpBlock2D" if cross else "UpBlock2D"
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 24),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=(block, "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
    )
    reads = {}
    for name, module in unet.named_modules():
        if name.endswith("conv_shortcut"):
            module.register_forward_pre_hook(
                lambda module, args, name=name: reads.update({name: args[0].shape[1]})
            )
    unet(**example_inputs(unet, 8))
    layers = survey(unet)
    # hidden, then skip: 24+24, 24+8; 24+8, 8+8
    expected = {"up_blocks.0.resnets.0": 24, "up_blocks.0.resnets.1": 24}
    expected |= {"up_blocks.1.resnets.0": 24, "up_blocks.1.resnets.1": 8}
    split = {name: layer.split for name, layer in layers.items() if layer.split}
    assert split == {f"{name}.conv_shortcut": value for name, value in expected.items()}
    assert all(split[name] < reads[name] for name in split)
    assert "down_blocks.1.resnets.0.conv_shortcut" in layers and not split.get(
        "down_blocks.1.resnets.0.conv_shortcut"
    )


def test_every_tiny_family_is_surveyed(model):
    unet = model.pipeline.unet
    layers = survey(unet)
    assert list(layers) == [
        name for name, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    ]
    for name, layer in layers.items():
        assert layer.weights == unet.get_submodule(name).weight.numel()


def test_replaced_layers_are_refused(sd1):
    replace_layer(sd1.pipeline.unet, "conv_in", nn.Identity())
    with pytest.raises(EditNotSupported, match="conv_in"):
        survey(sd1.pipeline.unet)


def test_unknown_unet_is_refused_in_one_sentence():
    config = dict(hollow(ARCHITECTURES["sd15"]).config) | {"encoder_hid_dim_type": "image_proj"}
    config |= {"encoder_hid_dim": 16, "addition_embed_type": "image", "sample_size": 8}
    with pytest.raises(EditNotSupported, match="cannot follow"):
        survey(hollow(config))


def test_replacing_returns_what_was_there(sd1):
    unet = sd1.pipeline.unet
    before = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    other = nn.Linear(32, 32)
    assert replace_layer(unet, name, other) is before
    assert unet.get_submodule(name) is other
    assert replace_layer(unet, name, before) is other
    assert torch.is_tensor(unet.get_submodule(name).weight)


def test_layers_under_a_lora_are_found_and_the_lora_stays_whole(sd1):
    peft = pytest.importorskip("peft")
    unet = sd1.pipeline.unet
    before = survey(unet)
    config = peft.LoraConfig(r=2, target_modules=["to_k", "proj_in"], init_lora_weights=False)
    unet.add_adapter(config)
    layers = survey(unet)
    assert layers == before
    inputs = example_inputs(unet, 8)
    inputs["encoder_hidden_states"] += 1
    with torch.no_grad():
        reference = unet(**inputs)[0]
        undo = simulate(unet, layers, weight_schemes(unet, layers, 4), bos=BosRows())
        wrapped = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
        assert isinstance(wrapped.base_layer, Simulated)
        assert isinstance(wrapped.lora_A["default"], nn.Linear)
        text = torch.randn(1, 77, 32)
        whole = wrapped.base_layer.original(text) + wrapped(text) - wrapped.base_layer(text)
        assert torch.allclose(wrapped(text)[:, 0], whole[:, 0], atol=1e-5)
        assert not torch.equal(unet(**inputs)[0], reference)
        undo()
        assert torch.equal(unet(**inputs)[0], reference)
    with pytest.raises(EditNotSupported, match="fuse"):
        list(unet_tensors(unet, Recipe(uniform(layers, 8), {}), Found({}), None))
