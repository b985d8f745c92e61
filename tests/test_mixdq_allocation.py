"""The integer programs, solved against brute force, and sensitivity as the paper means it."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from t2iedit_mixdq.allocation import (
    ALLOWED,
    SLACK,
    allocate,
    candidates,
    check_budget,
    most_sensitive,
    reachable,
    splits,
)
from t2iedit_mixdq.architectures import ARCHITECTURES, hollow
from t2iedit_mixdq.calibration import Settings, calibrate
from t2iedit_mixdq.errors import BudgetNotReachable
from t2iedit_mixdq.recipe import listed_mean, mean_bits, read_bits
from t2iedit_mixdq.report import bits_report
from t2iedit_mixdq.sensitivity import Bench, image_error, measure, sqnr, ssim
from t2iedit_mixdq.wiring import Layer, survey

ROOT = Path(__file__).parent.parent
# Upstream's files carry no licence, so they are no part of this repository.
UPSTREAM = Path(os.environ.get("MIXDQ_UPSTREAM", ROOT.parent / "shared" / "mixdq-upstream"))
needs_upstream = pytest.mark.skipif(not UPSTREAM.is_dir(), reason="upstream's files are not here")


def program(count, seed):
    """Layers of random size with scores that fall with fewer bits."""
    random = np.random.default_rng(seed)
    sizes = {f"layer{i}": int(random.integers(50, 150)) for i in range(count)}
    scores = {}
    for name in sizes:
        harm = random.random() * np.array([1.0, 0.3, 0.01])
        scores[name] = {b: 1 - float(h) for b, h in zip((2, 4, 8), harm, strict=True)}
    return scores, sizes


@pytest.mark.parametrize("budget", [3.0, 4.0, 5.5, 7.0])
def test_allocation_equals_brute_force(budget):
    scores, sizes = program(7, seed=int(budget * 10))
    total = sum(sizes.values())
    near, under = [], []
    for widths in itertools.product((2, 4, 8), repeat=7):
        mean = sum(b * size for b, size in zip(widths, sizes.values(), strict=True)) / total
        value = sum(scores[n][b] for n, b in zip(sizes, widths, strict=True))
        if mean <= budget + SLACK:
            under.append(value)
        if abs(mean - budget) <= SLACK:
            near.append(value)
    best = max(near or under)
    found = allocate(scores, sizes, budget)
    assert found.score == pytest.approx(best) and found.gap < 1e-3
    assert found.mean <= budget + SLACK + 1e-9 and (not near or found.mean >= budget - SLACK - 1e-9)
    assert found.score == pytest.approx(sum(scores[n][b] for n, b in found.bits.items()))


def test_taking_the_best_score_a_bit_greedily_is_worse():
    """What the program is for: a greedy choice misses."""
    sizes = {"a": 60, "b": 50, "c": 50}
    scores = {"a": {2: 0.0, 8: 10.0}, "b": {2: 0.0, 8: 8.0}, "c": {2: 0.0, 8: 8.0}}
    budget = (8 * 100 + 2 * 60) / 160
    assert allocate(scores, sizes, budget).bits == {"a": 2, "b": 8, "c": 8}


def test_unreachable_budget_says_the_reachable_range():
    scores, sizes = program(5, seed=1)
    assert reachable(scores, sizes) == (2, 8)
    for budget in (1.5, 8.5):
        with pytest.raises(BudgetNotReachable, match=r"from 2\.00 to 8\.00"):
            allocate(scores, sizes, budget)
    assert allocate({"only": {2: 0.0, 8: 1.0}}, {"only": 10}, 5.0).bits == {"only": 2}


def test_budget_that_no_layers_allow_is_known_before_they_are_judged():
    layers = {
        "a.ff.b": Layer("a.ff.b", "linear", 100, 10),
        "conv": Layer("conv", "conv", 300, 30),
    }
    for of, low in (("weights", (2 * 100 + 4 * 300) / 400), ("activations", 4.0)):
        check_budget(layers, of, low)
        with pytest.raises(BudgetNotReachable, match=f"from {low:.2f} to 8.00"):
            check_budget(layers, of, low - 0.1)


def test_budget_splits_by_hand():
    """r = 2: B_q = 5 * 3 / (2 k + 1), B_c = k B_q."""
    pairs = list(splits("weights", 5.0, content=200, quality=100))
    for content, quality in pairs:
        assert (2 * content + quality) / 3 == pytest.approx(5.0)
        assert 4 <= quality <= 8 and 2 <= content <= 8
    ratios = [content / quality for content, quality in pairs]
    assert ratios == pytest.approx(
        [k for k in np.linspace(0.46, 1.36, 10) if 15 / (2 * k + 1) >= 4]
    )


def test_groups_are_solved_apart_with_their_own_widths():
    layers = {}
    for index in range(20):
        layers[f"x.ff.{index}"] = Layer(f"x.ff.{index}", "linear", 100, 10)
        layers[f"conv{index}"] = Layer(f"conv{index}", "conv", 60, 30)
    random = np.random.default_rng(0)
    scores = {name: {2: random.random(), 4: 2.0, 8: 2 + random.random()} for name in layers}
    for of in ("weights", "activations"):
        found = candidates(scores, layers, of, 6.0)
        assert len({tuple(sorted(a.bits.items())) for a in found}) == len(found) > 0
        for allocation in found:
            assert allocation.mean == pytest.approx(6.0, abs=0.2)
            for name, bits in allocation.bits.items():
                assert bits in ALLOWED[of][layers[name].group]
    with pytest.raises(BudgetNotReachable, match="reached"):
        candidates(scores, layers, "activations", 3.0)
    # (2 * 2000 + 4 * 1200) / 3200 = 2.75 is the least; none of the paper's splits lies so near it.
    assert not list(splits("weights", 2.8, 2000, 1200))
    for allocation in candidates(scores, layers, "weights", 2.8):
        assert 2.75 <= allocation.mean <= 2.8 + SLACK


def test_most_sensitive_are_the_worst_of_each_group():
    layers = {f"a.ff.{i}": Layer(f"a.ff.{i}", "linear", 1, 1) for i in range(3)}
    layers |= {f"conv{i}": Layer(f"conv{i}", "conv", 1, 1) for i in range(3)}
    scores = {name: {8: float(name[-1])} for name in layers}
    assert most_sensitive(scores, layers, 0.01) == {"a.ff.0", "conv0"}
    assert most_sensitive(scores, layers, 0.5) == {"a.ff.0", "a.ff.1", "conv0", "conv1"}
    assert most_sensitive(scores, layers, 0.0) == frozenset()


def test_sqnr_by_hand():
    assert sqnr(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5])) == pytest.approx(20.0)
    assert sqnr(torch.ones(2), torch.ones(2)) == 200
    for overflowed in (torch.nan, torch.inf):
        assert sqnr(torch.ones(2), torch.tensor([1.0, overflowed])) == -200


def test_ssim_by_hand():
    flat = Image.new("RGB", (8, 8), (100, 100, 100))
    brighter = Image.new("RGB", (8, 8), (120, 120, 120))
    c1 = (0.01 * 255) ** 2
    assert ssim(flat, flat) == pytest.approx(1)
    assert ssim(flat, brighter) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1))
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert ssim(Image.fromarray(noise), Image.fromarray(255 - noise)) < 0


def test_image_error_does_not_wrap():
    dark, light = (Image.new("RGB", (2, 2), (v, v, v)) for v in (10, 250))
    assert image_error(dark, light) == 240**2
    wrong = (np.asarray(dark) - np.asarray(light)).astype(float)
    assert (wrong**2).mean() == 16**2


@pytest.fixture(scope="module")
def bench():
    from t2iedit.testing import tiny_model

    model = tiny_model("sd1")
    settings = Settings(("a red cat",), batch=1, steps=1)
    return Bench(model, settings, calibrate(model, settings))


def test_bench_judges_by_pictures_and_by_signal(bench):
    assert bench.similarity() == pytest.approx(1) and bench.signal() == 200
    schemes = {name: bench.scheme(name, 4, 16) for name in bench.layers}
    with bench.quantised(schemes):
        assert bench.similarity() < 1 and bench.signal() < 60 and bench.error() > 0
    assert bench.signal() == 200


def test_fewer_bits_are_really_calibrated_anew(bench):
    """Two bits read with the step of eight would clip nearly all of a layer's input."""
    name = "mid_block.resnets.0.conv1"
    signals = []
    for bits in (2, 4, 8):
        with bench.quantised({name: bench.scheme(name, 16, bits)}):
            signals.append(bench.signal())
    assert signals[0] < signals[1] < signals[2]
    from dataclasses import replace

    scheme = bench.scheme(name, 16, 8)
    clipped = replace(scheme, grids=(replace(scheme.grids[0], bits=2),))
    with bench.quantised({name: clipped}):
        assert bench.signal() < signals[0]


def test_groups_are_judged_by_their_own_metric_and_kept(bench, tmp_path, monkeypatch):
    keep = ("conv_in", "mid_block.attentions.0.transformer_blocks.0.ff.net.2")
    bench = Bench(bench.model, bench.settings, bench.ranges)
    bench.layers = {name: bench.layers[name] for name in keep}
    state = tmp_path / "scores.jsonl"

    def kill(count):
        if state.read_text().count("key") == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(bench, ["weights"], state=state, on_score=kill)
    state.write_text(state.read_text() + '\n{"digest": "cut o')
    calls = []
    for name in ("similarity", "signal"):
        original = getattr(bench, name)
        monkeypatch.setattr(
            bench, name, lambda name=name, original=original: calls.append(name) or original()
        )
    table = measure(bench, ["weights"], state=state)
    # conv_in's three widths and one of the other were done before the kill.
    assert calls == ["similarity", "similarity"]
    quality, content = (table["weights"][name] for name in keep)
    assert all(score <= 1 for score in content.values()) and quality[8] > 20
    calls.clear()
    assert measure(bench, ["weights"], state=state) == table and calls == []
    measure(bench, ["weights"], state=state, decoupled=False)
    assert set(calls) == {"signal"}


@pytest.fixture(scope="module")
def sdxl():
    return survey(hollow(ARCHITECTURES["sdxl"]), 64)


@needs_upstream
def test_upstreams_weights_have_their_true_mean(sdxl):
    bits = read_bits(UPSTREAM / "weight_4.00.yaml")
    assert mean_bits(bits, sdxl, "weights") == pytest.approx(4.006, abs=5e-4)
    report = bits_report(bits, sdxl, "weights")
    assert report["mean"] == 4.006
    assert report["layers by bits"] == {"2": 209, "4": 347, "8": 238}


@needs_upstream
def test_upstreams_inputs_hide_nine_whole_layers(sdxl):
    bits = read_bits(UPSTREAM / "act_7.77.yaml")
    assert listed_mean(bits, sdxl, "inputs") == pytest.approx(7.776, abs=5e-4)
    assert mean_bits(bits, sdxl, "inputs") == pytest.approx(8.03, abs=5e-3)
    assert bits_report(bits, sdxl, "activations")["layers by bits"] == {"4": 66, "8": 719, "16": 9}
