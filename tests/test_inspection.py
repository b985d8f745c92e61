"""What an inspection says, against values worked out by hand and against the model itself."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import t2iedit.cli
from t2iedit import Edit, Request, generate
from t2iedit.charts import colour, inspection_chart, matrices, overlay
from t2iedit.errors import InvalidRequest, SpanNotFound
from t2iedit.inspection import attention_map, inspect, mean_map, nearest_pieces, similarities
from t2iedit.tiny import tiny_pipeline

PROMPT = "a red cat and a blue dog"


class Doubled(Edit):
    """Doubles the last word's row."""

    name = "doubled"

    def edit_embedding(self, embedding, run):
        hidden = embedding.hidden.clone()
        hidden[embedding.tokens.words[-1]] *= 2
        return embedding.with_hidden(hidden)


class Swapped(Edit):
    """The word "cat" becomes "dog" at the input."""

    name = "swapped"

    def edit_token_embeds(self, embeds, tokens, run):
        embeds = embeds.clone()
        embeds[3] = embeds[7]
        return embeds


def test_similarities_are_cosines():
    rows = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    half = 0.5**0.5
    expected = torch.tensor([[1, 0, half, 0], [0, 1, half, 0], [half, half, 1, 0], [0.0, 0, 0, 0]])
    assert torch.allclose(similarities(rows), expected)
    assert not torch.allclose(rows @ rows.T, expected)


def test_mean_map_is_taken_at_the_largest_size_and_ends_at_one():
    found = mean_map([torch.tensor([[1.0, 3.0], [1.0, 1.0]]), torch.tensor([[1.0]])])
    assert torch.allclose(found, torch.tensor([[0.5, 1.0], [0.5, 0.5]]))


def test_tokens_norms_and_changes(model):
    found = inspect(model, Request(PROMPT, edits=(Doubled(),)))
    assert [facts.encoder for facts in found.encoders] == [e.name for e in model.encoders]
    for facts in found.encoders:
        words = ["a", "red", "cat", "and", "a", "blue", "dog"]
        assert [token.piece for token in facts.tokens][1:-1] == words
        assert [token.kind for token in facts.tokens] == ["bos", *["word"] * 7, "eot"]
        encoder = model.encoder(facts.encoder)
        row = encoder.encode(encoder.tokenize(PROMPT)).hidden[7]
        dog = facts.tokens[7]
        assert dog.norm_before == pytest.approx(row.norm().item(), rel=1e-4)
        assert dog.norm_after == pytest.approx(2 * dog.norm_before, rel=1e-4)
        assert dog.change == pytest.approx(1, rel=1e-4)
        assert [token.edited for token in facts.tokens] == [False] * 7 + [True, False]
        # A longer row is as like the others as before.
        assert facts.difference.abs().max() < 1e-5


def test_an_edit_of_the_input_shows_in_the_nearest_words_and_the_similarities(sd1):
    plain = inspect(sd1, Request(PROMPT)).encoders[0]
    edited = inspect(sd1, Request(PROMPT, edits=(Swapped(),))).encoders[0]
    assert edited.tokens[3].nearest[0] == ("dog", 1.0)
    assert plain.tokens[3].nearest[0][1] < 1
    assert plain.difference.abs().max() == 0 and edited.difference.abs().max() > 1e-3


class Reworded(Edit):
    """The encoders read "car" and "fog" for "cat"."""

    name = "reworded"

    def edit_prompt(self, prompt, run):
        return prompt.replaced(run.span("cat"), "car fog")


def test_words_put_in_the_prompt_are_compared_with_themselves(sd1):
    request = Request(PROMPT, edits=(Reworded(),), steps=1)
    facts = inspect(sd1, request).encoders[0]
    assert [token.piece for token in facts.tokens][3:5] == ["car", "fog"]
    assert not any(token.edited for token in facts.tokens)
    _, heat = attention_map(sd1, request, "cat")
    assert heat.max() == 1


def test_the_nearest_pieces_leave_out_the_tokens_own(sd1):
    encoder = sd1.encoders[0]
    tokens = encoder.tokenize("cat")
    own = int(tokens.ids[1])
    (found,) = nearest_pieces(encoder, encoder.embed(tokens)[1:2], [own])
    assert len(found) == 5 and "cat" not in [piece for piece, _ in found]
    assert [value for _, value in found] == sorted((v for _, v in found), reverse=True)


def test_an_inspection_is_json(sd1):
    found = inspect(sd1, Request(PROMPT, edits=(Doubled(),))).to_json()
    assert json.loads(json.dumps(found))["encoders"][0]["tokens"][7]["edited"] is True


def test_attention_map_changes_no_pixel_and_is_of_the_phrase(model):
    request = Request(PROMPT, seed=1, steps=2)
    image, heat = attention_map(model, request, "cat")
    assert image.tobytes() == generate(model, request).image.tobytes()
    assert heat.shape == (8, 8) and heat.max() == 1 and heat.min() >= 0
    _, other = attention_map(model, request, "dog")
    assert not torch.equal(heat, other)
    hooks = [len(m._forward_pre_hooks) for m in model.denoiser.modules()]
    assert sum(hooks) == 0


def test_attention_map_refuses_strangers_and_several_seeds(sd1):
    with pytest.raises(SpanNotFound):
        attention_map(sd1, Request(PROMPT), "fog")
    with pytest.raises(InvalidRequest):
        attention_map(sd1, Request(PROMPT, seeds=(0, 1)), "cat")


def test_pictures(sdxl):
    chart = inspection_chart(inspect(sdxl, Request(PROMPT, edits=(Doubled(),))))
    assert chart.width > chart.height / 2 > 100
    parts = matrices(inspect(sdxl, Request(PROMPT, edits=(Doubled(),))))
    assert list(parts) == ["before", "after", "difference"]
    assert sum(part.width for part in parts.values()) == chart.width
    hot = torch.zeros(8, 8)
    hot[0, 0] = 1
    over = overlay(Image.new("RGB", (64, 64), (90, 90, 90)), hot)
    red, green, _ = np.asarray(over)[1, 1].astype(int)
    assert red > green + 30 and over.getpixel((60, 60)) == (90, 90, 90)
    assert colour(0.0) == (255, 255, 255) and colour(1.0) != colour(-1.0)


def test_inspect_command(tmp_path, monkeypatch, capsys):
    tiny_pipeline("sd1").save_pretrained(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    words = ["inspect", PROMPT, "-m", "tiny", "-e", "decor", "undesired=fog", "-o", "plot.png"]
    assert t2iedit.cli.main(words) == 0
    out = capsys.readouterr().out
    assert "NEAREST" in out and "decor removed" in out and out.endswith("plot.png\n")
    with Image.open("plot.png") as plot:
        assert plot.width > 300
        height = plot.height
    assert t2iedit.cli.main([*words, "--attention", "blue dog", "--steps", "1"]) == 0
    with Image.open("plot.png") as plot:
        assert plot.height > height + 64
    assert t2iedit.cli.main([*words[:-2], "--attention", "dog"]) == 2
    assert "-o PLOT.png" in capsys.readouterr().err
    assert t2iedit.cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["encoders"][0]["encoder"] == "clip" and found["path"] == "plot.png"
