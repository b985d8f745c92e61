"""The edit `core`: concepts in the rows of their placeholders, several, in several vectors, in both prompts."""

import json

import pytest
import torch
from t2iedit_context.embeddings import Concept, ConceptNotUsable, write_concept
from t2iedit_context.placing import is_one_token, placed, stand_in, worded

import t2iedit
from t2iedit import EditNotSupported, SpanTruncated, Wording
from t2iedit.plugins import installed
from t2iedit.testing import FAMILIES, check_edit, tiny_model

Core = installed().edit("core")
PROMPT = "a photo of a <toy> and a blue dog"


def random_vectors(model, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        encoder.name: torch.randn(
            count, encoder.embed(encoder.tokenize("a")).shape[1], generator=generator
        )
        for encoder in model.encoders
    }


def word_vectors(model, word):
    """The vocabulary's own vectors of a one-token word."""
    return {e.name: e.embed(e.tokenize(word))[1:2].clone() for e in model.encoders}


def file(folder, model, placeholder="<toy>", count=1, seed=0, category="cat", vectors=None):
    path = folder / f"{placeholder.strip('<>')}-{count}-{seed}.safetensors"
    given = vectors or random_vectors(model, count, seed)
    write_concept(Concept(placeholder, given, category), path)
    return str(path)


def conditioned(model, prompt, *edits, **values):
    run = t2iedit.start(model, t2iedit.Request(prompt, steps=2, edits=edits, **values))
    return t2iedit.condition([run])[0], run


def hidden(model, prompt, *edits, **values):
    return [e.hidden for e in conditioned(model, prompt, *edits, **values)[0].prompt]


@pytest.mark.parametrize("family", FAMILIES)
def test_core_keeps_the_contract(family, tmp_path):
    model = tiny_model(family)
    random = file(tmp_path, model, "cat")
    own = file(tmp_path, model, "cat", seed=1, vectors=word_vectors(model, "cat"))

    class Example(Core):
        example = {"concept": [random]}
        neutral = {"concept": [own]}

    check_edit(Example, [model])


def test_words_own_vector_in_a_placeholder_is_that_word(model, tmp_path):
    core = Core(concept=[file(tmp_path, model, vectors=word_vectors(model, "car"))])
    plain = hidden(model, PROMPT.replace("<toy>", "car"))
    for one, other in zip(hidden(model, PROMPT, core), plain, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_concept_changes_its_row_and_later_ones_only(model, tmp_path):
    core = Core(concept=[file(tmp_path, model)])
    plain = hidden(model, PROMPT.replace("<toy>", "cat"))
    for one, other in zip(hidden(model, PROMPT, core), plain, strict=True):
        assert torch.allclose(one[:5], other[:5], atol=1e-6)
        assert ((one[5:] - other[5:]).norm(dim=1) > 1e-3).all()


def test_several_vectors_take_several_rows(model, tmp_path):
    core = Core(concept=[file(tmp_path, model, count=3)])
    conditioning, run = conditioned(model, PROMPT, core)
    for embedding in conditioning.prompt:
        assert embedding.tokens.indices(run.span("<toy>")) == [5, 6, 7]
        assert embedding.tokens.indices(run.span("dog")) == [11]


def test_several_concepts_each_get_their_own_vectors(model, tmp_path):
    files = [
        file(tmp_path, model, "<toy>", 2, seed=1),
        file(tmp_path, model, "<toy>-2", seed=2, category="car"),
    ]
    prompt = "a <toy>-2 and a <toy> and a <toy>"
    for encoder in model.encoders:
        core = Core(concept=files)
        run = t2iedit.start(model, t2iedit.Request(prompt, edits=[core]))
        tokens = encoder.tokenize(core.edit_prompt(Wording.of(prompt), run))
        embeds = core.edit_token_embeds(encoder.embed(tokens), tokens, run)
        first, second = (
            next(c for c in core.concepts if c.placeholder == name).vectors[encoder.name]
            for name in ("<toy>", "<toy>-2")
        )
        assert torch.equal(embeds[2:3], second)
        assert torch.equal(embeds[5:7], first) and torch.equal(embeds[9:11], first)
        assert tokens.words[-1] == 10
        for facts in run.report["edits"][0]["concepts"].values():
            assert 0 < facts[encoder.name]["context similarity"] < 1


def test_concept_acts_in_the_negative_prompt(model, tmp_path):
    core = Core(concept=[file(tmp_path, model)])
    conditioning, _ = conditioned(model, "a red cat", core, negative="a <toy>")
    asked = hidden(model, "a <toy>", core)
    for embedding, expected in zip(conditioning.negative, asked, strict=True):
        assert torch.allclose(embedding.hidden, expected, atol=1e-6)


def test_outside_its_window_the_category_stands_in(sd1, tmp_path):
    core = Core(concept=[file(tmp_path, sd1)], start=0.5)
    conditioning, _ = conditioned(sd1, PROMPT, core)
    (plain,) = hidden(sd1, PROMPT.replace("<toy>", "cat"))
    assert torch.allclose(conditioning.at(0.0).prompt[0].hidden, plain, atol=1e-6)
    (whole,) = hidden(sd1, PROMPT, Core(concept=core.options.concept))
    assert torch.allclose(conditioning.at(0.5).prompt[0].hidden, whole, atol=1e-6)


def test_other_edits_name_the_placeholder_as_a_phrase(model, tmp_path):
    core = Core(concept=[file(tmp_path, model, count=2)])
    decor = installed().edit("decor")(undesired=["fog"])
    zero = installed().edit("t2i_zero")(concepts=["<toy>", "dog"])
    alone = t2iedit.generate(model, t2iedit.Request(PROMPT, steps=2, edits=[core]))
    together = t2iedit.generate(model, t2iedit.Request(PROMPT, steps=2, edits=[core, decor, zero]))
    assert alone.image.tobytes() != together.image.tobytes()
    # The file is named in the recipe, so the picture can be repeated.
    recipe = json.loads(together.image.info["t2iedit"])
    assert recipe["edits"][0] == {"name": "core", "options": {"concept": core.options.concept}}


def test_report_says_what_the_concept_is_like(model, tmp_path):
    core = Core(concept=[file(tmp_path, model, vectors=word_vectors(model, "car"), category="car")])
    _, run = conditioned(model, PROMPT, core)
    facts = run.report["edits"][0]["concepts"]["<toy>"]
    assert len(facts["file"]) == 12 and facts["vectors"] == 1
    for encoder in model.encoders:
        told = facts[encoder.name]
        assert next(iter(told["nearest words"][0].items())) == ("car", 1.0)
        assert told["context similarity"] == 1.0
        low, middle, high = told["vocabulary norms"]
        assert low < middle < high
    json.dumps(run.report)


def test_learned_vector_moves_the_context(model, tmp_path):
    _, run = conditioned(model, PROMPT, Core(concept=[file(tmp_path, model)]))
    for encoder in model.encoders:
        facts = run.report["edits"][0]["concepts"]["<toy>"][encoder.name]
        assert facts["context similarity"] < 0.999


def test_category_of_several_tokens_gets_a_stand_in(model):
    assert stand_in("cat", model.encoders) == "cat"
    word = stand_in("zeppelin", model.encoders)
    assert word != "zeppelin" and is_one_token(word, model.encoders)
    assert is_one_token(stand_in(None, model.encoders), model.encoders)


def test_placeholder_missing_from_both_prompts_is_refused(sd1, tmp_path):
    core = Core(concept=[file(tmp_path, sd1)])
    with pytest.raises(EditNotSupported, match='"<toy>" stands neither in the prompt'):
        conditioned(sd1, "a red cat", core)


def test_two_concepts_of_one_name_are_refused(sd1, tmp_path):
    files = [file(tmp_path, sd1, seed=seed) for seed in (1, 2)]
    with pytest.raises(ConceptNotUsable, match="two concepts"):
        conditioned(sd1, PROMPT, Core(concept=files))


def test_concept_of_another_width_is_refused_in_one_sentence(sd1, tmp_path):
    foreign = file(tmp_path, sd1, vectors={"clip": torch.ones(1, 1024)})
    with pytest.raises(ConceptNotUsable, match=r"width 1024 \(SD 2.x\).*reads width 32") as error:
        conditioned(sd1, PROMPT, Core(concept=[foreign]))
    assert "\n" not in str(error.value)


def test_concept_of_another_family_is_refused(sd1, sdxl, tmp_path):
    with pytest.raises(ConceptNotUsable, match="vectors for clip, and this model wants them"):
        conditioned(sdxl, PROMPT, Core(concept=[file(tmp_path, sd1)]))
    with pytest.raises(ConceptNotUsable, match="clip_l and clip_g"):
        conditioned(sd1, PROMPT, Core(concept=[file(tmp_path, sdxl, seed=3)]))


def test_concept_learned_on_another_encoder_of_that_width_is_noted(sd1, tmp_path):
    vectors = random_vectors(sd1)
    path = tmp_path / "x.safetensors"
    made = {"model": "elsewhere", "encoders": {"clip": [0.5] * 16}}
    write_concept(Concept("<toy>", vectors, "cat", made), path)
    _, run = conditioned(sd1, PROMPT, Core(concept=[str(path)]))
    assert "learned on another text encoder" in run.report["warnings"][0]


def test_concept_that_the_window_cuts_off_is_refused(sd1, tmp_path):
    core = Core(concept=[file(tmp_path, sd1, count=4)])
    prompt = "a " * 72 + "<toy>"
    with pytest.raises(SpanTruncated, match="4 vectors do not fit"):
        conditioned(sd1, prompt, core)


def test_gradient_flows_into_the_placed_vectors_alone(sd1):
    (encoder,) = sd1.encoders
    vectors = torch.ones(1, 32, requires_grad=True)
    tokens = encoder.tokenize(worded(Wording.of(PROMPT), "<toy>", "cat"))
    before = encoder.embed(tokens)
    embeds = placed(before, tokens, "<toy>", vectors)
    encoder.encode(tokens, embeds).hidden[-1, 0].backward()
    assert vectors.grad.abs().sum() > 0
    assert all(p.grad is None for p in encoder.transformer.parameters())
    assert not torch.equal(before, embeds), "the given embeddings were written into"


def test_placeholder_next_to_letters_and_marks(sd1):
    assert worded(Wording.of("(<toy>), <toy>!"), "<toy>", "cat").text == "( cat ), cat !"


@pytest.mark.parametrize("count", [1, 5])
def test_concept_stands_in_a_later_window(sd1, tmp_path, count):
    edit = Core(concept=[file(tmp_path, sd1, count=count)])
    conditioning, run = conditioned(sd1, "a word " * 60 + "<toy>", edit, syntax="windows")
    assert conditioning.prompt[0].hidden.isfinite().all()
    assert "context similarity" not in run.report["edits"][0]["concepts"]["<toy>"]["clip"]


def test_context_that_the_window_cuts_off_costs_the_similarity_alone(sd1, tmp_path):
    edit = Core(concept=[file(tmp_path, sd1, count=5)])
    _, run = conditioned(sd1, "<toy> " + "dog " * 72 + "end", edit)
    assert "context similarity" not in run.report["edits"][0]["concepts"]["<toy>"]["clip"]
    with pytest.raises(EditNotSupported, match="shorten it"):
        conditioned(
            sd1, "<toy> " + "dog " * 72 + "end", Core(concept=edit.options.concept, optimise=1)
        )


def test_optimisation_leaves_a_concept_of_the_negative_alone(model, tmp_path):
    concept = [file(tmp_path, model)]
    plain, tuned = (
        conditioned(model, "a thing", Core(concept=concept, optimise=steps), negative="a <toy>")[0]
        for steps in (0, 2)
    )
    for one, other in zip(plain.negative, tuned.negative, strict=True):
        assert torch.equal(one.hidden, other.hidden)


def test_quantised_denoiser_cannot_be_optimised_through(sd1, tmp_path):
    class Rounded(torch.nn.Conv2d):
        def forward(self, x):
            return super().forward(x).detach()

    sd1.denoiser.conv_out.__class__ = Rounded
    with pytest.raises(t2iedit.UserError, match="no gradient"):
        conditioned(sd1, PROMPT, Core(concept=[file(tmp_path, sd1)], optimise=1))
