"""The demo's parts, without a page: what visitors may ask for, and what they are told."""

import asyncio
import os
import shlex
import threading
import time
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
import tabs
from edit_part import moved_earlier, moved_later, switched
from form import Form
from hosting import Host, Limits, Models
from learning_told import file_name, reproduced
from loss_curves import curves, means
from names import pathless
from page import request_in
from painting import painted
from pictures import both
from PIL import Image
from previews import guessed, preview
from reports import told_report
from reproduce import (
    generate_command,
    generate_python,
    inspect_command,
    inspect_python,
    sweep_command,
    sweep_python,
)
from stopping import Stops
from sweeping import offered
from t2iedit_context.settings import Settings
from telling import told
from temporary import folder as temporary_folder
from temporary import own_files, remove_old
from uploads import embedding, picture
from watching import Clock, Moment, Stopped
from widgets import UNSET, option, shown, widget

from t2iedit import Edit, Request, generate, save_image
from t2iedit.cli.arguments import parse_edit, request_values, split_sweeps
from t2iedit.controls import controls
from t2iedit.errors import InvalidRequest, ModelNotUsable, RecipeNotUsable, UserError
from t2iedit.plugins import installed
from t2iedit.sweeps import Sweep, cells
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
        ({"prompt": PROMPT, "conditioning": "/etc/passwd"}, "files of encoded prompts"),
        ({"prompt": PROMPT, "prompts": {"clip": "x" * 1001}}, "single encoders' prompts"),
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
    uploads = ("/tmp/a/own.safetensors",)
    assert host._file("own.safetensors", uploads) == uploads[0]
    for path in ("/etc/passwd", "../../etc/passwd", "/tmp/up.safetensors", ".."):
        with pytest.raises(InvalidRequest, match="not on offer"):
            host._file(path, ())


def test_an_uploaded_embedding_must_be_safetensors(tmp_path):
    pickle = tmp_path / "evil.safetensors"
    pickle.write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises(InvalidRequest, match="not a safetensors file"):
        embedding(str(pickle), 1000)
    with pytest.raises(InvalidRequest, match="at most 4 bytes"):
        embedding(str(pickle), 4)
    with pytest.raises(InvalidRequest, match="upload it again"):
        embedding(str(tmp_path / "gone.safetensors"), 1000)


def test_an_uploaded_picture_is_one_and_small_enough(tmp_path):
    whole = tmp_path / "cat.png"
    Image.new("RGBA", (20, 10), (255, 0, 0, 0)).save(whole)
    read = picture(str(whole), 10_000, 200)
    assert read.mode == "RGB" and read.getpixel((0, 0)) == (255, 255, 255)
    bomb, tiny, broken, script = (
        tmp_path / name for name in ("bomb.png", "tiny.png", "broken.jpg", "evil.svg")
    )
    Image.new("1", (30_000, 30_000)).save(bomb)
    Image.new("RGB", (4, 40)).save(tiny)
    broken.write_bytes(whole.read_bytes()[:60])
    script.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>")
    for path, most, says in (
        (whole, 199, "20 x 10 pixels, and 199 are the most"),
        (bomb, 10_000, "more pixels than the 10000 allowed"),
        (tiny, 10_000, "8 a side are the least"),
        (broken, 10_000, "cannot be read as a picture"),
        (script, 10_000, "cannot be read as a picture"),
    ):
        with pytest.raises(InvalidRequest) as error:
            picture(str(path), 10**7, most)
        assert says in str(error.value) and str(tmp_path) not in str(error.value)


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


def test_painting_tells_of_every_run_and_gives_each_result(host):
    model = host.models.opened("tiny")
    request = host.admitted({"prompt": PROMPT, "seed": 1, "edits": [DECOR]})
    said = list(painted(model, both(request), threading.Event()))
    moments = [one for one in said if isinstance(one, Moment)]
    plain, edited = [one.image.tobytes() for one in said if not isinstance(one, Moment)]
    assert moments[0] == Moment(0, 4) and moments[-1].preview.size == (64, 64)
    assert plain == generate(model, request.model_copy(update={"edits": ()})).image.tobytes()
    assert edited == generate(model, request).image.tobytes() != plain


def test_the_time_left_is_estimated_from_the_steps_after_the_first(monkeypatch):
    now = iter((100.0, 110.0, 112.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    clock = Clock(12)
    assert clock.moment(2).seconds_left is None
    assert clock.moment(5).seconds_left == pytest.approx(10.0)
    assert clock.moment(1).seconds_left == pytest.approx(8.0)
    assert Moment(3, 12, 8.0).sentence == "step 3 of 12, about 8 s left"
    assert Moment(3, 12, 180.0).sentence == "step 3 of 12, about 3 min left"


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
    assert not [thread for thread in threading.enumerate() if thread.name == "demo-work"]


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


def test_the_report_is_in_words_and_cannot_carry_markup():
    facts = {"name": "x<b>", "change": {"clip": 0.5}, "attention": {"maps": 3, "moved": 0.25}}
    said = told_report({"warnings": ["<script> *a*"], "edits": [facts]})
    assert "<" not in said and "*a*" not in said
    assert (
        "changed the prompt&#x27;s embedding by 50 %; moved 25.0 % of the attention in 3 maps"
        in said
    )


def test_no_folder_of_the_host_is_told():
    said = pathless('"/home/me/a b/cat.bin" is no file, nor is /tmp/x-1/dog.png: [Errno 2]')
    assert "/home" not in said and "/tmp" not in said and "dog.png: [Errno 2]" in said
    assert pathless("1/2 of a/b, and/or <b/>") == "1/2 of a/b, and/or <b/>"


def test_cancel_stops_the_run_of_its_visitor_alone():
    class Visitor:
        def __init__(self, name):
            self.session_hash = name

    stops, one, two = Stops(), Visitor("one"), Visitor("two")
    with stops.running(one) as first, stops.running(two) as second:
        stops.cancel(one)
        assert first.is_set() and not second.is_set()
        with stops.running(two) as third:
            stops.cancel(two)
        assert third.is_set() and not second.is_set()
    assert not stops.events


def test_a_run_that_ends_late_leaves_the_next_one_its_cancel():
    class Visitor:
        session_hash = "one"

    stops = Stops()
    late = stops.running(Visitor())
    late.__enter__()
    with stops.running(Visitor()) as fresh:
        late.__exit__(None, None, None)
        stops.cancel(Visitor())
        assert fresh.is_set()


def test_temporary_files_go_when_they_are_old_and_all_of_them_at_the_end(tmp_path):
    before = os.environ.get("GRADIO_TEMP_DIR")
    with own_files(age=3600, every=3600) as where:
        assert temporary_folder() == str(where)
        old, fresh = where / "a" / "old.png", where / "b" / "fresh.png"
        for path in (old, fresh):
            path.parent.mkdir()
            path.write_bytes(b"x")
        os.utime(old, (0, 0))
        remove_old(where, 3600)
        assert not old.parent.exists() and fresh.exists()
    assert not where.exists() and os.environ.get("GRADIO_TEMP_DIR") == before


def test_temporary_files_are_looked_through_again_and_again():
    with own_files(age=0.0, every=0.02) as where:
        (where / "x.png").write_bytes(b"x")
        for _ in range(200):
            if not list(where.iterdir()):
                break
            time.sleep(0.02)
        assert not list(where.iterdir())


def test_tabs_of_plugins_that_are_not_installed_are_not_offered(monkeypatch):
    names = [module.NAME for module in tabs.offered()]
    assert names == ["Generate", "Inspect", "Sweep", "Learn", "Quantise"]
    monkeypatch.setattr(tabs, "installed", lambda: type("None", (), {"edits": {"core": 0}}))
    assert [module.NAME for module in tabs.offered()] == ["Generate", "Inspect", "Sweep", "Learn"]


def test_edits_are_switched_and_moved():
    assert switched("a", []) == ["a"] and switched("a", ["b", "a"]) == ["b"]
    assert moved_earlier("c", ["a", "b", "c"]) == ["a", "c", "b"]
    assert moved_earlier("a", ["a", "b"]) == ["a", "b"] and moved_earlier("x", ["a"]) == ["a", "x"]
    assert moved_later("a", ["a", "b", "c"]) == ["b", "a", "c"]


def test_ranges_are_offered_along_a_slider():
    found = {control.name: control for control in controls(installed().edit("decor").Options)}
    assert offered(found["alpha"]) == "0..1..0.25" and offered(None) == "0..1..0.25"
    assert offered(found["rank"]) == "0..1..0.25"


def test_curves_are_of_means_and_carry_no_markup():
    assert means(list(range(10))) == list(range(10))
    assert len(means(list(range(1000)))) <= 64 and means([1.0] * 130)[0] == 1.0
    drawn = curves({"a": [3.0, 1.0], "b": [], "c": [1.0]}, {"a": "<b>", "b": "B"})
    assert drawn.count("<svg") == 1 and "&lt;b&gt;" in drawn and "0.0,0.0 200.0,70.0" in drawn


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
    assert isinstance(widget(found["rank"]), gr.Textbox)
    assert isinstance(widget(found["rank_tol"]), gr.Number)
    assert isinstance(widget(found["alpha"]), gr.Slider)


# The controls.


@pytest.fixture(scope="module")
def form(host):
    async def made():
        with gr.Blocks():
            return Form(host)

    # Without a running loop Gradio makes one that nobody closes.
    return asyncio.run(made())


def values_of(updates):
    return [one["value"] if isinstance(one, dict) else one for one in updates]


def test_the_controls_hold_a_request_and_give_it_back(host, form):
    asked = {
        "prompt": PROMPT, "negative": "fog", "seed": 7, "steps": 3, "guidance_scale": 2.5, "size": [64, 64],
        "scheduler": "euler_a", "syntax": "a1111",
        "edits": [
            {"name": "t2i_zero", "options": {"concepts": ["red cat", "dog"], "alpha": 0.5}},
            {"name": "decor", "options": {"undesired": ["a, b"], "phrases": ["blue dog"], "rank": 2}},
        ],
    }  # fmt: skip
    request = host.admitted(asked)
    assert form.asked(values_of(form.filled(request))) == request


def test_other_settings_are_json_and_few(host, form):
    values = values_of(form.filled(host.admitted({"prompt": PROMPT})))
    for text, says in (
        ("{", "not JSON"),
        ('{"conditioning": "/etc/passwd"}', 'know no "conditioning"'),
        ('{"dtype": "float16"}', 'know no "dtype"'),
        ("[1]", "a JSON object"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            form.asked([*values[:8], text, *values[9:]])


# Making it again.


@pytest.fixture
def request_of_all(host):
    return host.admitted(
        {"prompt": "a 'red' cat", "negative": "fog", "seed": 7, "steps": 3, "size": [64, 64], "scheduler": "euler_a",
         "clip_skip": 1, "edits": [{"name": "decor", "options": {"undesired": ["a, b", "c"], "centre": True}}]}
    )  # fmt: skip


def parsed(command):
    from t2iedit.cli import parser

    words = shlex.split(command)
    assert words[0] == "t2iedit"
    return parser(words[1]).parse_args(words[1:])


@pytest.mark.parametrize("command", [generate_command, inspect_command])
def test_the_command_line_makes_the_same_request(request_of_all, command):
    args = parsed(command(request_of_all))
    assert Request(**request_values(args)) == request_of_all
    assert parse_edit(args.edits[0]) == request_of_all.edits[0]


def test_a_prompt_that_looks_like_a_flag_stays_a_prompt(host):
    request = host.admitted({"prompt": "-e cat", "edits": [DECOR]})
    assert Request(**request_values(parsed(generate_command(request)))) == request


def test_the_sweeps_command_line_makes_the_same_cells(host):
    request = host.admitted({"prompt": PROMPT, "edits": [DECOR]})
    sweeps = [Sweep(0, "alpha", (0, 0.5, 1)), Sweep(0, "soft", (0, 1))]
    args = parsed(sweep_command(request, sweeps, ["0..1..0.5", "0..1"]))
    args.edits, found = split_sweeps(args.edits)
    assert found == sweeps
    assert cells(Request(**request_values(args)), found) == cells(request, sweeps)


@pytest.mark.parametrize(
    ("python", "made"),
    [
        (generate_python, "edited.png"),
        (inspect_python, "plot.png"),
        (lambda request: inspect_python(request, "cat"), "attention.png"),
        (lambda request: sweep_python(request, [Sweep(0, "alpha", (0, 1))]), "sweep.png"),
    ],
)
def test_the_python_makes_it(host, tmp_path, monkeypatch, python, made):
    request = host.admitted(
        {"prompt": PROMPT, "seed": 7, "steps": 2, "size": [64, 64], "edits": [DECOR]}
    )
    monkeypatch.chdir(tmp_path)
    space = {"LIVE": tiny_pipeline("sd1")}
    exec(python(request).replace("open_model('tiny')", "open_model(LIVE)"), space)
    assert space["request"] == request and Path(made).exists()


def test_learning_is_told_as_a_command_and_as_python():
    from t2iedit_context.cli import _settings

    settings = Settings(placeholder="<my toy!>".replace(" ", "-"), category="cat", steps=20, seed=3)
    command, python = reproduced(settings, "some/model")
    args = parsed(command)
    assert (
        _settings(args) == settings and args.output == file_name(settings) == "my-toy.safetensors"
    )
    space = {}
    exec(python.split("learned =")[0].replace("t2iedit.open_model", "str.format"), space)
    assert space["settings"] == settings


def test_limits_hold_for_what_a_request_leaves_out(host):
    few = replace(host, limits=Limits(steps=1, optimising=5))
    with pytest.raises(InvalidRequest, match="the steps may be at most 1"):
        few.opened(few.admitted({"prompt": "a cat"}))
    assert few.opened(few.admitted({"prompt": "a cat", "steps": 1})).family == "sd"
    small = replace(host, limits=Limits(side=8))
    with pytest.raises(InvalidRequest, match="the width in pixels may be at most 8"):
        small.opened(small.admitted({"prompt": "a cat"}))
    core = {"name": "core", "options": {"concept": ["cat.safetensors"], "optimise": 6}}
    with pytest.raises(InvalidRequest, match="optimisation may be at most 5"):
        few.admitted({"prompt": "a cat", "edits": [core]})


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (Image.new("RGB", (8, 4000)), "times as long as wide"),
        (Image.new("I;16", (64, 64)), "more than 8 bits"),
    ],
)
def test_pictures_that_would_be_misread_or_fill_the_memory_are_refused(tmp_path, image, says):
    image.save(tmp_path / "x.png")
    with pytest.raises(InvalidRequest, match=says):
        picture(str(tmp_path / "x.png"), 2**24, 16_000_000)
