"""T2I-Zero's Algorithm 1 on hand-worked tensors, and known-wrong variants that must fail."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from t2iedit_decor.projection import project_out, row_space
from t2iedit_zero.concepts import found_concepts
from t2iedit_zero.similarity import correct, similarity
from t2iedit_zero.suppression import smoothed, suppress

import t2iedit
from t2iedit import Kind
from t2iedit.plugins import installed
from t2iedit.testing import tiny_model

Zero = installed().edit("t2i_zero")
PROMPT = "a red cat and a blue dog"

# Row 0 is BOS, a norm outlier; 1 and 2 are the words that the examples below work with.
ROWS = torch.tensor([[90.0, 0.0], [2.0, 1.0], [1.0, 3.0], [0.5, -1.0]], dtype=torch.float64)


def corrected(**options):
    settings = {"tau": 0.0, "gamma": 9, "alpha": 1.0} | options
    return correct(ROWS, settings.pop("concepts", [1]), settings.pop("scope", [1, 2]), **settings)


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_similarity_is_elementwise_and_normalised_by_its_maximum():
    # S = [[2*2, 1*1], [2*1, 1*3]] = [[4, 1], [2, 3]], max 4.
    weights = similarity(ROWS[1], ROWS[[1, 2]], tau=0.0, normalise="before")
    assert torch.equal(weights, torch.tensor([[1.0, 0.25], [0.5, 0.75]], dtype=torch.float64))


def test_correction_matches_hand_worked_numbers():
    # g = (1, .25)*(2, 1) + (.5, .75)*(1, 3) = (2.5, 2.5).
    assert torch.equal(corrected()[1], row(2.5, 2.5))
    # alpha = .5: (2, 1)/2 + (2.5, 2.5)/2.
    assert torch.equal(corrected(alpha=0.5)[1], row(2.25, 1.75))


def test_threshold_comes_after_normalising_by_default():
    # tau = .5 keeps S~ > .5 of [[1, .25], [.5, .75]]: 1 and .75, so g = (2, .75*3).
    assert torch.equal(corrected(tau=0.5)[1], row(2.0, 2.25))


def test_threshold_before_normalising_is_on_raw_products():
    # tau = .5 keeps all of [[4, 1], [2, 3]]; the result is that of no threshold.
    assert torch.equal(corrected(tau=0.5, normalise="after")[1], row(2.5, 2.5))
    assert not torch.equal(corrected(tau=0.5)[1], corrected(tau=0.5, normalise="after")[1])


def test_window_of_nought_leaves_only_the_own_row():
    # S~ of row 1 is (1, .25), so g = (2, .25).
    assert torch.equal(corrected(gamma=0)[1], row(2.0, 0.25))


def test_own_row_can_be_left_out():
    # Only row 2: S = (2, 3), max 3, so g = (2/3*1, 1*3).
    assert torch.allclose(corrected(include_self=False)[1], row(2 / 3, 3.0))


def test_maximum_of_each_row_or_feature_matches_hand_worked_numbers():
    # S = [[4, 1], [2, 3]]. Rows' maxima 4 and 3: [[1, .25], [2/3, 1]], so g = (2 + 2/3, .25 + 3).
    assert torch.allclose(corrected(maximum="row")[1], row(8 / 3, 3.25))
    # Features' maxima 4 and 3: [[1, 1/3], [.5, 1]], so g = (2 + .5, 1/3 + 3).
    assert torch.allclose(corrected(maximum="feature")[1], row(2.5, 10 / 3))


def test_row_without_positive_product_counts_for_nothing_by_its_own_maximum():
    # Row 3 is (.5, -1): its products with row 1 are (1, -1); with row 4, (-1, -1), there are none.
    rows = torch.cat([ROWS, torch.tensor([[-0.5, -1.0]], dtype=torch.float64)])
    with_it = correct(rows, [1], [1, 4], tau=0.0, gamma=9, alpha=1.0, maximum="row")
    assert torch.equal(with_it[1], corrected(scope=[1], maximum="row")[1])


def test_alone_and_without_itself_there_is_nothing_to_add():
    assert torch.equal(corrected(include_self=False, scope=[1])[1], row(0.0, 0.0))


def test_all_concepts_are_corrected_from_the_original_rows():
    both = corrected(concepts=[1, 2])
    assert torch.equal(both[1], corrected(concepts=[1])[1])
    assert torch.equal(both[2], corrected(concepts=[2])[2])
    in_turn = correct(corrected(concepts=[1]), [2], [1, 2], tau=0.0, gamma=9, alpha=1.0)
    assert not torch.equal(in_turn[2], both[2])


def test_one_after_another_each_sees_what_those_before_became():
    # Row 1 becomes (2.5, 2.5). For row 2, (1, 3): S = [[2.5, 7.5], [1, 9]], max 9,
    # so g = (2.5*2.5/9 + 1/9, 2.5*7.5/9 + 3) = (7.25/9, 45.75/9).
    both = corrected(concepts=[1, 2], simultaneous=False)
    assert torch.equal(both[1], row(2.5, 2.5))
    assert torch.allclose(both[2], row(7.25 / 9, 45.75 / 9))
    # In half precision the rows in between are not rounded.
    half = correct(ROWS.half(), [1, 2], [1, 2], tau=0.0, gamma=9, alpha=1.0, simultaneous=False)
    assert half.dtype == torch.float16 and torch.allclose(half[2].double(), both[2], atol=5e-3)


def test_dot_product_similarity_would_be_wrong():
    # A scalar weight per row, f_1.f_i = (5, 5) over 5, would give g = (2, 1) + (1, 3) = (3, 4).
    weights = ROWS[[1, 2]] @ ROWS[1]
    naive = ((weights / weights.max())[:, None] * ROWS[[1, 2]]).sum(dim=0)
    assert torch.equal(naive, row(3.0, 4.0))
    assert not torch.equal(corrected()[1], naive)


def test_bos_in_the_scope_would_set_the_scale():
    # With row 0, max(S) is 180 instead of 4, and what the words contribute nearly vanishes.
    assert corrected(scope=[0, 1, 2])[1][1] < 0.1 < corrected()[1][1]


def test_other_rows_stay():
    edited = corrected()
    assert torch.equal(edited[[0, 2, 3]], ROWS[[0, 2, 3]])


def test_input_is_not_changed():
    before = ROWS.clone()
    corrected()
    assert torch.equal(ROWS, before)


def test_products_without_a_positive_one_give_no_correction():
    rows = torch.tensor([[0.0, 0.0], [1.0, -1.0], [-1.0, 1.0]])
    edited = correct(rows, [1], [2], tau=0.0, gamma=9, alpha=1.0)
    assert torch.equal(edited[1], torch.zeros(2))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3), min_size=5, max_size=5),
    st.floats(0, 1),
    st.floats(0, 0.99),
    st.integers(0, 5),
    st.floats(0.5, 4),
)
def test_correction_is_linear_in_scale(values, alpha, tau, gamma, factor):
    # S~ does not depend on the scale of f, so scaling f scales the result.
    rows = torch.tensor(values, dtype=torch.float64)

    def apply(matrix):
        return correct(matrix, [1, 3], [1, 2, 3, 4], tau=tau, gamma=gamma, alpha=alpha)

    close = torch.allclose(apply(rows * factor), apply(rows) * factor, atol=1e-6)
    # A weight within rounding of the threshold may fall on either side of it.
    products = torch.cat([rows[c] * rows[1:] / (rows[c] * rows[1:]).max() for c in (1, 3)])
    assert close or (products - tau).abs().min() < 1e-9


def embedding(model, *edits, prompt=PROMPT):
    run = t2iedit.start(model, t2iedit.Request(prompt, steps=1, edits=edits))
    return t2iedit.condition([run])[0].prompt


def test_only_the_concepts_rows_change(model):
    edit = Zero(concepts=["red cat", "dog"], alpha=1)
    for plain, edited in zip(embedding(model), embedding(model, edit), strict=True):
        changed = (plain.hidden != edited.hidden).any(dim=1).nonzero().flatten().tolist()
        assert changed == [2, 3, 7]


def test_indices_shifted_by_one_more_bos_would_hit_other_words(sd1):
    # The public port adds 1 for BOS twice; rows 3, 4 are "cat and".
    (edited,) = embedding(sd1, Zero(concepts=["red cat"]))
    (plain,) = embedding(sd1)
    changed = (plain.hidden != edited.hidden).any(dim=1).nonzero().flatten().tolist()
    pieces = sd1.encoders[0].tokenizer.convert_ids_to_tokens(plain.tokens.ids[changed].tolist())
    assert pieces == ["red</w>", "cat</w>"]


def test_padding_takes_part_only_when_asked(sd1):
    def edited(scope):
        return embedding(sd1, Zero(concepts=["dog"], scope=scope, gamma=70, alpha=1))[0].hidden[7]

    assert not torch.equal(edited("words"), edited("words+eot"))
    assert not torch.equal(edited("words+eot"), edited("words+eot+pad"))


@pytest.mark.parametrize("decor_first", [True, False])
def test_edits_together_are_one_function_after_the_other(sd1, decor_first):
    decor = installed().edit("decor")(undesired=["fog"], alpha=0.7)
    zero = Zero(concepts=["red cat", "dog"], alpha=0.5, tau=0.2, gamma=3, scope="words+eot")
    (plain,) = embedding(sd1)
    fog = sd1.encoders[0].encode(sd1.encoders[0].tokenize("fog"))
    basis = row_space(fog.hidden[fog.tokens.words], 1e-3)

    def projected(rows):
        return torch.cat([rows[:1], project_out(rows[1:], basis, 0.7)])

    def corrected_(rows):
        scope = [1, 2, 3, 4, 5, 6, 7, 8]
        return correct(rows, [2, 3, 7], scope, tau=0.2, gamma=3, alpha=0.5)

    order = (decor, zero) if decor_first else (zero, decor)
    (edited,) = embedding(sd1, *order)
    first, second = (projected, corrected_) if decor_first else (corrected_, projected)
    assert torch.allclose(edited.hidden, second(first(plain.hidden)), atol=1e-5)
    assert not torch.allclose(edited.hidden, first(second(plain.hidden)), atol=1e-4)


def test_correction_can_bring_back_what_decor_removed(sd1):
    decor = installed().edit("decor")(undesired=["blue"], rows="words")
    zero = Zero(concepts=["red cat"], alpha=1, gamma=9)
    undesired = sd1.encoders[0].encode(sd1.encoders[0].tokenize("blue"))
    direction = undesired.hidden[undesired.tokens.words]

    def leak(*edits):
        (edited,) = embedding(sd1, *edits)
        return (edited.hidden[edited.tokens.of(Kind.WORD)] @ direction.T).abs().max()

    assert leak(decor) < 1e-4 < 1e-2 < leak(decor, zero)
    assert leak(zero, decor) < 1e-4


@pytest.mark.parametrize("concepts", [["elephant"], ["red cat", "elephant"]])
def test_useless_concepts_are_refused(sd1, concepts):
    with pytest.raises(t2iedit.UserError):
        embedding(sd1, Zero(concepts=concepts))


# Algorithm 2.

# One image, one head, a map of 1 x 3 pixels, tokens BOS, cat, dog, EOT.
MAPS = torch.tensor([[[[0.4, 0.3, 0.1, 0.2], [0.5, 0.2, 0.2, 0.1], [0.2, 0.0, 0.6, 0.2]]]])
CAT, DOG = [1], [2]


def suppressed(probs=MAPS, concepts=(CAT, DOG), size=(1, 3), strength=1.0, **options):
    return suppress(probs, concepts, size, strength=strength, **options)


def test_smoothing_is_a_gaussian_with_its_border_repeated():
    # The kernel is e^-1/2, 1, e^-1/2 over its sum: (.2741, .4519, .2741); a single row is repeated above and below.
    line = torch.tensor([[[[1.0], [0.0], [0.0]]]])
    expected = torch.tensor([0.2741 + 0.4519, 0.2741, 0.0])
    assert torch.allclose(smoothed(line, (1, 3)).flatten(), expected, atol=1e-4)
    assert torch.allclose(smoothed(torch.ones(1, 1, 12, 2), (3, 4)), torch.ones(1, 1, 12, 2))


def test_only_the_strongest_concept_stays_at_each_pixel():
    # Cat, blurred: (.7259*.3 + .2741*.2, .2741*.3 + .4519*.2, .2741*.2) = (.273, .173, .055);
    # dog: (.127, .282, .490). The cat wins the first pixel, the dog the others: in the middle by its neighbour.
    expected = MAPS.clone()
    expected[..., 0, 2] = expected[..., 1:, 1] = 0
    assert torch.equal(suppressed(), expected)


def test_half_strength_halves_the_losers():
    expected = MAPS.clone()
    expected[..., 0, 2] /= 2
    expected[..., 1:, 1] /= 2
    assert torch.equal(suppressed(strength=0.5), expected)


def test_no_strength_is_identity():
    assert torch.equal(suppressed(strength=0.0), MAPS)


def test_tokens_outside_the_concepts_stay():
    assert torch.equal(suppressed()[..., [0, 3]], MAPS[..., [0, 3]])


def test_the_literal_reading_would_take_bos_away():
    one_hot = torch.nn.functional.one_hot(MAPS.argmax(-1), 4)
    assert (MAPS * one_hot)[..., 2, 0] == 0 != suppressed()[..., 2, 0]


def test_winners_numbers_are_not_token_positions():
    # The public port takes the winner's number within the chosen set for a token: 0 (BOS) and 1 (cat) here.
    as_tokens = MAPS.clone()
    as_tokens[..., 0, 1:] = 0
    assert not torch.equal(suppressed(), as_tokens)
    far = torch.cat([MAPS[..., :1], MAPS[..., 3:], MAPS[..., 1:3]], dim=-1)
    assert torch.equal(suppressed(far, ([2], [3]))[..., 2:], suppressed()[..., 1:3])


def test_a_concept_of_several_tokens_has_their_mean_and_is_suppressed_whole():
    # "red cat" is tokens 1 and 2, dog is 3: means (.2, .2, .3) against .2, .1, .2 and no blur between equal pixels.
    probs = torch.tensor([0.4, 0.1, 0.3, 0.21]).expand(1, 1, 4, 4)
    edited = suppressed(probs, ([1, 2], [3]), (2, 2))
    assert torch.allclose(edited[0, 0, 0], torch.tensor([0.4, 0.0, 0.0, 0.21]))


def test_lost_mass_goes_where_it_is_sent():
    for pixel in range(3):
        assert torch.allclose(suppressed(renormalise="all")[0, 0, pixel].sum(), torch.tensor(1.0))
    # First pixel: BOS .4, cat .3, EOT .2 over .9.
    all_tokens = suppressed(renormalise="all")[0, 0, 0]
    assert torch.allclose(all_tokens, torch.tensor([0.4, 0.3, 0.0, 0.2]) / 0.9)
    winner = suppressed(renormalise="concepts")[0, 0, 0]
    assert torch.allclose(winner, torch.tensor([0.4, 0.4, 0.0, 0.2]))


def test_heads_decide_together_or_alone():
    # The second head sees the dog everywhere and, twice as strong, outvotes the first.
    second = torch.tensor([0.2, 0.0, 0.8, 0.0]).expand(1, 1, 3, 4)
    probs = torch.cat([MAPS, second], dim=1)
    assert (suppressed(probs, heads="mean")[0, 0, :, 1] == 0).all()
    assert suppressed(probs, heads="each")[0, 0, 0, 1] == pytest.approx(0.3)


def test_balanced_maps_let_a_concept_win_that_is_weak_everywhere():
    # Two pixels far enough apart not to blur into each other; the cat is stronger at both, by 6 and by 2 times.
    probs = torch.zeros(1, 1, 9, 4)
    probs[..., 0, 1:3], probs[..., 8, 1:3] = torch.tensor([0.6, 0.1]), torch.tensor([0.6, 0.3])
    assert (suppressed(probs, size=(1, 9))[0, 0, [0, 8], 1] > 0).all()
    # By their own means, .133 and .044: 4.5 and 2.25 at the first, 4.5 and 6.75 at the last.
    balanced = suppressed(probs, size=(1, 9), balance=True)[0, 0]
    assert torch.equal(balanced[0], probs[0, 0, 0] * torch.tensor([1, 1, 0, 1]))
    assert torch.equal(balanced[8], probs[0, 0, 8] * torch.tensor([1, 0, 1, 1]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.sampled_from(["none", "concepts", "all"]))
def test_suppression_is_bounded_and_spares_other_images(seed, strength, renormalise):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.softmax(torch.randn(2, 3, 12, 7, generator=generator), dim=-1)
    options = {"strength": strength, "renormalise": renormalise}
    edited = suppressed(probs, ([1, 2], [4]), (3, 4), **options)
    assert edited.min() >= 0 and edited.sum(-1).max() <= 1 + 1e-5
    alone = suppressed(probs[1:], ([1, 2], [4]), (3, 4), **options)
    assert torch.allclose(edited[1:], alone, atol=1e-6)


def pictures(model, **options):
    edit = Zero(**({"alpha": 0.0, "suppression": 1.0, "smallest_map": 1} | options))
    result = t2iedit.generate(model, t2iedit.Request(PROMPT, steps=6, edits=[edit]))
    return result.report["edits"][0]


def test_suppression_acts_in_the_first_part_and_in_large_maps_only(sd1):
    everywhere = pictures(sd1, suppress_until=1.0)["attention"]["maps"]
    assert pictures(sd1, suppress_until=0.5)["attention"]["maps"] == everywhere // 2
    assert "attention" not in pictures(sd1, smallest_map=999)
    assert "attention" not in pictures(sd1, suppression=0.0)


@pytest.mark.parametrize("size", [(72, 40), (64, 64)])
def test_suppression_of_any_size_and_batch(model, size):
    edit = Zero(suppression=1.0, smallest_map=1, suppress_until=1.0)
    request = t2iedit.Request(PROMPT, steps=2, size=size, seeds=(0, 1), edits=[edit])
    together = t2iedit.generate(model, request, batch_size=2).images
    alone = t2iedit.generate(model, request).images
    for a, b in zip(together, alone, strict=True):
        assert abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1


def columns_suppressed(model, monkeypatch, **values):
    """The tokens that each map of a run is suppressed by, as sets, in the order of the maps."""
    seen = []

    def watched(probs, concepts, size, **options):
        assert max(max(tokens) for tokens in concepts) < probs.shape[-1]
        seen.append({token for tokens in concepts for token in tokens})
        return suppress(probs, concepts, size, **options)

    monkeypatch.setattr("t2iedit_zero.suppress", watched)
    t2iedit.generate(model, t2iedit.Request(PROMPT, **values))
    return seen


EVERYWHERE = {"alpha": 0.0, "suppression": 1.0, "smallest_map": 1, "suppress_until": 1.0}


def test_prompt_repeated_beside_a_longer_negative_is_suppressed_in_each_copy(sd1, monkeypatch):
    edit = Zero(**EVERYWHERE)
    negative = "a photo of fog BREAK a car"
    seen = columns_suppressed(
        sd1, monkeypatch, steps=1, negative=negative, syntax="windows", edits=[edit]
    )
    assert seen and all(columns == {2, 3, 6, 7, 79, 80, 83, 84} for columns in seen)


def test_words_swapped_half_way_are_looked_for_where_they_stand_then(sd1, monkeypatch):
    swap = installed().edit("swap")(phrase="red cat", to="red red cat", start=0.5)
    seen = columns_suppressed(sd1, monkeypatch, steps=2, edits=[swap, Zero(**EVERYWHERE)])
    half = len(seen) // 2
    assert all(columns == {2, 3, 6, 7} for columns in seen[:half])
    assert all(columns == {2, 3, 4, 7, 8} for columns in seen[half:])


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_quantised_denoiser_is_suppressed_too(family):
    model, mixdq = tiny_model(family), installed().edit("mixdq")(weights=4)
    zero, values = Zero(**EVERYWHERE), {"steps": 2}

    def pixels(*edits):
        request = t2iedit.Request(PROMPT, edits=edits, **values)
        return np.asarray(t2iedit.generate(model, request).image).astype(int)

    plain, quantised, both = pixels(), pixels(mixdq), pixels(mixdq, zero)
    assert abs(both - quantised).max() > 0 and abs(quantised - plain).max() > 0
    assert (pixels() == plain).all()


@pytest.mark.parametrize(
    ("concepts", "words"),
    [(["red cat"], "two of them"), (["red cat", "cat"], "share words"), (["cat", "cat"], "share")],
)
def test_concepts_that_cannot_be_kept_apart_are_refused(sd1, concepts, words):
    with pytest.raises(t2iedit.EditNotSupported, match=words):
        embedding(sd1, Zero(concepts=concepts, suppression=1.0))


@pytest.mark.parametrize(
    ("prompt", "concepts"),
    [
        ("a red cat and a blue dog", ["red cat", "blue dog"]),
        ("A photo of a cat, a dog and the old man in the sea", ["cat", "dog", "old man"]),
        ("a red circle and a blue square on a white background", ["red circle", "blue square"]),
        ("a green star left of an orange ring", ["green star", "orange ring"]),
        ("a turtle with a yellow bowl.", ["turtle", "yellow bowl"]),
        ("a sandy beach", ["sandy beach"]),
        ("the", []),
        ("", []),
    ],
)
def test_concepts_are_found_in_the_prompt(prompt, concepts):
    assert found_concepts(prompt) == concepts


def test_found_concepts_are_used_and_reported(sd1):
    report = pictures(sd1)
    assert report["concepts"] == ["red cat", "blue dog"]
    with pytest.raises(t2iedit.EditNotSupported, match="name them"):
        t2iedit.start(sd1, t2iedit.Request("the", edits=[Zero()]))


LONG = "a red cat " * 30 + "BREAK a green apple and a yellow plum"


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_concepts_stand_in_later_windows(family):
    model = tiny_model(family)
    edit = Zero(concepts=["green apple", "yellow plum"], suppression=1)
    request = t2iedit.Request(LONG, syntax="windows", edits=[edit], steps=1)
    assert t2iedit.generate(model, request).report["edits"][0]["change"]


def test_each_encoders_own_words_are_meant():
    """In the attention, too, whose columns are those of the first encoder."""
    model = tiny_model("sdxl")
    own = "painting of a blue dog and a red cat"
    edit = Zero(concepts=["red cat", "blue dog"], alpha=0, suppression=1)
    request = t2iedit.Request(PROMPT, prompts={"clip_l": own}, edits=[edit], steps=1)
    run = t2iedit.start(model, request)
    tokens = run.read_by(model.encoders[0])
    words = [
        [tokens.text[slice(*tokens.offsets[row])] for row in group]
        for group in edit._groups(tokens, run)
    ]
    assert ["".join(word) for word in words] == ["redcat", "bluedog"]
