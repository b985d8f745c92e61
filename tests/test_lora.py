"""LoRA files: loaded as trained, whatever their layout, and unloaded without a trace."""

import shutil

import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from t2iedit_mixdq.calibration import Settings, calibrate
from t2iedit_mixdq.checkpoint import Found, write_model
from t2iedit_mixdq.recipe import Recipe, uniform
from t2iedit_mixdq.wiring import survey

import t2iedit
import t2iedit.pipeline
from t2iedit import Request
from t2iedit.errors import LoraNotUsable, RecipeNotUsable
from t2iedit.lora import Lora
from t2iedit.plugins import installed
from t2iedit.testing import PROMPT, tiny_model
from t2iedit.tiny import tiny_pipeline

RANK, ALPHA = 2, 6
UNET, TEXT = ["to_q", "to_v"], ["q_proj", "out_proj"]


def random_lora(family, folder, seed):
    """A random LoRA for denoiser and encoders of a tiny pipeline, as diffusers saves it."""
    pipeline = tiny_pipeline(family)
    torch.manual_seed(seed)
    layers, metadata = {}, {}
    for part, targets in (("unet", UNET), ("text_encoder", TEXT), ("text_encoder_2", TEXT)):
        module = pipeline.components.get(part)
        if module is None:
            continue
        config = LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=targets, init_lora_weights=False
        )
        module.add_adapter(config)
        state = convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
        layers[f"{part}_lora_layers"] = state
        metadata[f"{part}_lora_adapter_metadata"] = config.to_dict()
    pipeline.save_lora_weights(folder, **layers, **metadata)
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("lora")
    made = {f: random_lora(f, root / f, seed=1) for f in ("sd1", "sdxl")}
    made["other"] = random_lora("sd1", root / "other", seed=2)
    made["kohya"] = root / "kohya.safetensors"
    save_file(as_kohya(load_file(made["sd1"])), made["kohya"])
    made["older"] = root / "older.safetensors"
    older = {
        key.replace("text_encoder.", "text_encoder.text_model."): weight
        for key, weight in load_file(made["sd1"]).items()
    }
    save_file(older, made["older"])
    return made


def as_kohya(weights):
    """The same file as kohya's trainer would have written it."""
    written = {}
    for key, weight in weights.items():
        part, layer = key.split(".", 1)
        which = "down" if ".down." in layer else "up"
        for ending in (".lora.", ".lora_linear_layer."):
            layer = layer.split(ending)[0]
        name = layer if part == "unet" else f"text_model.{layer}"
        prefix = "lora_unet_" if part == "unet" else "lora_te_"
        base = prefix + name.replace(".", "_")
        written[f"{base}.lora_{which}.weight"] = weight.contiguous()
        written[f"{base}.alpha"] = torch.tensor(float(ALPHA))
    return written


def picture(model, *loras, **values):
    request = Request(PROMPT, steps=2, loras=[str(lora) for lora in loras], **values)
    return t2iedit.generate(model, request).image.tobytes()


def hidden(model, *loras):
    run = t2iedit.start(model, Request(PROMPT, steps=1, loras=list(map(str, loras))))
    model.patch(run.patches)
    return t2iedit.condition([run])[0].prompt[0].hidden


def state(model):
    modules = [c for c in model.pipeline.components.values() if isinstance(c, torch.nn.Module)]
    return (
        [type(part) for m in modules for part in m.modules()],
        [value.clone() for m in modules for value in m.state_dict().values()],
    )


def same(before, after):
    return before[0] == after[0] and all(map(torch.equal, before[1], after[1]))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_lora_acts_and_leaves_no_trace(files, family):
    model = tiny_model(family)
    before, plain = state(model), picture(model)
    assert picture(model, files[family]) != plain
    assert picture(model) == plain
    assert same(before, state(model))


def test_a_lora_is_frozen_like_the_rest(files, sd1):
    t2iedit.generate(sd1, t2iedit.Request(PROMPT, steps=1, loras=[str(files["sd1"])]))
    modules = [c for c in sd1.pipeline.components.values() if isinstance(c, torch.nn.Module)]
    parameters = [p for m in modules for name, p in m.named_parameters() if "lora" in name]
    assert parameters and not any(parameter.requires_grad for parameter in parameters)


def test_scale_nought_changes_nothing(files, sd1):
    assert torch.equal(hidden(sd1, f"{files['sd1']}:0"), hidden(tiny_model("sd1")))
    assert not torch.allclose(hidden(sd1, f"{files['sd1']}:0.5"), hidden(sd1, files["sd1"]))


def test_a_kohya_file_equals_diffusers_own(files, sd1):
    expected = hidden(tiny_model("sd1"), files["sd1"])
    assert torch.allclose(hidden(sd1, files["kohya"]), expected, atol=1e-5)
    assert picture(sd1, files["kohya"]) != picture(sd1)


def test_a_kohya_file_without_its_alpha_would_be_three_times_too_weak(files, sd1):
    wrong = hidden(tiny_model("sd1"), f"{files['sd1']}:{RANK / ALPHA}")
    assert not torch.allclose(hidden(sd1, files["kohya"]), wrong, atol=1e-2)


def test_a_file_with_older_names_loads(files, sd1):
    assert not torch.allclose(hidden(sd1, files["older"]), hidden(tiny_model("sd1")), atol=1e-2)


def test_several_act_together(files, sd1):
    one, two, both = (
        hidden(sd1, *(files[name] for name in names))
        for names in (("sd1",), ("other",), ("sd1", "other"))
    )
    assert not torch.allclose(both, one) and not torch.allclose(both, two)
    by_hand = tiny_model("sd1")
    layers = dict(by_hand.pipeline.text_encoder.named_modules())
    for name in ("sd1", "other"):
        weights = load_file(files[name])
        for key in [key for key in weights if key.startswith("text_encoder.") and ".down." in key]:
            layer = layers[key.removeprefix("text_encoder.").split(".lora")[0]]
            change = weights[key.replace(".down.", ".up.")] @ weights[key]
            layer.weight.data += ALPHA / RANK * change
    assert torch.allclose(both, hidden(by_hand), atol=1e-4)


def test_the_key_is_the_content_not_the_name(files, sd1, tmp_path):
    copy = tmp_path / "copy.safetensors"
    shutil.copy(files["sd1"], copy)
    picture(sd1, files["sd1"])
    kept = sd1._patches[0]
    picture(sd1, copy)
    assert sd1._patches[0] is kept
    shutil.copy(files["other"], copy)
    picture(sd1, copy)
    assert sd1._patches[0] is not kept


def test_a_live_pipelines_own_lora_stays(files):
    pipeline = tiny_pipeline("sd1")
    pipeline.load_lora_weights(files["other"].parent, adapter_name="own")
    pipeline.set_adapters(["own"], [0.3])
    model = t2iedit.open_model(pipeline)
    own = picture(model)
    pipeline.set_adapters(["own"], [1.0])
    assert picture(model) != own
    pipeline.set_adapters(["own"], [0.3])
    assert picture(model, files["sd1"]) not in (own, picture(tiny_model("sd1")))
    assert picture(model) == own
    assert pipeline.get_active_adapters() == ["own"]


def test_decors_undesired_prompt_goes_through_the_customised_encoder(files, sd1):
    decor = installed().edit("decor")(undesired=["fog"])

    def directions(*loras):
        request = Request(PROMPT, steps=1, loras=list(map(str, loras)), edits=[decor])
        run = t2iedit.start(sd1, request)
        sd1.patch(run.patches)
        (edited,) = t2iedit.condition([run])[0].prompt
        encoder = sd1.encoders[0]
        fog = encoder.encode(encoder.tokenize("fog"))
        return (edited.hidden[1:] @ fog.hidden[fog.tokens.words].T).abs().max()

    assert directions() < 1e-3 and directions(files["sd1"]) < 1e-3


def test_a_lora_for_another_model_is_refused_and_leaves_no_trace(files, sdxl):
    before, plain = state(sdxl), picture(sdxl)
    with pytest.raises(LoraNotUsable, match="does not fit this model"):
        picture(sdxl, files["sd1"])
    assert same(before, state(sdxl)) and picture(sdxl) == plain
    # Nor when it comes second.
    with pytest.raises(LoraNotUsable):
        picture(sdxl, files["sdxl"], files["sd1"])
    assert same(before, state(sdxl))


def test_a_file_that_names_no_layer_is_refused(sd1, tmp_path):
    path = tmp_path / "strange.safetensors"
    save_file({"unet.elsewhere.lora.down.weight": torch.ones(2, 3)}, path)
    before = state(sd1)
    with pytest.raises(LoraNotUsable):
        picture(sd1, path)
    assert same(before, state(sd1))


UNREADABLE = {
    "kohya's text encoder 2": ("kohya", "lora_te_", "lora_te2_"),
    "kohya's unknown text layer": ("kohya", "self_attn_q_proj", "self_attn_qkv"),
    "a text layer too many": ("sd1", "text_encoder.encoder.layers.0", "text_encoder.encoder.layers.9"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_whose_text_part_cannot_be_read_is_refused_whole(files, sd1, tmp_path, case):
    source, old, new = UNREADABLE[case]
    weights = load_file(files[source])
    path = tmp_path / "part.safetensors"
    save_file({key.replace(old, new): weight for key, weight in weights.items()}, path)
    before, plain = state(sd1), picture(sd1)
    with pytest.raises(
        LoraNotUsable, match="that this model does not have|does not fit this model"
    ):
        picture(sd1, path)
    assert same(before, state(sd1)) and picture(sd1) == plain


def test_a_file_for_the_denoiser_or_the_encoder_alone_loads(files, sd1, tmp_path):
    for part in ("unet", "text_encoder"):
        weights = {k: w for k, w in load_file(files["sd1"]).items() if k.startswith(f"{part}.")}
        save_file(weights, tmp_path / f"{part}.safetensors")
        assert picture(sd1, tmp_path / f"{part}.safetensors") != picture(sd1)


def test_a_lora_comes_before_quantising_and_not_after(files, sd1, tmp_path):
    folder, layers = tmp_path / "packed", survey(sd1.denoiser)
    recipe = Recipe(uniform(layers, 8), uniform(layers, 16))
    ranges = calibrate(sd1, Settings((PROMPT,), batch=1, steps=1))
    write_model(sd1, recipe, Found(ranges), folder)
    packed = t2iedit.open_model(folder)
    plain = picture(packed)
    with pytest.raises(LoraNotUsable, match="before that model is quantised"):
        picture(packed, files["sd1"])
    assert picture(packed) == plain
    # Simulated on the open model, it is quantised with its LoRA.
    mixdq = installed().edit("mixdq")(weights=4)
    alone, both = picture(sd1, edits=[mixdq]), picture(sd1, files["sd1"], edits=[mixdq])
    assert both not in (alone, picture(sd1, files["sd1"]))


def test_suppression_acts_on_a_customised_denoiser(files, sd1):
    zero = installed().edit("t2i_zero")(alpha=0.0, suppression=1.0, smallest_map=1)
    assert picture(sd1, files["sd1"], edits=[zero]) not in (
        picture(sd1, files["sd1"]),
        picture(sd1, edits=[zero]),
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.safetensors", None, "cannot be read"),
        ("lora.pt", b"x", "other formats can run code"),
        ("broken.safetensors", b"not one", "damaged"),
    ],
)
def test_useless_files_are_refused(sd1, tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LoraNotUsable, match=words):
        picture(sd1, tmp_path / name)


def test_files_are_typed_with_their_scale():
    assert Lora.parse("a.safetensors:0.5") == Lora(file="a.safetensors", scale=0.5)
    assert Lora.parse("a.safetensors") == Lora(file="a.safetensors")
    assert Lora.parse("C:/a.safetensors") == Lora(file="C:/a.safetensors")


def test_an_image_remembers_its_loras(files, sd1, tmp_path):
    from t2iedit.repeating import differences, recorded

    copy = tmp_path / "copy.safetensors"
    shutil.copy(files["sd1"], copy)
    request = Request(PROMPT, steps=2, loras=[f"{copy}:0.5"])
    t2iedit.save_image(t2iedit.generate(sd1, request).image, tmp_path / "x.png")
    again, made_with = recorded(tmp_path / "x.png")
    assert again.loras == (Lora(file=str(copy), scale=0.5),)
    assert not differences(sd1, again, made_with)
    shutil.copy(files["other"], copy)
    (difference,) = differences(sd1, again, made_with)
    assert str(copy) in difference
    copy.unlink()
    with pytest.raises((LoraNotUsable, RecipeNotUsable), match="copy.safetensors"):
        differences(sd1, again, made_with)


def test_halves_of_the_line_patch_the_model_as_the_whole_does(files, sd1):
    plain, with_lora = picture(sd1), picture(sd1, files["sd1"])

    def by_halves(*loras):
        run = t2iedit.start(sd1, Request(PROMPT, steps=2, loras=list(map(str, loras))))
        (conditioning,) = t2iedit.condition([run])
        ((image, _),) = t2iedit.denoise(run, conditioning)
        return image.tobytes()

    assert picture(sd1) == plain and by_halves(files["sd1"]) == with_lora
    assert picture(sd1, files["sd1"]) == with_lora and by_halves() == plain


def test_runs_with_and_without_a_lora_are_encoded_apart(files, sd1):
    apart = [hidden(sd1), hidden(sd1, files["sd1"])]
    requests = [Request(PROMPT, steps=1, loras=loras) for loras in ([], [str(files["sd1"])])]
    together = t2iedit.condition([t2iedit.start(sd1, request) for request in requests])
    for alone, one in zip(apart, together, strict=True):
        assert torch.equal(one.prompt[0].hidden, alone)
