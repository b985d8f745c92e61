"""DECOR's projection on hand-worked tensors, its properties, and known-wrong variants that must fail."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from t2iedit_context.embeddings import Concept, write_concept
from t2iedit_decor.projection import project_out, removed_energy, row_space

import t2iedit
from t2iedit import Kind, TextEncoder
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


# s = (4, 2, 1): the squares 16, 4 and 1 make 21.
AXES = tensor((4, 0, 0), (0, 2, 0), (0, 0, 1))


def test_rank_and_energy_take_the_strongest_directions():
    assert torch.equal(row_space(AXES, TOL, rank=2).abs(), tensor((1, 0, 0), (0, 1, 0)))
    # 16/21 = .76 and 20/21 = .95 of the energy are in the first one and two.
    assert [len(row_space(AXES, TOL, energy=e)) for e in (0.7, 0.77, 0.96, 1.0)] == [1, 2, 3, 3]


def test_soft_projection_weighs_directions_by_their_strength():
    # soft = .25: weights 16/(16+4) = .8, 4/(4+4) = .5, 1/(1+4) = .2.
    left = project_out(tensor((1, 1, 1)), row_space(AXES, TOL, soft=0.25), 1.0)
    assert torch.allclose(left, tensor((0.2, 0.5, 0.8)))


def test_a_centre_is_left_alone():
    # m = (1, 1, 0): of x - m = (2, 1, 0) the first axis goes, so x' = (3 - 2, 2, 0).
    basis, m = row_space(tensor((1, 0, 0)), TOL), tensor((1, 1, 0))[0]
    assert torch.equal(project_out(tensor((3, 2, 0)), basis, 1.0, m), tensor((1, 2, 0)))
    assert torch.equal(project_out(m[None], basis, 1.0, m), m[None])


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


def learned(folder, model, word):
    """A concept file whose vectors are the vocabulary's own of a word."""
    vectors = {e.name: e.embed(e.tokenize(word))[1:2].clone() for e in model.encoders}
    write_concept(Concept("<toy>", vectors, "cat"), folder / "toy.safetensors")
    return installed().edit("core")(concept=[str(folder / "toy.safetensors")])


@pytest.mark.parametrize("options", [{"undesired": ["a <toy>"]}, {"phrases": ["<toy>"]}])
def test_learned_concepts_are_undesired_by_their_placeholders(model, tmp_path, options):
    spoken = {
        key: [text.replace("<toy>", "car") for text in value] for key, value in options.items()
    }
    core = learned(tmp_path, model, "car")
    by_name, _ = embeddings(model, core, Decor(**options), prompt="a <toy> and a blue dog")
    by_word, _ = embeddings(model, Decor(**spoken), prompt="a car and a blue dog")
    for one, other in zip(by_name, by_word, strict=True):
        assert torch.allclose(one.hidden, other.hidden, atol=1e-5)
    # Without the concept the placeholder is but its letters.
    letters, _ = embeddings(model, Decor(**options), prompt="a <toy> and a blue dog")
    assert not torch.allclose(letters[0].hidden, by_word[0].hidden, atol=1e-2)


def test_undesired_prompts_are_encoded_once_for_many_prompts(sd1, monkeypatch):
    read = []
    encode = TextEncoder.encode_batch
    monkeypatch.setattr(
        TextEncoder,
        "encode_batch",
        lambda self, batch, embeds=None: (
            read.extend(t.text for t in batch) or encode(self, batch, embeds)
        ),
    )
    known = {}
    for prompt in ("a cat", "a dog"):
        edit = Decor(undesired=["fog", "a car"], stop=0.5)
        run = t2iedit.start(sd1, t2iedit.Request(prompt, steps=2, edits=[edit]))
        t2iedit.condition([run], known)
    assert sorted(read) == ["", "a car", "a cat", "a dog", "fog"]


def test_end_of_a_too_long_undesired_prompt_is_reported(sd1):
    _, run = embeddings(sd1, Decor(undesired=["a " * 80 + "fog"], rank=1))
    assert any("longer than the 77 tokens" in told for told in run.report["warnings"])


def test_negative_prompt_is_left_alone(model):
    def negative(*edits):
        run = t2iedit.start(model, t2iedit.Request("a cat", steps=1, edits=edits))
        return t2iedit.condition([run])[0].negative

    for plain, edited in zip(negative(), negative(Decor(undesired=["fog"])), strict=True):
        assert torch.equal(plain.hidden, edited.hidden)


def test_phrases_of_the_prompt_are_undesired_as_they_stand_there(model):
    (plain, *_), _ = embeddings(model)
    (edited, *_), _ = embeddings(model, Decor(phrases=["red", "dog"]))
    phrase = plain.hidden[[2, 7]]
    assert (edited.hidden[1:] @ phrase.T).abs().max() < 1e-3 * phrase.square().sum()
    assert not torch.allclose(plain.hidden, edited.hidden)


def test_centring_keeps_the_mean(sd1):
    (plain,), _ = embeddings(sd1)
    (edited,), _ = embeddings(sd1, Decor(undesired=["fog"], centre=True, rows="words"))
    words = plain.tokens.words
    means = [e.hidden[words].mean(0) for e in (plain, edited)]
    assert torch.allclose(*means, atol=1e-5)
    assert not torch.allclose(plain.hidden, edited.hidden)


@pytest.mark.parametrize(
    "options",
    [
        {"undesired": ["a red cat and a blue dog"], "rank_tol": 0.0},
        {"phrases": ["a red cat and a blue dog"], "rank_tol": 0.0},
    ],
)
def test_removing_the_whole_prompt_is_refused(sd1, options):
    with pytest.raises(t2iedit.EditNotSupported, match="spans the whole prompt"):
        embeddings(sd1, Decor(**options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing is undesired"),
        ({"undesired": [" "]}, "must not be empty"),
        ({"phrases": ["elephant"]}, "elephant"),
        ({"undesired": ["fog"], "rank": 0}, "rank"),
    ],
)
def test_useless_options_are_refused(sd1, options, words):
    with pytest.raises(t2iedit.UserError, match=words):
        embeddings(sd1, Decor(**options))


def test_phrase_stands_in_a_later_window(sd1):
    prompt = "a red cat " * 30 + "BREAK a green apple and a yellow plum"
    edit = Decor(phrases=["yellow plum"])
    request = t2iedit.Request(prompt, syntax="windows", edits=[edit], steps=1)
    assert t2iedit.encode(sd1, request).prompt[0].hidden.isfinite().all()


def test_phrase_is_found_in_what_each_encoder_of_a_conditioning_read(sdxl):
    own = {"clip_g": "some old painting of a blue dog and a red cat"}
    edit = Decor(phrases=["red cat"])
    at_once = t2iedit.encode(
        sdxl, t2iedit.Request("a red cat and a blue dog", prompts=own, edits=[edit])
    )
    plain = t2iedit.encode(sdxl, t2iedit.Request("a red cat and a blue dog", prompts=own))
    later = t2iedit.encode(sdxl, plain, edits=[edit])
    for one, other in zip(at_once.prompt, later.prompt, strict=True):
        assert torch.equal(one.hidden, other.hidden)
