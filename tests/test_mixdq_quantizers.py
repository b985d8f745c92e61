"""MixDQ's quantisers on tensors worked by hand, and the wrong variants that they must not be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from t2iedit_mixdq.quantizers import (
    BITS,
    EPS,
    Affine,
    affine,
    clipped_share,
    dequantize,
    fake_affine,
    observed_ranges,
    quantize,
    quantize_affine,
    symmetric_delta,
)


def test_symmetric_step_is_largest_value_over_top_integer():
    weight = torch.tensor([[-6.35, 1.0], [0.7, 0.2]])
    assert torch.allclose(symmetric_delta(weight, 8), torch.tensor([0.05, 0.7 / 127]))
    assert torch.allclose(symmetric_delta(weight, 4), torch.tensor([6.35 / 7, 0.1]))
    assert torch.allclose(symmetric_delta(weight, 2), torch.tensor([6.35, 0.7]))


def test_symmetric_integers_by_hand():
    weight = torch.tensor([[0.7, -0.7, 0.24, 0.26, 0.0], [14.0, -3.0, 1.0, 0.9, -0.9]])
    integers = quantize(weight, torch.tensor([0.1, 2.0]), 4)
    assert integers.tolist() == [[7, -7, 2, 3, 0], [7, -2, 0, 0, 0]]
    assert dequantize(integers, torch.tensor([0.1, 2.0]))[1].tolist() == [14.0, -4.0, 0, 0, 0]


def test_symmetric_grid_reaches_one_further_below_zero():
    weight = torch.tensor([[-20.0, 20.0]])
    assert quantize(weight, torch.tensor([1.0]), 4).tolist() == [[-8, 7]]
    assert quantize(weight, torch.tensor([1.0]), 2).tolist() == [[-2, 1]]


def test_convolution_weights_have_a_step_for_each_output_channel():
    weight = torch.arange(24.0).view(2, 3, 2, 2)
    assert torch.allclose(symmetric_delta(weight, 8), torch.tensor([11 / 127, 23 / 127]))


def test_dead_channel_leaves_the_others_their_steps():
    weight = torch.tensor([[0.0, 0.0], [1.27, -0.3]])
    delta = symmetric_delta(weight, 8)
    assert delta[0] == pytest.approx(EPS) and delta[1] == pytest.approx(0.01)
    error = (dequantize(quantize(weight, delta, 8), delta) - weight).abs().max()
    assert error < 0.01

    def as_released(weight):  # one small step overwrites them all
        full = weight.abs().amax(1) / 127
        return torch.full_like(full, EPS) if (full < EPS).any() else full

    wrong = as_released(weight)
    assert (dequantize(quantize(weight, wrong, 8), wrong) - weight).abs().max() > 1


def test_affine_grid_by_hand():
    assert affine(-1.0, 2.0, 2) == Affine(1.0, 1, 2)
    grid = affine(-0.5, 2.05, 8)
    assert (grid.delta, grid.zero) == (pytest.approx(0.01), 50)
    x = torch.tensor([-1.0, -0.5, 0.0, 0.004, 0.006, 2.05, 9.0])
    assert quantize_affine(x, grid).tolist() == [0, 0, 50, 50, 51, 255, 255]
    assert torch.allclose(
        fake_affine(x, grid), torch.tensor([-0.5, -0.5, 0.0, 0.0, 0.01, 2.05, 2.05])
    )


def test_affine_grid_always_holds_zero():
    for low, high in [(1.0, 3.0), (-3.0, -1.0), (0.0, 0.0)]:
        for bits in BITS:
            grid = affine(low, high, bits)
            assert 0 <= grid.zero < grid.levels
            assert fake_affine(torch.zeros(1), grid).item() == 0


def test_affine_grid_is_not_symmetric():
    grid = affine(0.0, 10.0, 4)
    assert grid.zero == 0
    symmetric = fake_affine(torch.tensor([10.0]), affine(-10.0, 10.0, 4))
    assert fake_affine(torch.tensor([10.0]), grid).item() == pytest.approx(10.0)
    assert grid.delta < affine(-10.0, 10.0, 4).delta and symmetric.item() != grid.delta


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20),
    st.sampled_from(BITS),
)
def test_rounding_error_is_half_a_step_at_most(values, bits):
    x = torch.tensor(values)
    grid = affine(float(x.min()), float(x.max()), bits)
    # The zero point is rounded too, so the ends may lie up to one step outside.
    assert (fake_affine(x, grid) - x).abs().max() <= grid.delta * 1.001
    delta = symmetric_delta(x[None], bits)
    assert (dequantize(quantize(x[None], delta, bits), delta) - x).abs().max() <= delta * 0.5001


def test_searched_range_has_less_squared_error_with_an_outlier():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 400, generator=generator)
    weight[1, 7] = 30.0

    def error(search):
        delta = symmetric_delta(weight, 4, search)
        return (dequantize(quantize(weight, delta, 4), delta) - weight).square().sum(1)

    assert (error("mse") <= error("minmax")).all()
    assert error("mse")[1] < 0.9 * error("minmax")[1]


def test_search_keeps_the_full_range_where_nothing_is_better():
    weight = torch.tensor([[-8.0, 7.0, 3.0, 1.0]]) * 7 / 8
    exact = torch.tensor([[7.0, -7.0, 3.0, 1.0]])
    assert symmetric_delta(exact, 4, "mse").item() == 1.0
    assert symmetric_delta(weight, 4, "mse").item() <= 1.0


def test_observed_ranges_are_minimum_and_maximum_at_every_width():
    ranges = observed_ranges(torch.tensor([-2.0, 0.5, 6.0]))
    assert ranges.tolist() == [[-2.0, 6.0]] * 3


def test_searched_ranges_differ_between_widths():
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    x[0] = 20.0
    two, four, eight = observed_ranges(x, "mse")
    assert two[1] < four[1] < eight[1] <= 20


def test_reading_the_eight_bit_step_with_fewer_levels_is_wrong():
    """The released sensitivity scripts may do so: it clips nearly everything."""
    x = torch.linspace(0, 1, 101)
    right = affine(0.0, 1.0, 2)
    wrong = Affine(affine(0.0, 1.0, 8).delta, 0, 2)
    assert (fake_affine(x, right) - x).abs().max() < 0.17
    assert (fake_affine(x, wrong) - x).abs().max() > 0.9


def test_clipped_share_counts_what_lies_outside():
    grid = affine(0.0, 2.55, 8)
    assert clipped_share(torch.tensor([0.0, 2.55, 2.554, -0.004]), grid) == 0
    assert clipped_share(torch.tensor([0.0, 1.0, 2.6, -1.0]), grid) == 0.5
    assert clipped_share(torch.zeros(0), grid) == 0


def test_half_precision_is_rounded_in_float32():
    """x / delta in bfloat16 keeps 8 bits, so its rounding would move integers above 128."""
    x = torch.tensor([1.7969], dtype=torch.bfloat16)
    grid = affine(0.0, 2.55, 8)
    assert quantize_affine(x, grid).item() == 180
    assert fake_affine(x, grid).dtype == torch.bfloat16
