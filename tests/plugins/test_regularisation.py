"""CER and CAR on hand-worked tensors, on real encoders and denoisers, and known-wrong variants that must differ."""

import math
from contextlib import nullcontext

import pytest
import torch
from t2iedit_context.objective import (
    Part,
    Weights,
    accumulate,
    context_losses,
    encoded,
    make_pair,
    noise_schedule,
    noised,
    predicted,
)
from t2iedit_context.probe import probed
from t2iedit_context.regularisation import (
    aligned_contexts,
    attention_regularisation,
    context_rows,
    embedding_regularisation,
    mean_map,
    rescaled,
)

from t2iedit import EditNotSupported, Kind

MINE = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
THEIRS = torch.tensor([[4.0, 3.0], [0.0, 2.0]])
PART = Part("<toy>", "cat", 1)
PROMPT = "a red <toy> and a blue dog"


def test_paper_form_takes_each_tokens_cosine_over_its_channels():
    # Row 1: cos = (12 + 12) / 25 = .96. Row 2: the same direction. The mean of .04 and 0.
    assert embedding_regularisation(MINE, THEIRS).item() == pytest.approx(0.02)


def test_code_form_takes_each_channels_cosine_along_the_tokens():
    # Channel 1: (3, 0) and (4, 0) agree. Channel 2: (4, 5) . (3, 2) = 22, over sqrt(41 * 13).
    expected = (1 - 22 / math.sqrt(41 * 13)) / 2
    assert embedding_regularisation(MINE, THEIRS, "code").item() == pytest.approx(expected)


def test_the_two_axes_are_not_the_same_loss():
    paper, code = (embedding_regularisation(MINE, THEIRS, form) for form in ("paper", "code"))
    assert abs(paper - code) > 1e-3


def test_nothing_flows_into_the_categorys_side():
    mine, theirs = MINE.clone().requires_grad_(), THEIRS.clone().requires_grad_()
    embedding_regularisation(mine, theirs).backward()
    assert mine.grad.abs().sum() > 0 and theirs.grad is None
    layers = {"a": mine.detach().clone().requires_grad_()}
    attention_regularisation(layers, {"a": theirs}).backward()
    assert layers["a"].grad is not None and theirs.grad is None


OWN = {"a": torch.tensor([[0.2, 0.4]]), "b": torch.tensor([[0.6, 0.0]])}
CATEGORY = {"a": torch.tensor([[0.1, 0.4]]), "b": torch.tensor([[0.1, 0.2]])}


def test_attention_paper_form_squares_the_mean_over_all_layers():
    # Gaps (.1, 0) and (.5, -.2), mean (.3, -.1), squares .09 and .01.
    assert attention_regularisation(OWN, CATEGORY).item() == pytest.approx(0.05)


def test_attention_paper_form_counts_every_value_of_every_map():
    # With four times the values in layer a: (.4 + .5) / 5 = .18 and -.2 / 5 = -.04.
    weighted = attention_regularisation(OWN, CATEGORY, {"a": 4, "b": 1})
    assert weighted.item() == pytest.approx((0.18**2 + 0.04**2) / 2)


def test_attention_code_form_squares_in_each_layer_and_sums_over_the_batch():
    # Layer a: (.01 + 0) / 2. Layer b: (.25 + .04) / 2. Their mean is .075, twice that for two alike.
    code = attention_regularisation(OWN, CATEGORY, form="code")
    assert code.item() == pytest.approx(0.075)
    twice = [{k: v.repeat(2, 1) for k, v in side.items()} for side in (OWN, CATEGORY)]
    assert attention_regularisation(*twice, form="code").item() == pytest.approx(0.15)
    assert attention_regularisation(*twice).item() == pytest.approx(0.05)


def test_mean_map_is_over_heads_and_pixels():
    probs = torch.tensor([[[[0.2, 0.8], [0.6, 0.4]], [[0.0, 1.0], [0.8, 0.2]]]])
    assert torch.allclose(mean_map(probs), torch.tensor([[0.4, 0.6]]))


def test_rescaling_keeps_the_direction():
    assert torch.allclose(
        rescaled(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), 10.0),
        torch.tensor([[6.0, 0.0], [0.0, 8.0]]),
    )


def test_context_is_told_by_position(model):
    for encoder in model.encoders:
        # Both ids pad somewhere, and here they are words.
        tokens = encoder.tokenize("a ! <|endoftext|> cat")
        assert context_rows(tokens, [4]) == [1, 2, 3, 5]
        assert context_rows(tokens, [4], bos=True)[0] == 0
        assert context_rows(tokens, [], padding=True) == list(range(1, 77))


def test_last_of_equal_ids_is_not_taken_for_the_end(sd1):
    tokens = sd1.encoders[0].tokenize("a cat")
    by_id = (tokens.ids == tokens.ids[-1]).nonzero().flatten().tolist()
    assert len(by_id) > 1 and context_rows(tokens, []) == [1, 2, tokens.of(Kind.EOT)[0]]


def test_category_of_more_tokens_than_the_concept_aligns(model):
    pair = make_pair(model, PROMPT, [Part("<toy>", "zeppelin", 2)])
    for mine, theirs, (rows, others) in zip(
        pair.tokens, pair.category, pair.contexts["paper"], strict=True
    ):
        theirs = theirs.tokens
        assert len(theirs.words) != len(mine.words)
        assert mine.ids[rows].tolist() == theirs.ids[others].tolist()
        assert len(rows) == len(mine.words) - 2 + 1


def test_authors_program_keeps_bos_and_the_paper_form_does_not(model):
    pair = make_pair(model, PROMPT, [PART])
    for (rows, others), (longer, longer_others) in zip(
        pair.contexts["paper"], pair.contexts["code"], strict=True
    ):
        assert (longer, longer_others) == ([0, *rows], [0, *others]) and 0 not in rows


def test_each_loss_has_the_rows_of_its_own_form(sd1):
    vectors = category_vectors(sd1, "car")

    def attention(embedding_form, attention_form):
        weights = Weights(1.0, 1.0, embedding_form, attention_form)
        with probed(sd1.denoiser) as probe:
            found = context_losses(
                sd1,
                make_pair(sd1, PROMPT, [PART]),
                {"<toy>": vectors},
                noisy(sd1),
                probe,
                weights,
                nullcontext(),
            )
        return found["attention"].item()

    for form in ("paper", "code"):
        assert attention("paper", form) == attention("code", form)


def test_prompts_that_differ_elsewhere_are_refused(sd1):
    (encoder,) = sd1.encoders
    first, second = encoder.tokenize("a cat"), encoder.tokenize("a red cat")
    with pytest.raises(ValueError, match="2 and 3 tokens"):
        aligned_contexts(first, [2], second, [3])


def category_vectors(model, word="cat"):
    return {
        e.name: e.embed(e.tokenize(word))[1:2].clone().float().requires_grad_()
        for e in model.encoders
    }


def noisy(model, count=2):
    side, schedule = 8, noise_schedule(model)
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, count, 4, side, side, generator=generator)
    return noised(schedule, latents, noise, torch.tensor([100, 700])[:count])


def losses(model, vectors, form="paper", weights=(1.0, 1.0)):
    pair = make_pair(model, PROMPT, [PART])
    with probed(model.denoiser) as probe:
        return context_losses(
            model,
            pair,
            {"<toy>": vectors},
            noisy(model),
            probe,
            Weights(*weights, form, form),
            nullcontext(),
        )


@pytest.mark.parametrize("form", ["paper", "code"])
def test_concept_that_is_its_category_costs_nothing(model, form):
    with torch.enable_grad():
        found = losses(model, category_vectors(model), form)
    assert found["embedding"].item() == pytest.approx(0, abs=1e-6)
    assert found["attention"].item() == pytest.approx(0, abs=1e-12)


def test_other_vectors_cost_something_in_every_form(model):
    other = category_vectors(model, "car")
    for form in ("paper", "code"):
        found = losses(model, other, form)
        assert found["embedding"] > 1e-4 and found["attention"] > 0


def test_gradients_reach_the_vectors_and_nothing_else(model):
    vectors = category_vectors(model, "car")
    leaves = list(vectors.values())
    for name, loss in losses(model, vectors).items():
        gradients = torch.autograd.grad(loss, leaves, retain_graph=True)
        assert all(gradient.any() for gradient in gradients), name
    modules = [model.denoiser, *(encoder.transformer for encoder in model.encoders)]
    assert all(p.grad is None for module in modules for p in module.parameters())


def test_context_before_the_concept_gives_no_gradient(model):
    pair = make_pair(model, PROMPT, [PART])
    vectors = category_vectors(model, "car")
    mine = encoded(model, pair.tokens, {"<toy>": vectors})
    theirs = pair.category
    for one, other, (rows, others) in zip(mine, theirs, pair.contexts["paper"], strict=True):
        leaf = vectors[one.tokens.encoder]
        before = [row for row in rows if row < 3]
        assert len(before) == 2
        loss = embedding_regularisation(one.hidden[before], other.hidden[before])
        (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True, allow_unused=True)
        assert gradient is None or not gradient.any()
        after = slice(2, None)
        loss = embedding_regularisation(one.hidden[rows[after]], other.hidden[others[after]])
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert gradient.any()


def test_probe_reads_all_cross_attention_and_changes_nothing(model):
    before = dict(model.denoiser.attn_processors)
    pair = make_pair(model, PROMPT, [PART])
    with torch.no_grad():
        embeddings = pair.category
        plain = predicted(model, embeddings, noisy(model))
        with probed(model.denoiser) as probe:
            with probe.reading() as means:
                seen = predicted(model, embeddings, noisy(model))
            predicted(model, embeddings, noisy(model))
    assert torch.allclose(plain, seen, atol=1e-5)
    assert len(means.layers) == sum(".attn2." in name for name in before) > 1
    for layer in means.layers.values():
        assert layer.shape == (2, 77)
        assert torch.allclose(layer.sum(dim=1), torch.ones(2), atol=1e-5)
    assert set(means.sizes.values()) != {1}
    assert model.denoiser.attn_processors == before


def test_probe_is_taken_away_after_an_exception(sd1):
    before = dict(sd1.denoiser.attn_processors)
    with pytest.raises(RuntimeError), probed(sd1.denoiser):
        raise RuntimeError
    assert sd1.denoiser.attn_processors == before


def test_probe_refuses_attention_that_is_not_diffusers_own(sd1):
    class Foreign:
        pass

    processors = dict(sd1.denoiser.attn_processors)
    name = next(name for name in processors if ".attn2." in name)
    sd1.denoiser.set_attn_processor(processors | {name: Foreign()})
    with pytest.raises(EditNotSupported, match="Foreign"), probed(sd1.denoiser):
        pass


def test_gradient_checkpointing_leaves_the_gradients_as_they_are(sd1):
    vectors, found = category_vectors(sd1, "car"), []
    pair = make_pair(sd1, PROMPT, [PART])
    for wanted in (False, True):
        if wanted:
            sd1.denoiser.enable_gradient_checkpointing()
        with probed(sd1.denoiser) as probe:
            loss = context_losses(
                sd1,
                pair,
                {"<toy>": vectors},
                noisy(sd1),
                probe,
                Weights(0.0, 1.0),
                nullcontext(),
            )
            (gradient,) = torch.autograd.grad(loss["attention"], list(vectors.values()))
        found.append(gradient)
    assert found[0].any() and torch.allclose(*found, rtol=1e-4, atol=1e-12)


def test_small_gradients_survive_half_precision():
    leaf = torch.ones(3, requires_grad=True)
    (lost,) = torch.autograd.grad(leaf.half().float().sum() * 1e-9, [leaf])
    assert not lost.any()
    accumulate(leaf.half().float().sum() * 1e-9, [leaf], torch.float16)
    assert torch.allclose(leaf.grad, torch.full((3,), 1e-9), rtol=1e-2)
    accumulate(leaf.sum(), [leaf], torch.float32)
    assert torch.allclose(leaf.grad, torch.ones(3))
