"""DECOR's projection on hand-worked tensors, its properties, and known-wrong variants that must fail."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from t2iedit_decor.projection import project_out, removed_energy, row_space

import t2iedit
from t2iedit import Kind
from t2iedit.plugins import installed

Decor = installed().edit("decor")
TOL = 1e-3


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_projection_matches_hand_worked_numbers():
    # X~ = [(3, 4, 0)] spans v = (.6, .8, 0). For x = (5, 0, 2): x.v = 3, so x P = (1.8, 2.4, 0).
    basis = row_space(tensor((3, 4, 0)), TOL)
    rows = tensor((5, 0, 2))
    assert torch.allclose(project_out(rows, basis, 1.0), tensor((3.2, -2.4, 2.0)))
    assert torch.allclose(project_out(rows, basis, 0.5), tensor((4.1, -1.2, 2.0)))
    assert torch.equal(project_out(rows, basis, 0.0), rows)


def test_two_directions_match_hand_worked_numbers():
    # Rows (1, 0, 0) and (1, 1, 0) span the first two axes, so only the third coordinate is left.
    basis = row_space(tensor((1, 0, 0), (1, 1, 0)), TOL)
    assert basis.shape == (2, 3)
    assert torch.allclose(
        project_out(tensor((7, -2, 3)), basis, 1.0), tensor((0, 0, 3)), atol=1e-12
    )


def test_subtracting_each_undesired_vector_in_turn_would_be_wrong():
    # The naive variant, which forgets that the vectors are not orthogonal, leaves some of the subspace behind.
    undesired, rows = tensor((1, 0, 0), (1, 1, 0)), tensor((7, -2, 3))
    naive = rows.clone()
    for vector in undesired:
        unit = vector / vector.norm()
        naive = naive - (rows @ unit)[:, None] * unit
    assert not torch.allclose(
        naive @ undesired.T, torch.zeros(1, 2, dtype=torch.float64), atol=1e-6
    )
    right = project_out(rows, row_space(undesired, TOL), 1.0)
    assert torch.allclose(right @ undesired.T, torch.zeros(1, 2, dtype=torch.float64), atol=1e-12)


def test_rank_tolerance_keeps_noise_out():
    # The second row repeats the first up to 1e-6: without the tolerance it would remove a whole axis more.
    undesired = tensor((1, 0, 0), (1, 1e-6, 0))
    assert len(row_space(undesired, TOL)) == 1
    assert len(row_space(undesired, 0.0)) == 2
    kept = project_out(tensor((0, 1, 0)), row_space(undesired, TOL), 1.0)
    assert torch.allclose(kept, tensor((0, 1, 0)), atol=1e-5)


def test_nothing_undesired_removes_nothing():
    rows = tensor((1, 2, 3))
    assert torch.equal(project_out(rows, row_space(torch.zeros(0, 3), TOL), 1.0), rows)


def test_bos_among_the_undesired_rows_would_hide_the_rest():
    # A row of norm 800 is the first direction by far: the tolerance then drops the words themselves.
    bos, word = tensor((800, 0, 0)), tensor((0, 0.5, 0))
    with_bos = row_space(torch.cat([bos, word]), TOL)
    assert torch.allclose(project_out(tensor((0, 1, 0)), with_bos, 1.0), tensor((0, 1, 0)))
    without = row_space(word, TOL)
    assert torch.allclose(project_out(tensor((0, 1, 0)), without, 1.0), tensor((0, 0, 0)))


def matrices(rows, dim):
    numbers = st.floats(-4, 4, allow_nan=False, width=32)
    row = st.lists(numbers, min_size=dim, max_size=dim)
    return st.lists(row, min_size=rows, max_size=rows).map(
        lambda m: torch.tensor(m, dtype=torch.float64)
    )


@settings(max_examples=60, deadline=None)
@given(matrices(4, 6), matrices(2, 6), st.floats(0, 1), st.permutations([0, 1]), st.floats(0.5, 9))
def test_projection_has_its_properties(rows, undesired, alpha, order, factor):
    basis = row_space(undesired, TOL)
    once = project_out(rows, basis, alpha)
    twice = project_out(once, basis, alpha)
    assert torch.allclose(twice, project_out(rows, basis, 1 - (1 - alpha) ** 2), atol=1e-9)
    assert torch.allclose(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64), atol=1e-9)
    assert torch.allclose(
        project_out(rows, basis, 1.0) @ basis.T, torch.zeros(1, dtype=torch.float64), atol=1e-9
    )
    other = row_space(undesired[list(order)] * factor, TOL)
    if len(other) == len(basis):
        assert torch.allclose(project_out(rows, other, alpha), once, atol=1e-6)


def test_removed_energy_is_a_share():
    assert removed_energy(tensor((3, 4)), tensor((0, 4))) == pytest.approx(9 / 25)
    assert removed_energy(tensor((0, 0)), tensor((0, 0))) == 0


def embeddings(model, *edits, prompt="a red cat and a blue dog"):
    run = t2iedit.start(model, t2iedit.Request(prompt, steps=1, edits=edits))
    return t2iedit.condition([run])[0].prompt, run


def test_edited_rows_are_orthogonal_to_the_undesired_words(model):
    edited, _ = embeddings(model, Decor(undesired=["fog", "a car"], rank_tol=1e-5))
    for encoder, embedding in zip(model.encoders, edited, strict=True):
        for text in ("fog", "a car"):
            undesired = encoder.encode(encoder.tokenize(text))
            words = undesired.hidden[undesired.tokens.words]
            assert (embedding.hidden[1:] @ words.T).abs().max() < 1e-3
        assert embedding.hidden[1:].abs().max() > 0.1


def test_each_encoder_is_projected_in_its_own_space(sdxl):
    plain, _ = embeddings(sdxl)
    edited, _ = embeddings(sdxl, Decor(undesired=["fog"]))
    for encoder, before, after in zip(sdxl.encoders, plain, edited, strict=True):
        undesired = encoder.encode(encoder.tokenize("fog"))
        basis = row_space(undesired.hidden[undesired.tokens.words], TOL)
        assert torch.allclose(
            after.hidden[1:], project_out(before.hidden[1:], basis, 1.0), atol=1e-6
        )
        assert after.pooled is None or torch.equal(after.pooled, before.pooled)


def test_rows_option_leaves_eot_and_padding_alone(sd1):
    (plain,), _ = embeddings(sd1)
    (edited,), _ = embeddings(sd1, Decor(undesired=["fog"], rows="words"))
    rest = plain.tokens.of(Kind.BOS, Kind.EOT, Kind.PAD)
    assert torch.equal(plain.hidden[rest], edited.hidden[rest])
    assert not torch.equal(plain.hidden, edited.hidden)


def test_span_option_adds_the_eot_row(sd1):
    _, words = embeddings(sd1, Decor(undesired=["fog"]))
    _, more = embeddings(sd1, Decor(undesired=["fog"], span="words+eot"))
    ranks = [run.report["edits"][0]["directions (clip)"] for run in (words, more)]
    assert ranks == [1, 2]


def test_negative_prompt_is_left_alone(model):
    def negative(*edits):
        run = t2iedit.start(model, t2iedit.Request("a cat", steps=1, edits=edits))
        return t2iedit.condition([run])[0].negative

    for plain, edited in zip(negative(), negative(Decor(undesired=["fog"])), strict=True):
        assert torch.equal(plain.hidden, edited.hidden)
