"""The demo's parts, without a page: what visitors may ask for, and what they are told."""

import shlex
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("gradio")
sys.path.insert(0, str(Path(__file__).parent.parent / "demos"))

import gradio as gr
from hosting import Host, Limits, Models, check_upload
from painting import Moment, Stopped, painted
from pictures import both, request_in, told_report
from previews import guessed, preview
from reproduce import command, python
from telling import told
from widgets import UNSET, option, shown, widget
from words import phrases, standing

from t2iedit import Edit, Request, generate, save_image
from t2iedit.cli.arguments import parse_edit
from t2iedit.controls import controls
from t2iedit.errors import InvalidRequest, ModelNotUsable, RecipeNotUsable, UserError
from t2iedit.plugins import installed
from t2iedit.testing import tiny_model
from t2iedit.tiny import tiny_pipeline

PROMPT = "a red cat and a blue dog"
DECOR = {"name": "decor", "options": {"undesired": ["fog"], "alpha": 0.5}}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline("sd1").save_pretrained(folder)
    (folder / "t2iedit.json").write_text('{"steps": 2, "guidance_scale": 3.0}')
    return Host(Models([str(folder)]), {"cat.safetensors": folder / "cat.safetensors"})


# What is admitted.


def test_a_request_is_admitted_under_the_offered_name(host):
    request = host.admitted({"prompt": PROMPT, "model": "/somewhere/else/tiny", "edits": [DECOR]})
    assert request.model == "tiny" and request.edits[0].options.alpha == 0.5


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"prompt": PROMPT, "model": "/etc"}, 'the model "etc" is not on offer'),
        ({"prompt": PROMPT, "model": "someone/else"}, "not on offer"),
        ({"prompt": PROMPT, "loras": ["/etc/passwd"]}, "LoRA"),
        ({"prompt": "x" * 1001}, "prompt's characters may be at most 1000"),
        ({"prompt": PROMPT, "steps": 101}, "the steps may be at most 100"),
        ({"prompt": PROMPT, "size": [2048, 64]}, "width in pixels may be at most 1024"),
        ({"prompt": PROMPT, "size": [64, 2048]}, "height in pixels"),
        ({"prompt": PROMPT, "seeds": [1, 2, 3, 4, 5]}, "images at once may be at most 4"),
        ({"prompt": PROMPT, "edits": [DECOR] * 9}, "at most 8 edits"),
        ({"prompt": PROMPT, "edits": "decor"}, "list"),
        ({"prompt": PROMPT, "edits": [{"name": "nonsense"}]}, "nonsense"),
        ({"prompt": PROMPT, "edits": [{"name": "decor", "options": {"alpha": 3}}]}, "alpha"),
        (
            {
                "prompt": PROMPT,
                "edits": [{"name": "decor", "options": {"undesired": ["x" * 9000]}}],
            },
            "options may be at most 8000",
        ),
        ([], "JSON object"),
        ({"negative": "x"}, "prompt"),
    ],
)
def test_what_is_not_allowed_is_refused_with_a_sentence(host, data, says):
    with pytest.raises(UserError) as error:
        host.admitted(data)
    assert says in str(error.value)


def test_files_are_uploads_or_listed_names(host):
    listed = str(host.files["cat.safetensors"])
    assert host._file("cat.safetensors", ()) == listed
    assert host._file("/home/me/cat.safetensors", ()) == listed
    assert host._file("/tmp/up.safetensors", ("/tmp/up.safetensors",)) == "/tmp/up.safetensors"
    for path in ("/etc/passwd", "../../etc/passwd", "/tmp/up.safetensors", ".."):
        with pytest.raises(InvalidRequest, match="not on offer"):
            host._file(path, ())


def test_an_upload_must_be_safetensors(tmp_path):
    pickle = tmp_path / "evil.safetensors"
    pickle.write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises(InvalidRequest, match="not a safetensors file"):
        check_upload(str(pickle), Limits())
    with pytest.raises(InvalidRequest, match="at most 4 bytes"):
        check_upload(str(pickle), Limits(upload=4))


def test_two_models_of_one_name_are_refused():
    with pytest.raises(ModelNotUsable):
        Models(["/a/tiny", "/b/tiny"])


# A dropped picture.


def test_a_dropped_png_gives_its_request_back(host, tmp_path):
    request = host.admitted({"prompt": PROMPT, "seed": 5, "edits": [DECOR]})
    image = generate(host.models.opened("tiny"), request).image
    save_image(image, tmp_path / "made.png")
    again = request_in(str(tmp_path / "made.png"), host)
    assert (again.prompt, again.seeds, again.edits) == (PROMPT, (5,), request.edits)
    assert (again.steps, again.guidance_scale, again.size) == (2, 3.0, (64, 64))
    assert str(tmp_path) not in image.info["t2iedit"]


def test_a_picture_without_a_recipe_or_none_is_refused(host, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    with pytest.raises(RecipeNotUsable):
        request_in(str(tmp_path / "plain.png"), host)
    with pytest.raises(InvalidRequest):
        request_in(None, host)


# Painting.


def test_painting_tells_of_every_run_and_ends_with_the_results(host):
    model = host.models.opened("tiny")
    request = host.admitted({"prompt": PROMPT, "seed": 1, "edits": [DECOR]})
    said = list(painted(model, both(request), threading.Event()))
    moments, results = said[:-1], said[-1]
    assert moments[0] == Moment(0, 4, 0.0, None) and moments[-1].preview.size == (64, 64)
    assert isinstance(results, list | tuple)
    plain, edited = (result.image.tobytes() for result in results)
    assert plain == generate(model, request.model_copy(update={"edits": ()})).image.tobytes()
    assert edited == generate(model, request).image.tobytes() != plain


def test_stopping_ends_it_before_the_last_step(host):
    model = host.models.opened("tiny")
    request = host.admitted({"prompt": PROMPT, "steps": 100})
    stop, seen = threading.Event(), []
    with pytest.raises(Stopped):
        for moment in painted(model, [request], stop):
            seen.append(moment)
            if moment.done:
                stop.set()
    assert max(moment.done for moment in seen) < 100
    assert not [thread for thread in threading.enumerate() if "work" in thread.name]


def test_closing_the_iterator_stops_too(host):
    stop = threading.Event()
    moments = painted(
        host.models.opened("tiny"), [host.admitted({"prompt": PROMPT, "steps": 100})], stop
    )
    next(moments)
    moments.close()
    assert stop.is_set()


def test_previews_of_every_family_and_of_unknown_latents(model):
    import torch

    image = preview(model, torch.randn(2, 4, 8, 8))
    assert image.size == (64, 64) and image.mode == "RGB"
    for channels in (1, 4, 16):
        rgb = guessed(torch.randn(channels, 8, 8), model.family)
        assert rgb.shape == (3, 8, 8)


# What visitors are told.


class Broken(Edit):
    """Fails."""

    name = "broken"

    def check(self, run):
        raise KeyError("oh")


def test_a_crash_in_a_plugin_names_it_and_leaves_the_model_working():
    model = tiny_model("sd1")
    with (
        pytest.raises(gr.Error, match='the edit "broken" of a plugin failed with KeyError'),
        told(),
    ):
        list(painted(model, [Request(PROMPT, steps=1, edits=(Broken(),))], threading.Event()))
    assert generate(model, Request(PROMPT, steps=1)).image.size == (64, 64)


def test_a_users_mistake_is_told_as_it_is():
    with pytest.raises(gr.Error) as error, told():
        raise InvalidRequest("the steps may be at most 3 here, not 4")
    assert error.value.message == "the steps may be at most 3 here, not 4"


def test_the_report_cannot_carry_markup():
    report = {"warnings": ["<script> *a*"], "edits": [{"name": "x", "words": ["<b>"], "n": 0.5}]}
    said = told_report(report)
    assert "<" not in said and "*a*" not in said and "n: 0.5" in said


def test_words_and_runs_of_words_are_offered():
    assert phrases("a red cat, and a red dog on white snow") == [
        "red", "cat", "red#2", "dog", "white", "snow", "red cat", "red dog", "white snow",
    ]  # fmt: skip
    assert standing("a red cat", ["red", "dog", "cat#2"]) == ["red"]


@pytest.mark.parametrize("name", sorted(n for n, e in installed().edits.items() if e.example))
def test_what_widgets_hold_is_the_option_again(name):
    edit = installed().edit(name)
    options = edit.Options(**edit.example).model_dump(mode="json")
    back = {}
    for control in controls(edit.Options):
        value = option(control, shown(control, options[control.name]))
        if value is not UNSET:
            back[control.name] = value
    assert edit(**back) == edit(**edit.example)


def test_an_empty_number_is_left_to_its_default_and_no_slider_moves_a_default():
    found = {control.name: control for control in controls(installed().edit("decor").Options)}
    assert shown(found["rank"], None) == "" and option(found["rank"], "") is UNSET
    assert option(found["rank"], "3") == "3"
    assert isinstance(widget(found["rank"], []), gr.Textbox)
    assert isinstance(widget(found["rank_tol"], []), gr.Number)
    assert isinstance(widget(found["alpha"], []), gr.Slider)


# Making it again.


def test_the_command_line_makes_the_same_request(host):
    request = host.admitted(
        {"prompt": "a 'red' cat", "negative": "fog", "seed": 7, "steps": 3, "size": [64, 64],
         "edits": [{"name": "decor", "options": {"undesired": ["a, b", "c"], "centre": True}}]}
    )  # fmt: skip
    from t2iedit.cli import parser
    from t2iedit.cli.arguments import request_values

    args = parser("generate").parse_args(shlex.split(command(request))[1:])
    assert Request(**request_values(args)) == request
    assert parse_edit(args.edits[0]) == request.edits[0]


def test_the_python_makes_the_same_request(host, tmp_path, monkeypatch):
    request = host.admitted({"prompt": PROMPT, "seed": 7, "size": [64, 64], "edits": [DECOR]})
    monkeypatch.chdir(tmp_path)
    code = python(request).replace("open_model('tiny')", "open_model(LIVE)")
    space = {"LIVE": tiny_pipeline("sd1")}
    exec(code.replace("model='tiny',", "model='tiny', steps=2,"), space)
    assert space["request"].edits == request.edits and Path("edited.png").exists()
