"""Sets of prompts, and pictures where other people's scorers look for them."""

import json
import os
import re

import pytest
from PIL import Image

import t2iedit
from t2iedit import UserError
from t2iedit.cli import main
from t2iedit.cli import prompts as command
from t2iedit.layouts import SCORERS, lay_out, painted
from t2iedit.prompts import PLURALS, SETS, Asked, coloured, prompt_set, read_prompts, write_prompts
from t2iedit.tiny import tiny_pipeline

PAIR = Asked(
    "a photo of a red cup and a blue dog",
    "color_attr",
    (
        {"class": "cup", "count": 1, "color": "red"},
        {"class": "dog", "count": 1, "color": "blue"},
    ),
)


@pytest.mark.parametrize("name", SETS)
def test_sets_are_distinct_repeatable_and_say_what_they_ask_for(name):
    n = 20
    asked = prompt_set(name, n, seed=3)
    assert len({each.prompt for each in asked}) == n
    assert asked == prompt_set(name, n, seed=3) != prompt_set(name, n, seed=4)
    for each in asked:
        assert each.prompt.startswith("a photo of ") and each.tag
        for item in each.include:
            assert item["class"] in PLURALS and item["count"] >= 1
            named = PLURALS[item["class"]] if item["count"] > 1 else item["class"]
            assert f"{item.get('color', '')} {named}".strip() in each.prompt


def test_counts_forbid_one_more():
    for each in prompt_set("counts", 30):
        ((wanted,), (forbidden,)) = each.include, each.exclude
        assert forbidden == wanted | {"count": wanted["count"] + 1}
        number = {2: "two", 3: "three", 4: "four"}[wanted["count"]]
        assert each.prompt == f"a photo of {number} {PLURALS[wanted['class']]}"


def test_wording_of_three_things_and_without_the_opening():
    (asked,) = prompt_set("colour-triples", 1, opening="")
    one, two, three = (f"{item['color']} {item['class']}" for item in asked.include)
    assert re.fullmatch(f"an? {one}, an? {two} and an? {three}", asked.prompt)
    assert " an orange" in " " + " ".join(
        each.prompt for each in prompt_set("colours", 80, opening="")
    )


def test_metadata_is_genevals_line():
    assert PAIR.metadata == {
        "tag": "color_attr",
        "include": [
            {"class": "cup", "count": 1, "color": "red"},
            {"class": "dog", "count": 1, "color": "blue"},
        ],
        "prompt": "a photo of a red cup and a blue dog",
    }


def test_more_prompts_than_there_are_and_unknown_sets_are_refused():
    with pytest.raises(UserError, match="no more than 87"):
        prompt_set("counts", 200)
    for name, n in (("elephants", 3), ("counts", 0)):
        with pytest.raises(UserError):
            prompt_set(name, n)


def test_command_offers_what_there_is():
    assert tuple(SETS) == command.SETS and tuple(SCORERS) == command.SCORERS


def test_files_are_read_as_written(tmp_path):
    asked = [PAIR, *prompt_set("counts", 3)]
    texts, metadata = write_prompts(asked, tmp_path / "set")
    assert read_prompts(metadata) == asked
    assert read_prompts(texts) == [Asked(each.prompt) for each in asked]


@pytest.mark.parametrize("content", ["", "{}", "no json", '{"tag": 1}', '["a"]', "[" * 9000])
def test_useless_files_of_prompts_are_refused(tmp_path, content):
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(UserError):
        read_prompts(tmp_path / "bad.jsonl")
    with pytest.raises(UserError):
        read_prompts(tmp_path / "absent.txt")


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Two prompts with two seeds each, written, painted with a tiny model and an edit, as a user would."""
    folder = tmp_path_factory.mktemp("prompts")
    tiny_pipeline("sd1").save_pretrained(folder / "tiny")
    name = str(folder / "pairs")
    assert main(["prompts", "write", "colour-pairs", "-n", "2", "-o", name]) == 0
    painting = ["-m", str(folder / "tiny"), "--steps", "1", "--seeds", "5,3", "-e", "t2i_zero"]
    assert main(["batch", f"{name}.txt", *painting, "-o", str(folder / "painted")]) == 0
    return folder


def layout(batch, prompts, scorer, output):
    arguments = ["prompts", "layout", str(prompts), str(batch / "painted"), "--for", scorer]
    return main([*arguments, "-o", str(output)])


@pytest.mark.filterwarnings("ignore")
def test_geneval_finds_every_picture_and_its_metadata(batch, tmp_path):
    assert layout(batch, batch / "pairs.jsonl", "geneval", tmp_path / "images") == 0
    # Read as evaluate_images.py reads: digits as folders, one JSON object a metadata file, digits and .png as samples.
    asked = [json.loads(line) for line in (batch / "pairs.jsonl").read_text().splitlines()]
    folders = sorted(os.listdir(tmp_path / "images"))
    assert folders == ["00000", "00001"] and all(name.isdigit() for name in folders)
    for folder, each in zip(folders, asked, strict=True):
        place = tmp_path / "images" / folder
        with open(place / "metadata.jsonl") as file:
            assert json.load(file) == each
        samples = sorted(os.listdir(place / "samples"))
        assert all(re.match(r"\d+\.png", name) for name in samples) and len(samples) == 2
        recipes = [t2iedit.read_recipe(place / "samples" / name) for name in samples]
        assert [r["prompt"] for r in recipes] == [each["prompt"]] * 2
        assert [r["seeds"] for r in recipes] == [[3], [5]]


@pytest.mark.filterwarnings("ignore")
def test_compbench_finds_the_prompt_and_the_number_in_the_name(batch, tmp_path):
    assert layout(batch, batch / "pairs.txt", "compbench", tmp_path / "out") == 0
    names = os.listdir(tmp_path / "out" / "samples")
    names.sort(key=lambda name: int(name.split("_")[-1].split(".")[0]))
    prompts = [each.prompt for each in read_prompts(batch / "pairs.txt")]
    assert [name.split("_")[0] for name in names] == [p for p in prompts for _ in range(2)]
    assert [name.split("_")[1] for name in names] == [f"{k:06}.png" for k in range(4)]


@pytest.mark.filterwarnings("ignore")
def test_mistakes_in_laying_out_cost_one_sentence_and_leave_nothing(batch, tmp_path, capsys):
    more = tmp_path / "more.txt"
    more.write_text((batch / "pairs.txt").read_text() + "a photo of a cat\n")
    slashed = tmp_path / "slashed.txt"
    slashed.write_text("a cat_dog\n")
    cases = {
        "no picture": (more, "compbench"),
        "is not known": (batch / "pairs.txt", "geneval"),
        "cannot be read as prompts": (tmp_path / "absent.txt", "compbench"),
    }
    for words, (prompts, scorer) in cases.items():
        assert layout(batch, prompts, scorer, tmp_path / "new") == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "old").mkdir()
    assert layout(batch, batch / "pairs.txt", "compbench", tmp_path / "old") == 2
    with pytest.raises(UserError, match="file's name"):
        lay_out(
            {"a cat_dog": []} | {"a cat_dog": [more]},
            read_prompts(slashed),
            tmp_path / "x",
            "compbench",
        )


def test_pictures_made_in_two_ways_are_refused(tmp_path):
    pipeline = tiny_pipeline("sd1")
    model = t2iedit.open_model(pipeline)
    for number, steps in enumerate((1, 2)):
        result = t2iedit.generate(model, t2iedit.Request("a cat", steps=steps, seed=number))
        t2iedit.save_image(result.image, tmp_path / f"{number}.png")
    with pytest.raises(UserError, match="different models, settings or edits"):
        painted(tmp_path)
    with pytest.raises(UserError, match="no pictures"):
        painted(tmp_path / "absent")
    Image.new("RGB", (8, 8)).save(tmp_path / "2.png")
    with pytest.raises(UserError, match="no t2iedit recipe"):
        painted(tmp_path)


def test_three_coloured_things_have_three_colours():
    from random import Random

    asked = coloured(3)(Random(0), "")
    assert len({item["color"] for item in asked.include}) == 3
