"""Folders of packed weights: written whole, opened packed, refused in one sentence when they are broken."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from safetensors.torch import load_file, save_file
from t2iedit_decor import Decor
from t2iedit_mixdq import MixDQ, checkpoint, execution
from t2iedit_mixdq.architectures import example_inputs
from t2iedit_mixdq.calibration import Settings, calibrate
from t2iedit_mixdq.checkpoint import Found, load_unet, write_model
from t2iedit_mixdq.errors import QuantisedModelNotUsable, RecipeNotUsable
from t2iedit_mixdq.execution import NO_PRODUCTS, Executed
from t2iedit_mixdq.kernels import onednn
from t2iedit_mixdq.kernels.native import passes
from t2iedit_mixdq.recipe import FILE, Recipe, read_bits, read_recipe, uniform, write_recipe
from t2iedit_mixdq.report import layer_rows, measured_memory, static_bytes
from t2iedit_mixdq.saturation import TextClipped
from t2iedit_mixdq.sensitivity import sqnr
from t2iedit_mixdq.shards import INDEX
from t2iedit_mixdq.simulation import Simulated
from t2iedit_mixdq.surroundings import OnePassAttention, OnePassNorm, SiluOfTime, shorten
from t2iedit_mixdq.wiring import survey, weights_digest
from t2iedit_zero import T2IZero

import t2iedit
from t2iedit.testing import tiny_model

PROMPT = "a red cat and a blue dog"
SETTINGS = Settings((PROMPT, "a photo of a car"), batch=1, steps=2)
CPU = torch.device("cpu")


def pixels(model, *edits, **changes):
    request = t2iedit.Request(PROMPT, **({"steps": 2, "edits": edits} | changes))
    return np.asarray(t2iedit.generate(model, request).image).astype(float)


def far(a, b):
    return np.abs(a - b).max()


def same(a, b, whole=None):
    """Equal but for what one input that falls on the other side of a rounding step makes of a picture.

    Guidance and further steps make more of it, so there it is measured by what quantisation does to the picture.
    """
    limit = 1.5 if whole is None else 1.5 + np.abs(b - whole).mean() / 3
    return np.abs(a - b).mean() < limit


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def case(request, tmp_path_factory):
    """A model, its ranges, and folders of it at several widths."""
    model = tiny_model(request.param)
    layers = survey(model.denoiser)
    ranges = calibrate(model, SETTINGS)
    folders = {}
    for bits in ((8, 8), (4, 8), (4, 16)):
        folder = tmp_path_factory.mktemp("mixdq") / "-".join(map(str, bits))
        recipe = Recipe(uniform(layers, bits[0]), uniform(layers, bits[1]))
        write_model(model, recipe, Found(ranges), folder, limit=20_000)
        folders[bits] = folder
    return model, layers, ranges, folders


@pytest.fixture
def copy(case, tmp_path):
    """A folder that a test may break."""
    shutil.copytree(case[3][8, 8], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 16)])
def test_folder_opens_packed_and_paints_what_the_simulation_paints(case, bits):
    model, _, _, folders = case
    packed = t2iedit.open_model(folders[bits])
    edit, once = MixDQ(recipe=str(folders[bits])), {"steps": 1, "guidance_scale": 1.0}
    assert same(pixels(packed, **once), pixels(model, edit, **once))
    assert far(pixels(packed, **once), pixels(model, **once)) > 0
    executed = [m for m in packed.denoiser.modules() if isinstance(m, Executed)]
    assert len(executed) == len(survey(model.denoiser))


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 16)])
@torch.no_grad()
def test_every_layer_agrees_with_its_simulation(case, bits):
    """On what each layer really reads, guidance and zeroed negatives included."""
    model, layers, _, folders = case
    packed = load_unet(folders[bits], CPU, torch.float32)
    seen = {}

    def compare(name):
        def look(module, args, output):
            executed = packed.get_submodule(name)(args[0])
            noise = (output - executed).double().square().sum()
            seen[name] = float(noise / output.double().square().sum().clamp(min=1e-30))

        return look

    with model.lock:
        edit = MixDQ(recipe=str(folders[bits]))
        model.patch([(edit.key, edit.patch_model)])
        handles = [
            model.denoiser.get_submodule(name).register_forward_hook(compare(name))
            for name in layers
        ]
        try:
            pixels(model, edit, steps=1)
        finally:
            for handle in handles:
                handle.remove()
            model.patch([])
    assert set(seen) == set(layers)
    assert max(seen.values()) < 1e-4  # 40 dB


def test_no_floating_point_weights_are_in_memory(case):
    model, layers, _, folders = case
    total = sum(layer.weights for layer in layers.values())
    for bits in ((8, 8), (4, 16)):
        unet = load_unet(folders[bits], CPU, torch.float32)
        kept = sum(p.numel() for p in unet.parameters())
        assert kept < 0.1 * total
        assert all(not p.is_meta for p in unet.parameters())
    whole = sum(p.numel() for p in model.denoiser.parameters())
    assert static_bytes(load_unet(folders[4, 16], CPU, torch.float32)) < whole


def test_simulation_leaves_the_open_model_bit_for_bit(case):
    model, _, _, folders = case
    before = pixels(model)
    edited = pixels(model, MixDQ(recipe=str(folders[8, 8])))
    assert far(before, edited) > 0
    assert far(before, pixels(model)) == 0
    assert not any(isinstance(m, Simulated) for m in model.denoiser.modules())


def test_two_models_do_not_disturb_each_other(case):
    _, _, _, folders = case
    first, second = (t2iedit.open_model(folders[4, 8]) for _ in range(2))
    alone = pixels(first)
    other = pixels(second, seeds=(7,))
    assert far(alone, pixels(first)) == 0 and far(other, pixels(second, seeds=(7,))) == 0


@torch.no_grad()
def test_threads_wait_for_each_other(case):
    """Layers of one network unpack into the same memory."""
    unet = load_unet(case[3][4, 8], CPU, torch.float32)
    inputs = [example_inputs(unet, 8) for _ in range(4)]
    for number, each in enumerate(inputs):
        torch.manual_seed(number)
        each["sample"].normal_()
    expected = [unet(**each)[0] for each in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            made = list(pool.map(lambda each: unet(**each)[0], inputs))
            assert all(map(torch.equal, made, expected))


def test_packed_batch_of_four_equals_four_singles(case):
    packed = t2iedit.open_model(case[3][8, 8])
    request = t2iedit.Request(PROMPT, seeds=range(4), steps=2)
    together = t2iedit.generate(packed, request, batch_size=4).images
    alone = t2iedit.generate(packed, request).images
    for a, b in zip(together, alone, strict=True):
        assert same(np.asarray(a).astype(float), np.asarray(b).astype(float))


def test_guidance_and_negatives_work_on_the_packed_model(case):
    model, _, _, folders = case
    packed = t2iedit.open_model(folders[8, 8])
    for negative in (None, "fog"):
        options = {"guidance_scale": 2.0, "negative": negative, "steps": 1}
        simulated = pixels(model, MixDQ(recipe=str(folders[8, 8])), **options)
        assert same(pixels(packed, **options), simulated, whole=pixels(model, **options))


def test_shards_are_like_those_of_diffusers(case):
    folder = case[3][8, 8] / "unet"
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    files = sorted(set(index.values()))
    assert len(files) > 1
    assert files[0] == f"mixdq-00001-of-{len(files):05}.safetensors"
    assert {path.name for path in folder.glob("*.safetensors")} == set(files)


def test_nothing_half_written_is_left(case, tmp_path, monkeypatch):
    model, layers, ranges, _ = case
    recipe = Recipe(uniform(layers, 8), uniform(layers, 8))
    with pytest.raises(AssertionError):
        write_model(model, recipe, Found({}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

    def disk_is_full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_recipe", disk_is_full)
    with pytest.raises(t2iedit.UserError, match="No space left"):
        write_model(model, recipe, Found(ranges), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_report_names_every_layer_and_what_runs_it(case):
    _, layers, _, folders = case
    unet = load_unet(folders[8, 8], CPU, torch.float32)
    rows = layer_rows(unet, layers)
    assert [row["name"] for row in rows] == list(layers)
    if execution.products() or onednn.available():
        assert len({row["runs"] for row in rows}) == 1 and rows[0]["runs"].endswith("int8")
    memory = measured_memory(unet, 8)
    assert memory["static"] == static_bytes(unet)
    assert memory["peak"] == memory["static"] + memory["dynamic"]
    whole = load_unet(folders[4, 16], CPU, torch.float32)
    assert {row["why"] for row in layer_rows(whole, layers)} == {"its inputs stay in 16 bits"}


def test_layers_left_whole_stay_whole(case, tmp_path):
    model, layers, ranges, _ = case
    some = [name for name in layers if "attn2" in name] + ["conv_in", "conv_out"]
    weights = uniform(layers, 4) | dict.fromkeys(some, 16)
    recipe = Recipe(weights, uniform(layers, 8) | {"conv_in": 16})
    write_model(model, recipe, Found(ranges), tmp_path / "out")
    unet = load_unet(tmp_path / "out", CPU, torch.float32)
    assert type(unet.conv_in) is torch.nn.Conv2d and isinstance(unet.conv_out, Simulated)
    assert torch.equal(unet.conv_in.weight, model.denoiser.conv_in.weight)
    packed, once = t2iedit.open_model(tmp_path / "out"), {"steps": 1, "guidance_scale": 1.0}
    simulated = pixels(model, MixDQ(recipe=str(tmp_path / "out")), **once)
    assert same(pixels(packed, **once), simulated)


def test_bfloat16_folder_runs(case):
    packed = t2iedit.open_model(case[3][8, 8], dtype="bfloat16")
    assert packed.dtype == torch.bfloat16
    assert np.isfinite(pixels(packed)).all()


def test_machine_without_integer_products_is_said_once(case, monkeypatch):
    monkeypatch.setattr(onednn, "available", lambda: False)
    monkeypatch.setattr(execution, "products", list)
    packed = t2iedit.open_model(case[3][8, 8])
    report = t2iedit.generate(packed, t2iedit.Request(PROMPT, steps=1, seeds=(0, 1))).report
    assert report["warnings"].count(NO_PRODUCTS) == 1


def test_saturated_prompt_is_warned_about(case):
    model, _, _, folders = case
    fold = folders[8, 8]

    class Louder(t2iedit.Edit):
        name = "louder"

        def edit_embedding(self, embedding, run):
            hidden = embedding.hidden.clone()
            hidden[1:] *= 5
            return embedding.with_hidden(hidden)

    loud = t2iedit.Request(PROMPT, steps=1, edits=[Louder(), MixDQ(recipe=str(fold))])
    report = t2iedit.generate(model, loud).report
    assert any("calibrated for" in sentence for sentence in report["warnings"])
    calm = t2iedit.Request(PROMPT, steps=1, edits=[MixDQ(recipe=str(fold))])
    report = t2iedit.generate(model, calm).report
    assert report["warnings"] == []
    assert "simulated" in report["edits"][0]["runs"]


def test_recipe_of_another_architecture_names_the_first_layers(case, sd2, tmp_path):
    model, layers, _, _ = case
    foreign = tmp_path / "bits.yaml"
    foreign.write_text(yaml.safe_dump({"model.not.a.layer": 8, "conv_in": 4}))
    with pytest.raises(RecipeNotUsable, match="other architecture.*not.a.layer"):
        from t2iedit_mixdq.recipe import check_fits

        check_fits(read_bits(foreign), layers, "it")


def test_recipe_of_the_other_family_is_refused(case, copy):
    recipe = yaml.safe_load((copy / FILE).read_text())
    recipe["weights"]["down_blocks.7.strange"] = 8
    (copy / FILE).write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeNotUsable, match="strange"):
        t2iedit.open_model(copy)
    with pytest.raises(RecipeNotUsable, match="strange"):
        pixels(case[0], MixDQ(recipe=str(copy)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": {"conv_in": 3}}, "3 bits"),
        ({"weights": {"conv_in": True}}, "True bits"),
        ({"weights": {7: 8}}, "7 where the name of a layer belongs"),
        ({"weights": ["conv_in"]}, "no mapping"),
        ({"format": 2}, "format 2"),
    ],
)
def test_broken_recipes_are_refused(copy, change, says):
    recipe = yaml.safe_load((copy / FILE).read_text()) | change
    (copy / FILE).write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeNotUsable, match=says):
        read_recipe(copy)


def test_unreadable_recipes_are_refused(tmp_path):
    deep, code = b"[" * 20_000, b"!!python/object/apply:os.system [ls]"
    for content in (b"{", b"\xff\xfe", b"just words", code, deep):
        (tmp_path / "bits.yaml").write_bytes(content)
        with pytest.raises(RecipeNotUsable):
            read_bits(tmp_path / "bits.yaml")
    with pytest.raises(RecipeNotUsable, match="cannot be read"):
        read_recipe(tmp_path / "absent")


def test_missing_shard_is_named(copy):
    (copy / "unet" / sorted(p.name for p in (copy / "unet").glob("mixdq-*"))[0]).unlink()
    with pytest.raises(QuantisedModelNotUsable, match="lacks its shard"):
        t2iedit.open_model(copy)


def test_corrupt_shard_is_named(copy):
    path = sorted((copy / "unet").glob("mixdq-*"))[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(QuantisedModelNotUsable, match="missing or damaged"):
        t2iedit.open_model(copy)


@pytest.mark.parametrize("place", ["../mixdq.yaml", "/etc/passwd", 3])
def test_index_cannot_lead_outside(copy, place):
    path = copy / "unet" / INDEX
    index = json.loads(path.read_text())
    index["weight_map"]["conv_in.packed"] = place
    path.write_text(json.dumps(index))
    with pytest.raises(QuantisedModelNotUsable, match="no index"):
        t2iedit.open_model(copy)


def test_tensor_of_the_wrong_size_is_refused(copy):
    recipe = yaml.safe_load((copy / FILE).read_text())
    recipe["weights"]["conv_in"] = 4
    (copy / FILE).write_text(yaml.safe_dump(recipe))
    with pytest.raises(QuantisedModelNotUsable, match="bytes"):
        t2iedit.open_model(copy)


def rewrite(folder, name, change):
    """Put a changed tensor into its shard."""
    shard = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
    tensors = load_file(shard)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, shard)


TEXT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("conv_in.delta", lambda delta: delta[:, :1]),
        ("conv_in.delta", lambda delta: delta.flatten()),
        ("conv_in.delta", lambda delta: delta * torch.nan),
        ("conv_in.delta", lambda delta: -delta),
        ("conv_in.delta", lambda delta: delta.int()),
        ("conv_in.bias", lambda bias: bias[:3]),
        ("conv_in.grids", lambda grids: grids[0]),
        ("conv_in.grids", lambda grids: grids * 0),
        ("conv_in.grids", lambda grids: grids * torch.inf),
        ("conv_in.grids", lambda grids: grids + torch.tensor([0, 256])),
        (f"{TEXT}.bos_outputs", lambda outputs: outputs[:, :1]),
        ("bos_rows", lambda rows: rows[:, :1]),
    ],
)
def test_tensors_that_do_not_fit_never_reach_a_kernel(copy, name, change):
    rewrite(copy / "unet", name, change)
    with pytest.raises(QuantisedModelNotUsable, match="where .* belong"):
        t2iedit.open_model(copy)


def test_steps_in_half_precision_are_steps(case, copy):
    expected = pixels(t2iedit.open_model(copy), steps=1)
    rewrite(copy / "unet", "conv_in.delta", lambda delta: delta.half())
    assert same(pixels(t2iedit.open_model(copy), steps=1), expected)


def test_a_changed_byte_is_found(copy):
    checkpoint.verify(copy)
    shard = sorted((copy / "unet").glob("mixdq-*"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(QuantisedModelNotUsable, match=f'"{shard.name}".*damaged'):
        checkpoint.verify(copy)


@pytest.mark.parametrize("config", ["[]", "{", '{"strange": 1}', '{"block_out_channels": 3}'])
def test_unet_that_cannot_be_built_is_refused(copy, config):
    (copy / "unet" / "config.json").write_text(config)
    with pytest.raises(QuantisedModelNotUsable, match=r"config\.json"):
        load_unet(copy, CPU, torch.float32)


def test_recipe_of_a_model_with_fewer_layers_is_refused(case):
    """All its layers are in the larger model, which has others of other sizes."""
    other = tiny_model("sdxl" if case[0].denoiser.config.addition_embed_type is None else "sd1")
    with pytest.raises(RecipeNotUsable, match="other architecture"):
        pixels(other, MixDQ(recipe=str(case[3][8, 8])))


def test_recipe_may_be_given_by_its_file(case):
    model, _, _, folders = case
    by_folder = pixels(model, MixDQ(recipe=str(folders[8, 8])), steps=1)
    by_file = pixels(model, MixDQ(recipe=str(folders[8, 8] / FILE)), steps=1)
    assert np.array_equal(by_folder, by_file)


def test_recipe_of_other_weights_is_told(case, copy):
    model, layers, _, _ = case
    recipe = read_recipe(copy)

    def made_from(weights, rounding):
        facts = {"model": {"dtype": "float32", "weights": weights}}
        write_recipe(replace(recipe, rounding=rounding, facts=facts), copy)
        request = t2iedit.Request(PROMPT, steps=1, edits=[MixDQ(recipe=str(copy))])
        return t2iedit.generate(model, request).report["warnings"]

    own = weights_digest(model.denoiser, layers)
    assert made_from(own, "nearest") == made_from(own, "flexround") == []
    (warning,) = made_from("0123456789ab", "nearest")
    assert "other weights" in warning
    with pytest.raises(t2iedit.EditNotSupported, match="another model's weights"):
        made_from("0123456789ab", "flexround")


def test_digest_of_weights_is_of_weights_alone(case):
    model, layers, _, folders = case
    own = weights_digest(model.denoiser, layers)
    edit = MixDQ(recipe=str(folders[4, 8]))
    with model.lock:
        model.patch([(edit.key, edit.patch_model)])
        assert weights_digest(model.denoiser, layers) == own
        model.patch([])
    weight = model.denoiser.conv_out.weight
    with torch.no_grad():
        before = weight[0, 0, 0, 0].clone()
        weight[0, 0, 0, 0] += 1
        assert weights_digest(model.denoiser, layers) != own
        weight[0, 0, 0, 0] = before
    assert weights_digest(model.denoiser, layers) == own


def test_quantised_model_takes_no_quantising_edit(case):
    packed = t2iedit.open_model(case[3][8, 8])
    with pytest.raises(t2iedit.EditNotSupported, match="already"):
        pixels(packed, MixDQ(weights=4))
    with pytest.raises(t2iedit.EditNotSupported, match="once"):
        pixels(case[0], MixDQ(weights=4), MixDQ(weights=8))


def test_options_say_bits_once():
    with pytest.raises(t2iedit.UserError, match="not both"):
        MixDQ(recipe="x", weights=4)
    with pytest.raises(t2iedit.UserError, match="weights"):
        MixDQ(weights=3)
    assert MixDQ(weights="4").options.weights == 4


def test_packed_model_warns_of_text_that_it_clips(case):
    """There is no edit of ours in the chain that could look."""
    packed = t2iedit.open_model(case[3][8, 8])

    class Louder(t2iedit.Edit):
        name = "louder_still"

        def edit_embedding(self, embedding, run):
            hidden = embedding.hidden.clone()
            hidden[1:] *= 5
            return embedding.with_hidden(hidden)

    pixels(packed, steps=1)
    with pytest.warns(TextClipped, match="calibrated for"):
        pixels(packed, Louder(), steps=1)


@torch.no_grad()
def test_one_pass_surroundings_compute_what_those_of_diffusers_do(case, monkeypatch):
    model, _, _, folders = case
    plain = load_unet(folders[8, 8], CPU, torch.bfloat16)
    monkeypatch.setattr(checkpoint, "LARGE", 0)
    packed = t2iedit.open_model(folders[8, 8], dtype="bfloat16")
    if not packed.denoiser.mixdq.tools.passes.passes.attends:
        pytest.skip("this machine compiles no attention of its own")
    kinds = {type(p) for p in packed.denoiser.attn_processors.values()}
    assert kinds == {OnePassAttention}
    made = [type(module) for module in packed.denoiser.modules()]
    assert made.count(OnePassNorm) > made.count(SiluOfTime) == made.count(ResnetBlock2D) > 0
    inputs = example_inputs(plain, 8, batch=2)
    text = inputs["encoder_hidden_states"]
    text.copy_(0.3 * torch.randn(text.shape, generator=torch.Generator().manual_seed(0)))
    inputs["sample"].copy_(torch.randn(inputs["sample"].shape))
    # In bfloat16, and an input next to a rounding step may fall on either side.
    assert sqnr(plain(**inputs)[0], packed.denoiser(**inputs)[0]) > 20
    before = pixels(packed, steps=1)
    zero = T2IZero(**T2IZero.example)
    assert far(pixels(packed, zero, steps=1), before) > 0
    assert far(pixels(packed, steps=1), before) == 0


@torch.no_grad()
@pytest.mark.parametrize("linear", [False, True])
def test_shortened_blocks_keep_channels_last_and_their_output(linear):
    """SD 1.x projects images, SDXL sequences."""
    passes_here, _ = passes(native=True)
    if not passes_here.attends:
        pytest.skip("this machine compiles no attention of its own")
    block = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
        use_linear_projection=linear,
    )
    block = block.eval().bfloat16().to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 8, 8).bfloat16().contiguous(memory_format=torch.channels_last)
    given = x, torch.tensor(3), torch.randn(2, 5, 16).bfloat16()
    before = block(*given)[0]
    lying = []
    for module in block.modules():
        if isinstance(module, Transformer2DModel):
            module.register_forward_hook(lambda *args: lying.append(args[2][0]))
    shorten(block, passes_here)
    assert sqnr(before, block(*given)[0]) > 30
    assert lying and all(y.is_contiguous(memory_format=torch.channels_last) for y in lying)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 16)])
def test_folder_paints_on_cuda_what_it_paints_on_a_cpu(case, bits):
    """In the same dtype: torch before 2.13 draws other noise in float16 than in float32 from one seed."""
    packed, other = (
        t2iedit.open_model(case[3][bits], device=device, dtype="float16")
        for device in ("cuda", "cpu")
    )
    # As far as two seeds are from each other it would be 35.
    assert np.abs(pixels(packed) - pixels(other)).mean() < 8


def test_other_edits_act_on_the_packed_model(case):
    """Their embeddings and opened attention meet packed layers."""
    packed = t2iedit.open_model(case[3][8, 8])
    before = pixels(packed, steps=1)
    zero = T2IZero(**T2IZero.example)
    for edit in (Decor(undesired=["fog"]), zero):
        assert far(pixels(packed, edit, steps=1), before) > 0
    assert far(pixels(packed, steps=1), before) == 0
