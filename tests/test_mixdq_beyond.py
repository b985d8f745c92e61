"""What goes beyond the paper: learned rounding, steps for groups, second derivatives, text encoders in 8 bits."""

from dataclasses import replace

import pytest
import torch
from t2iedit_mixdq import MixDQ
from t2iedit_mixdq.calibration import Settings, calibrate, make_scheme
from t2iedit_mixdq.checkpoint import Found, load_unet, write_model
from t2iedit_mixdq.errors import QuantisedModelNotUsable
from t2iedit_mixdq.execution import Executed
from t2iedit_mixdq.hessian import input_gradient, predict, weight_gradient
from t2iedit_mixdq.kernels.base import geometry_of
from t2iedit_mixdq.quantising import Quantising, Wish
from t2iedit_mixdq.quantizers import group_multipliers, multiplied
from t2iedit_mixdq.recipe import Recipe, read_recipe, uniform
from t2iedit_mixdq.rounding import (
    ROWS,
    Learned,
    Sample,
    batches,
    flexround,
    learn,
    learn_all,
    patches,
    steps_of,
)
from t2iedit_mixdq.schemes import WHOLE, float_weight, integer_weight, weight_scheme
from t2iedit_mixdq.sensitivity import Bench, sqnr
from t2iedit_mixdq.shards import INDEX
from t2iedit_mixdq.text_encoders import text_layers
from t2iedit_mixdq.wiring import Layer, survey
from torch import nn

import t2iedit
from t2iedit.testing import tiny_model

CPU = torch.device("cpu")
SETTINGS = Settings(("a red cat", "a blue dog"), batch=1, steps=1)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_flexround_by_hand():
    """W^ = s1 round(W / (s1 S2 s3)), the factors given as logarithms."""
    weight = torch.tensor([[1.0, -3.2, 0.26]])
    step = torch.full((1, 3), 0.5)
    zero = torch.zeros(1, 1)
    made, integers = flexround(weight, step, zero, torch.zeros(1, 3), zero, bits=4)
    assert integers.tolist() == [[2, -6, 1]] and made.tolist() == [[1.0, -3.0, 0.5]]
    # s1 = 2, S2 = (1, 1, 1/2), s3 = 1/2: divided by 0.5, 0.5 and 0.25, multiplied by 1.
    log = torch.log(torch.tensor([2.0, 0.5]))
    s2 = torch.tensor([[0.0, 0.0, float(log[1])]])
    made, integers = flexround(weight, step, log[:1, None], s2, log[1:, None], bits=4)
    assert integers.tolist() == [[2, -6, 1]] and made.tolist() == [[2.0, -6.0, 1.0]]


def test_flexround_rises_with_larger_weights_and_clamps():
    """The reciprocal rule: a factor's gradient is the larger, the larger its weight."""
    weight = torch.tensor([[0.4, 2.4]])
    step = torch.ones(1, 2)
    s2 = torch.zeros(1, 2, requires_grad=True)
    zero = torch.zeros(1, 1)
    made, integers = flexround(weight, step, zero, s2, zero, bits=4)
    made.sum().backward()
    assert s2.grad is not None and s2.grad.tolist() == [[pytest.approx(-0.4), pytest.approx(-2.4)]]
    _, integers = flexround(
        torch.tensor([[90.0, -90.0]]), step, zero, torch.zeros(1, 2), zero, bits=4
    )
    assert integers.tolist() == [[7, -8]]


@pytest.mark.parametrize("form", ["linear", "convolution", "split", "grouped"])
def test_learned_rounding_beats_the_nearest_on_what_it_has_not_seen(form):
    torch.manual_seed(0)
    if form in ("linear", "grouped"):
        module, split = nn.Linear(64, 24), 0
        mix = random(64, 64, seed=1)
        rows, unseen = (random(600, 64, seed=seed) @ mix for seed in (2, 3))
    else:
        module, split = nn.Conv2d(8, 12, 3), 3 if form == "split" else 0
        mix = random(72, 72, seed=1)
        rows, unseen = (random(600, 72, seed=seed) @ mix for seed in (2, 3))
    layer = Layer("x", "linear", module.weight.numel(), 1, split)
    weight = module.weight.detach()
    scheme = weight_scheme(weight, 4, split, group=32 if form == "grouped" else 0)
    learned = learn(weight, scheme, layer, rows, steps=120)
    assert learned.integers is not None and learned.integers.abs().max() <= 8

    def error(scheme):
        made = float_weight(integer_weight(weight, scheme, split), scheme, split)
        return ((made - weight).flatten(1) @ unseen.T).square().mean()

    assert error(learned) < 0.8 * error(scheme)
    torn = replace(learned, delta=scheme.delta)
    assert error(learned) < error(torn) or torch.allclose(learned.delta, scheme.delta)


def test_rounding_that_does_not_help_is_the_nearest():
    weight = torch.tensor([[1.0, 2.0, -7.0]])
    scheme = weight_scheme(weight, 4, 0)
    assert learn(weight, scheme, Layer("x", "linear", 3, 1), random(40, 3), steps=5) is scheme


def test_every_weight_has_its_own_channels_step():
    weight = random(6, 5, 3, 3)
    scheme = weight_scheme(weight, 4, 2)
    integers = integer_weight(weight, scheme, 2)
    expected = float_weight(integers, scheme, 2).flatten(1)
    assert torch.allclose(
        steps_of(scheme, weight, 2) * integers.flatten(1).float(), expected, atol=1e-6
    )


def test_patches_are_what_a_convolution_multiplies():
    module = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    x = random(2, 4, 7, 5)
    rows = patches(x, geometry_of(module))
    assert module.bias is not None
    made = rows @ module.weight.flatten(1).T + module.bias
    assert torch.allclose(made, module(x).permute(0, 2, 3, 1).flatten(0, 2), atol=1e-5)


def test_sample_is_drawn_from_all_that_came():
    sample = Sample(geometry_of(nn.Linear(2, 3)), 0)
    for index in range(100):
        sample.add(torch.full((1, 64, 2), float(index)))
    assert sample.rows is not None and len(sample.rows) == ROWS
    counts = torch.bincount(sample.rows[:, 0].long(), minlength=100)
    assert counts.max() < 40 and (counts[:20].sum() - counts[-20:].sum()).abs() < 120


@pytest.fixture(scope="module")
def case():
    model = tiny_model("sd1")
    return model, survey(model.denoiser), calibrate(model, SETTINGS)


def test_learned_folder_paints_like_its_simulation_and_goes_on(case, tmp_path):
    model, layers, ranges = case
    recipe = Recipe(uniform(layers, 4), uniform(layers, 8), rounding="flexround")
    weights = {name: model.denoiser.get_submodule(name).weight for name in layers}
    schemes = {
        name: make_scheme(weights[name], layer, 4, 8, ranges=ranges[name])
        for name, layer in layers.items()
    }
    some = dict(list(schemes.items())[:6])
    learned = Learned(tmp_path / "rounding", "these settings")
    learn_all(model, SETTINGS, some, learned)
    counted = []
    learn_all(model, SETTINGS, some, learned, on_layer=counted.append)
    assert counted == [6]  # none anew
    assert Learned(tmp_path / "rounding", "others").load("conv_in") is None
    write_model(model, recipe, Found(ranges, learned), tmp_path / "out")
    packed = load_unet(tmp_path / "out", CPU, torch.float32)
    edit = MixDQ(recipe=str(tmp_path / "out"))
    with model.lock:
        model.patch([(edit.key, edit.patch_model)])
        try:
            for name in some:
                simulated = model.denoiser.get_submodule(name).rounded
                scheme = packed.get_submodule(name).scheme
                stored = learned(name, schemes[name])
                made = float_weight(integer_weight(weights[name], stored, 0), stored, 0)
                assert torch.allclose(simulated, made) and scheme.integers is None
        finally:
            model.patch([])
    changed = [name for name in some if "integers" in (learned.load(name) or {})]
    assert changed


def test_samples_are_taken_in_goes_that_fit(case):
    model, layers, _ = case
    names = list(layers)
    goes = list(batches(names, layers, model.denoiser, memory=2**20))
    assert len(goes) > 1 and [name for go in goes for name in go] == names


def test_group_steps_are_whole_multiples_that_fit_eight_bits():
    weight = random(5, 64)
    weight[:, :32] /= 20
    for bits in (2, 4):
        delta, multipliers = group_multipliers(weight, bits, 16)
        assert multipliers.shape == (5, 4) and multipliers.min() >= 1
        assert 2 ** (bits - 1) * int(multipliers.max()) <= 128
        scheme = weight_scheme(weight, bits, 0, group=16)
        integers = integer_weight(weight, scheme, 0)
        assert multiplied(integers, scheme.multipliers).abs().max() <= 127
        # No weight is clipped, so none moves by more than half its group's step.
        step = (delta[:, None] * multipliers).repeat_interleave(16, 1)
        error = (float_weight(integers, scheme, 0) - weight).abs()
        assert (error <= 0.5001 * step).all() or bits == 2


def test_groups_are_left_alone_where_they_do_not_fit():
    assert weight_scheme(random(4, 60), 4, 0, group=16).multipliers is None
    assert weight_scheme(random(4, 64), 8, 0, group=16).multipliers is None
    assert weight_scheme(random(4, 8, 3, 3), 4, 0, group=16).multipliers is None


def test_grouped_folder_runs_as_simulated(case, tmp_path):
    model, layers, ranges = case
    recipe = Recipe(uniform(layers, 4), uniform(layers, 16), group=16)
    write_model(model, recipe, Found(ranges), tmp_path / "out")
    assert read_recipe(tmp_path / "out").group == 16
    packed = load_unet(tmp_path / "out", CPU, torch.float32)
    grouped = [
        m for m in packed.modules() if isinstance(m, Executed) and m.scheme.multipliers is not None
    ]
    assert grouped
    bench = Bench(model, SETTINGS, ranges, group=16)
    schemes = {name: bench.scheme(name, 4, 16) for name in layers}
    args, kwargs, _ = bench.calls[0]
    with bench.quantised(schemes), torch.no_grad():
        simulated = model.denoiser(*args, **kwargs)[0]
        assert sqnr(simulated, packed(*args, **kwargs)[0]) > 60


@pytest.mark.parametrize("form", ["linear", "convolution"])
def test_gradients_of_a_layer_are_those_of_autograd(form):
    module = nn.Linear(6, 4) if form == "linear" else nn.Conv2d(6, 4, 3, stride=2, padding=1)
    x = random(2, 5, 6) if form == "linear" else random(2, 6, 7, 5)
    x.requires_grad_()
    y = module(x)
    direction = random(*y.shape, seed=1)
    of_weight, of_input = torch.autograd.grad(y, (module.weight, x), direction)
    with torch.no_grad():
        found = weight_gradient(module, x, module.weight, direction)
        assert torch.allclose(found, of_weight, atol=1e-4)
        found = input_gradient(module, x, module.weight, direction)
        assert torch.allclose(found, of_input, atol=1e-4)


def test_predicted_sensitivity_is_that_which_is_measured(case):
    """One layer at a time, really quantised, against the prediction from a few backward passes."""
    model, _, ranges = case
    bench = Bench(model, replace(SETTINGS, prompts=SETTINGS.prompts[:1]), ranges)
    before = t2iedit.generate(model, t2iedit.Request("a red cat", steps=1)).image.tobytes()
    table = predict(bench, ["weights", "activations"], probes=8)
    assert t2iedit.generate(model, t2iedit.Request("a red cat", steps=1)).image.tobytes() == before
    apart = []
    for name in list(bench.layers)[::7]:
        for part, widths in (("weights", (8, WHOLE)), ("activations", (WHOLE, 8))):
            with bench.quantised({name: bench.scheme(name, *widths)}):
                measured = bench.signal()
            if measured < 150:
                apart.append(abs(measured - table[part][name][8]))
        scores = table["weights"][name]
        assert scores[8] == 200 or scores[2] < scores[4] < scores[8]
    assert len(apart) > 8 and sorted(apart)[len(apart) // 2] < 3


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_text_encoders_are_packed_and_say_the_same(family, tmp_path):
    model = tiny_model(family)
    layers = survey(model.denoiser)
    recipe = Recipe(uniform(layers, 8), uniform(layers, 16), text_encoders=True)
    write_model(model, recipe, Found({}), tmp_path / "out")
    packed = t2iedit.open_model(tmp_path / "out")
    names = [n for n in packed.pipeline.components if n.startswith("text_encoder")]
    for name in names:
        assert (tmp_path / "out" / name / INDEX).is_file()
        assert not (tmp_path / "out" / name / "model.safetensors").exists()
        transformer = packed.pipeline.components[name]
        executed = [m for m in transformer.modules() if isinstance(m, Executed)]
        assert len(executed) == len(text_layers(model.pipeline.components[name])) > 0
        assert not any(p.is_meta for p in transformer.parameters())
        assert not any(b.is_meta for b in transformer.buffers())
    for prompt in ("a red cat", "fog"):
        exact, made = (
            t2iedit.condition([t2iedit.start(m, t2iedit.Request(prompt))])[0]
            for m in (model, packed)
        )
        for a, b in zip(exact.prompt, made.prompt, strict=True):
            assert sqnr(a.hidden[1:], b.hidden[1:]) > 25
            # The BOS row is a constant, and comes from the table.
            assert torch.allclose(a.hidden[0], b.hidden[0], atol=1e-4)
            assert a.pooled is None or sqnr(a.pooled, b.pooled) > 20
    image = t2iedit.generate(packed, t2iedit.Request("a red cat", steps=1)).image
    assert image.size == t2iedit.generate(model, t2iedit.Request("a red cat", steps=1)).image.size
    index = tmp_path / "out" / "text_encoder" / INDEX
    index.write_text("{}")
    with pytest.raises(QuantisedModelNotUsable, match="cannot be read"):
        t2iedit.open_model(tmp_path / "out")


def test_one_metric_is_one_program(case, tmp_path):
    """The ablation judges all layers by one metric, and allocates them together."""
    model, _, _ = case
    wish = Wish(5.0, 16.0, decoupled=False, hessian=True, judges=1)
    job = Quantising(model, wish, SETTINGS, tmp_path / "work")
    recipe = job.recipe()
    assert job.facts["weights"]["candidates"] == 1
    assert job.facts["means"]["weights"] == pytest.approx(5, abs=0.1)
    apart = Quantising(model, replace(wish, decoupled=True), SETTINGS, tmp_path / "work")
    assert apart.recipe().weights != recipe.weights
