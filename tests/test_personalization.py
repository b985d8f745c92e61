"""The personalisation benchmark: its referee tells concepts from what the model knows, its pieces are made once."""

import importlib
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from t2iedit_context.settings import Settings

import t2iedit
from t2iedit.shapes import renderer
from t2iedit.shapes.renderer import render
from t2iedit.shapes.scenes import SHAPES, TEXTURES, Scene, SceneObject
from t2iedit.tiny import tiny_pipeline

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MODULES = ("concepts", "referee", "cost", "clip", "painting", "pieces", "choice", "tuning")


@pytest.fixture
def bench(monkeypatch):
    """The benchmark's modules, the new shapes drawn while the test runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = {name: importlib.import_module(f"personalization_{name}") for name in MODULES}
    found["main"] = importlib.import_module("personalization")
    monkeypatch.setattr(renderer, "DISTANCES", dict(renderer.DISTANCES))
    monkeypatch.setattr(renderer, "TEXTURE_SHADES", dict(renderer.TEXTURE_SHADES))
    found["concepts"].teach_renderer()
    yield SimpleNamespace(**found)
    for name in [name for name in sys.modules if name.startswith("personalization")]:
        del sys.modules[name]


def test_tuning_and_reported_concepts_are_apart_and_unknown(bench):
    concepts = (*bench.concepts.REPORTED, *bench.concepts.TUNING)
    names = [unknown.name for unknown in concepts]
    assert len(bench.concepts.REPORTED) >= 8 and len(names) == len(set(names))
    assert not set(names) & {*SHAPES, *TEXTURES}
    pictures = bench.concepts.pictures_of(concepts[0], 128)
    assert 3 <= len(pictures) <= 5 and len({picture.tobytes() for picture in pictures}) > 2


@pytest.mark.parametrize("name", ["house", "drop", "zigzag"])
def test_concept_is_identified_and_what_is_like_it_is_not(bench, name):
    unknown = next(u for u in bench.concepts.REPORTED if u.name == name)
    asked = bench.concepts.Asked("", unknown.color, "white")
    for picture in bench.concepts.pictures_of(unknown, 128)[:2]:
        seen = bench.referee.judge(picture, unknown, asked)
        assert seen.right and seen.identity > 0.85 and seen.followed == 1
    shape = unknown.category if unknown.kind == "shape" else "square"
    texture = "plain" if unknown.kind == "shape" else unknown.category
    like = SceneObject(shape, unknown.color, texture, radius=0.3)
    seen = bench.referee.judge(render(Scene((like,), "black"), 128, Random(0)), unknown, asked)
    assert not seen.identified and not seen.right and seen.followed == 0.5


def test_drawings_do_what_every_prompt_asks(bench):
    random = Random(0)
    for unknown in bench.concepts.REPORTED:
        asked = bench.concepts.asked_of(unknown)
        drawn = [bench.concepts.drawn_as_asked(unknown, each, 128, random) for each in asked]
        seen = [
            bench.referee.judge(image, unknown, each)
            for image, each in zip(drawn, asked, strict=True)
        ]
        assert sum(each.right for each in seen) >= len(seen) - 1, unknown
        assert not any(unknown.color == each.color for each in asked)


def test_missing_other_object_is_noticed(bench):
    unknown = bench.concepts.REPORTED[0]
    asked = bench.concepts.Asked("", unknown.color, None, ("blue", "square"))
    picture = bench.concepts.pictures_of(unknown, 128)[0]
    assert bench.referee.judge(picture, unknown, asked).followed == 0.5


def test_variants_differ_in_what_their_names_say(bench):
    given = {
        name: Settings(placeholder="<x>", category="circle", **own)
        for name, own in bench.main.VARIANTS.items()
    }
    assert not given["plain inversion"].regularised
    assert given["plain inversion"].rescaling == given["without rescaling"].rescaling == (0, 0)
    assert given["without CER"].embedding_weight == given["without CAR"].attention_weight == 0
    assert given["full"].rescaling != (0, 0)
    assert len({value.model_dump_json() for value in given.values()}) == 5


@pytest.fixture
def tiny(tmp_path):
    """A folder with a model of a step."""
    model = tmp_path / "tiny"
    tiny_pipeline("sd1").save_pretrained(model)
    (model / "t2iedit.json").write_text('{"steps": 1, "guidance_scale": 2.0}')
    return str(model)


def test_piece_is_made_once_and_read_afterwards(bench, tiny, tmp_path, monkeypatch):
    short = {"steps": 1, "batch_size": 1, "finetune_steps": 1, "prompts": ("a red {}",)}
    unknown = bench.concepts.Unknown("arrow", "shape", "cat", "blue")
    job = bench.pieces.Job("full", unknown, short, 1, short=True)
    place = bench.pieces.Place(tmp_path / "work", tiny, None, float("inf"))
    threads = torch.get_num_threads()
    piece = bench.pieces.do(job, place)
    torch.set_num_threads(threads)
    assert list(piece.seen) == [
        (name, stage) for stage in bench.pieces.STAGES for name in ("full", "full + test-time")
    ]
    assert len(piece.images("full", "both stages")) == len(job.asked) == 2
    assert piece.prompts("cat") == ["a red cat", "a purple cat on a brown background"]
    monkeypatch.setattr(bench.pieces, "learn", None)
    over = bench.pieces.Place(place.work, place.model, None, 0.0)
    assert bench.pieces.do(job, over).seen == piece.seen
    other = bench.pieces.Job("full", unknown, short | {"steps": 2}, 1, short=True)
    assert bench.pieces.do(other, over) is None


def test_pieces_are_the_same_however_many_make_them(bench, tiny, tmp_path):
    short = {"steps": 1, "batch_size": 1, "finetune_steps": 1, "prompts": ("a red {}",)}
    unknown = bench.concepts.Unknown("arrow", "shape", "cat", "blue")
    jobs = [
        bench.pieces.Job(name, unknown, own, 2, short=True)
        for name, own in (
            (bench.pieces.FLOOR, {}),
            ("without CAR", short | {"attention_weight": 0.0}),
        )
    ]
    alone, together = (
        bench.pieces.Place(tmp_path / name, tiny, "cpu", float("inf")) for name in ("one", "two")
    )
    threads = torch.get_num_threads()
    expected = [bench.pieces.do(job, alone) for job in jobs]
    torch.set_num_threads(threads)
    pieces = bench.pieces.pieces_of(jobs, together, 2)
    assert [piece.job for piece in pieces] == jobs
    for one, other in zip(expected, pieces, strict=True):
        assert one.seen == other.seen
        for way in one.seen:
            pairs = zip(one.images(*way), other.images(*way), strict=True)
            assert all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_pictures_made_together_are_those_made_alone(bench, tiny):
    model = t2iedit.open_model(tiny, device="cpu", dtype="float32")
    prompts = ["a red cat", "a dog on the beach"]
    together = bench.painting.painted(model, prompts, 2)
    alone = [
        image
        for prompt in prompts
        for image in t2iedit.generate(model, t2iedit.Request(prompt, seeds=range(2))).images
    ]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 2


def seen_of(bench, identified, followed):
    return [
        bench.referee.Seen(0.9, bool(yes), share)
        for yes, share in zip(identified, followed, strict=True)
    ]


def test_choice_is_of_what_is_identified_and_followed(bench):
    score = bench.choice.score
    unlearned, learned = seen_of(bench, [0, 0], [1, 1]), seen_of(bench, [1, 0], [1, 0.5])
    assert score([unlearned]) == 0.5 and score([learned]) == 0.625
    # Concepts count alike, however many pictures they have.
    assert score([unlearned * 3, learned]) == score([unlearned, learned]) == 0.562


def test_best_point_is_taken_the_first_of_equals_and_none_that_lacks_a_concept(bench, tmp_path):
    stage = bench.pieces.STAGES[1]
    points = {name: {"learning_rate": value} for value, name in enumerate("abcd", 1)}
    good, bad = seen_of(bench, [1], [1]), seen_of(bench, [0], [1])
    pieces = [
        SimpleNamespace(job=SimpleNamespace(name=name), seen={(name, stage): seen})
        for name, both in (("a", [bad, bad]), ("b", [good, bad]), ("c", [bad, good]), ("d", [good]))
        for seen in both
    ]
    scores = bench.choice.scores_of(pieces, list(points), 2)
    assert scores == {"a": 0.5, "b": 0.75, "c": 0.75}
    choice = bench.choice.Choice({"learning_rate": 9, "steps": 7}, {"before": {"x": 1.0}})
    chosen = choice.with_best("rates", points, scores)
    assert chosen.settings == {"learning_rate": 2, "steps": 7}
    assert chosen.scores == {"before": {"x": 1.0}, "rates": scores}
    chosen.save(tmp_path / "choice.json")
    assert bench.choice.read_choice(tmp_path / "choice.json") == chosen
    assert bench.choice.read_choice(None).settings == {}


def test_rates_are_tuned_on_plain_inversion_and_weights_at_those_rates(bench):
    options = SimpleNamespace(quick=False, seeds=3)
    rates = bench.tuning.jobs_of(
        "rates", bench.choice.read_choice(None), bench.concepts.TUNING, options
    )
    assert not any(job.settings.regularised for job in rates)
    choice = bench.choice.Choice({"learning_rate": 0.03}, {})
    weights = bench.tuning.jobs_of("weights", choice, bench.concepts.TUNING, options)
    assert {job.settings.learning_rate for job in weights} == {0.03}
    assert (weights[0].settings.embedding_weight, weights[0].settings.attention_weight) == (
        1.5e-4,
        0.05,
    )
    assert {job.unknown for job in rates + weights} == set(bench.concepts.TUNING)


def test_variants_are_learned_with_what_was_chosen(bench):
    options = SimpleNamespace(quick=False, seeds=3)
    chosen = {"learning_rate": 0.03, "attention_weight": 7.0}
    jobs = bench.main.jobs_of(bench.concepts.REPORTED, chosen, options)
    learned = {job.name: job.settings for job in jobs if job.name in bench.main.VARIANTS}
    assert {given.learning_rate for given in learned.values()} == {0.03}
    assert learned["full"].attention_weight == 7 and not learned["plain inversion"].regularised
    told = bench.pieces.fitting(learned["full"])
    assert told["learning_rate"] == pytest.approx(0.003) and told["attention_weight"] == 7


def test_rows_are_of_the_concepts_that_have_all_their_pieces(bench):
    options = SimpleNamespace(quick=True, seeds=1)
    concepts = bench.concepts.REPORTED[:2]
    jobs = bench.main.jobs_of(concepts, {}, options)
    pieces = [SimpleNamespace(job=job) for job in jobs[:-1]]
    whole, kept = bench.main.complete(concepts, pieces, jobs)
    assert whole == [concepts[0]] and {piece.job.unknown for piece in kept} == {concepts[0]}


def test_interval_holds_the_mean_and_is_none_without_spread(bench):
    row = bench.main.mean_row("x", "y", [0.0, 1.0, 1.0, 1.0])
    assert row.low < row.value == 0.75 < row.high
    flat = bench.main.mean_row("x", "y", [0.5] * 3)
    assert flat.low == flat.value == flat.high == 0.5


def test_picture_tower_learns_and_is_kept(bench, tmp_path):
    model = t2iedit.open_model("shapes")
    clip = bench.clip.of_the_world(model, tmp_path, steps=2)
    (kept,) = tmp_path.iterdir()
    again = bench.clip.of_the_world(model, tmp_path, steps=2)
    picture = Image.new("RGB", (128, 128), "red")
    looks, words = clip.looks([picture]), clip.words(["a red circle", "a blue square"])
    assert torch.equal(looks, again.looks([picture])) and kept.exists()
    assert torch.allclose(words.norm(dim=1), torch.ones(2)) and looks.shape[1] == words.shape[1]
    assert 0 <= clip.accuracy <= 1
    assert all(p.grad is None for p in model.encoders[0].transformer.parameters())
