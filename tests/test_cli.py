"""The command line, each sentence of its fine print."""

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import t2iedit.cli
from t2iedit.cli.arguments import parse_edit
from t2iedit.provenance import read_recipe
from t2iedit.request import parse_seeds, parse_size
from t2iedit.tiny import tiny_pipeline

MODELLED = ("generate", "compare", "encode")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "tiny"
    tiny_pipeline("sd1").save_pretrained(folder)
    (folder / "t2iedit.json").write_text('{"steps": 2, "guidance_scale": 3.0}')
    return str(folder)


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys, tiny):
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, model=tiny):
        command, *rest = map(str, arguments)
        where = ["-m", model] if model and command in MODELLED else []
        try:
            code = t2iedit.cli.main([command, *where, *rest])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def files():
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


# What a user gets right.


def test_generate_writes_a_free_name_and_prints_it(cli):
    for expected in ("a-red-cat-0.png", "a-red-cat-0-2.png"):
        code, out, _ = cli("generate", "A red  cat!")
        assert (code, out.strip()) == (0, expected)
    assert files() == ["a-red-cat-0-2.png", "a-red-cat-0.png"]


def test_several_seeds_get_numbered_names(cli):
    assert cli("generate", "a cat", "--seeds", "0..2", "-o", "x.png")[1].split() == [
        "x-0.png",
        "x-1.png",
        "x-2.png",
    ]
    assert cli("generate", "a cat", "--seeds", "3,5", "-o", "new/dir")[1].split() == [
        "new/dir/3.png",
        "new/dir/5.png",
    ]
    assert len(files()) == 5


def test_seed_of_many_equals_the_seed_alone(cli):
    cli("generate", "a cat", "--seeds", "0..2", "-o", "many")
    cli("generate", "a cat", "--seed", "2", "-o", "alone.png")
    assert np.array_equal(pixels("many/2.png"), pixels("alone.png"))


def test_batches_stay_within_two_levels(cli):
    cli("generate", "a cat", "--seeds", "0..2", "-o", "one")
    cli("generate", "a cat", "--seeds", "0..2", "--batch-size", "3", "-o", "three")
    for seed in range(3):
        one, three = (pixels(f"{folder}/{seed}.png") for folder in ("one", "three"))
        assert np.abs(one - three).max() <= 2


def test_json_is_one_value(cli):
    code, out, _ = cli(
        "generate", "a red cat", "--json", "-e", "decor", "undesired=fog", "-o", "x.png"
    )
    made = json.loads(out)
    assert code == 0 and made["images"] == [{"path": "x.png", "seed": 0}]
    assert made["request"]["edits"] == [{"name": "decor", "options": {"undesired": ["fog"]}}]
    assert made["report"]["edits"][0]["change"]["clip"] > 0


def test_model_folder_gives_steps_guidance_and_size(cli):
    report = json.loads(cli("generate", "a cat", "--json")[1])["report"]["run"]
    assert (report["steps"], report["guidance_scale"], report["size"]) == (2, 3.0, [64, 64])


def test_flags_override_the_models_defaults(cli):
    flags = [
        "--steps",
        1,
        "--guidance",
        0,
        "--size",
        "72x64",
        "--dtype",
        "bfloat16",
        "--device",
        "cpu",
    ]
    report = json.loads(cli("generate", "a cat", "--json", *flags)[1])["report"]["run"]
    assert (report["steps"], report["guidance_scale"], report["size"]) == (1, 0.0, [72, 64])
    assert report["dtype"] == "bfloat16"


def test_same_edit_may_come_twice_and_order_is_kept(cli):
    made = cli(
        "generate", "a red cat", "--json",
        "-e", "decor", "undesired=fog", "-e", "t2i_zero", "concepts=cat", "-e", "decor", "undesired=dog",
    )[1]  # fmt: skip
    names = [edit["name"] for edit in json.loads(made)["request"]["edits"]]
    assert names == ["decor", "t2i_zero", "decor"]


def test_prompt_may_follow_two_dashes_or_another_flag(cli, tiny):
    for tail in (["--", "a cat"], ["--steps", "1", "a cat"]):
        code, out, _ = cli(
            "generate", "-m", tiny, "-e", "decor", "undesired=fog", *tail, model=None
        )
        assert (code, len(out.split())) == (0, 1)


def test_from_repeats_the_image_bit_for_bit(cli):
    cli(
        "generate",
        "a red cat",
        "--seed",
        4,
        "-e",
        "decor",
        "undesired=fog",
        "stop=0.5",
        "-o",
        "x.png",
    )
    code, out, err = cli("generate", "--from", "x.png", "-o", "y.png", model=None)
    assert (code, out.strip(), err) == (0, "y.png", "")
    assert np.array_equal(pixels("x.png"), pixels("y.png"))
    assert read_recipe("x.png") == read_recipe("y.png")


def test_from_says_what_differs(cli, tmp_path):
    other = tmp_path / "other"
    tiny_pipeline("sd1", seed=1).save_pretrained(other)
    cli("generate", "a red cat", "-o", "x.png")
    code, _, err = cli("generate", "--from", "x.png", "-m", other, "-o", "y.png", model=None)
    assert code == 0 and "the recorded weights was" in err


def test_what_encode_wrote_paints_what_the_prompt_paints(cli):
    edit = ["-e", "decor", "undesired=fog", "start=0.4"]
    code, out, err = cli(
        "encode", "a red cat", *edit, "--negative", "dog", "-o", "new/c.safetensors"
    )
    assert (code, out.strip(), err) == (0, "new/c.safetensors", "")
    assert (
        cli("generate", "--conditioning", "new/c.safetensors", "--seed", 3)[1].strip() == "c-3.png"
    )
    cli("generate", "a red cat", *edit, "--negative", "dog", "--seed", 3, "-o", "plain.png")
    assert np.array_equal(pixels("c-3.png"), pixels("plain.png"))


def test_encode_edits_on_top_of_a_file_and_says_what_it_holds(cli):
    cli("encode", "a red cat", "-o", "c.safetensors")
    code, out, _ = cli(
        "encode", "--conditioning", "c.safetensors", "--json", "-e", "decor", "undesired=fog", "-o", "d.safetensors",
    )  # fmt: skip
    made = json.loads(out)
    assert code == 0 and made["encoders"] == {"clip": [77, 32]} and made["negative"]
    assert made["report"]["edits"][0]["change"]["clip"] > 0


def test_from_repeats_a_run_that_began_from_a_file(cli):
    cli("encode", "a red cat", "-o", "c.safetensors")
    cli("generate", "--conditioning", "c.safetensors", "-o", "x.png")
    assert read_recipe("x.png")["prompt"] == "a red cat"
    assert cli("generate", "--from", "x.png", "-o", "y.png", model=None)[0] == 0
    assert np.array_equal(pixels("x.png"), pixels("y.png"))
    cli("encode", "a blue dog", "-o", "c.safetensors")
    code, _, err = cli("generate", "--from", "x.png", "-o", "z.png", model=None)
    assert code == 2 and "is not the conditioning it was made from" in err
    Path("c.safetensors").unlink()
    code, _, err = cli("generate", "--from", "x.png", "-o", "z.png", model=None)
    assert code == 2 and 'there is no conditioning "c.safetensors"' in err


def test_compare_draws_every_column(cli):
    code, out, _ = cli(
        "compare", "a red cat", "--seeds", "0..1", "--json",
        "-e", "decor", "undesired=fog", "-e", "t2i_zero", "concepts=red cat", "-o", "grid.png",
    )  # fmt: skip
    made = json.loads(out)
    labels = list(made["columns"])
    assert code == 0 and labels[0] == "without" and labels[-1] == "all" and len(labels) == 4
    height, width, _ = pixels("grid.png").shape
    assert width > 4 * 64 and height > 2 * 64


def test_compare_sweeps_one_option_or_two(cli):
    decor = ("-e", "decor", "undesired=fog", "alpha=0..1..0.5")
    zero = ("-e", "t2i_zero", "gamma=1..2")
    words = ("compare", "a red cat and a dog", "--json", *decor)
    strip = json.loads(cli(*words, "--seeds", "0..1", "-o", "strip.png")[1])
    assert list(strip["columns"]) == ["alpha=0", "alpha=0.5", "alpha=1"]
    grid = json.loads(cli(*words, *zero, "-o", "grid.png")[1])
    assert list(grid["rows"]) == ["gamma=1", "gamma=2"]
    assert pixels("grid.png").shape[1] > pixels("grid.png").shape[0]


def test_compare_tells_an_edit_from_its_twin(cli):
    decor = ("-e", "decor", "undesired=fog")
    made = json.loads(cli("compare", "a cat", "--json", *decor, *decor, "-o", "g.png")[1])
    assert list(made["columns"]) == [
        "without",
        "1. decor(undesired=['fog'])",
        "2. decor(undesired=['fog'])",
        "all",
    ]


def test_grid_says_what_it_compares_and_that_no_single_run_repeats_it(cli):
    cli("compare", "a cat", "--seeds", "0..1", "-e", "decor", "undesired=fog", "-o", "g.png")
    with Image.open("g.png") as image:
        recipe, parameters = json.loads(image.info["t2iedit"]), image.info["parameters"]
    assert recipe["seeds"] == [0, 1] and recipe["made_with"]["fingerprint"]
    assert recipe["compared"] == {
        "columns": ["without", "decor(undesired=['fog'])"],
        "rows": ["seed 0", "seed 1"],
    }
    assert parameters.startswith("a cat\nSteps: 2, ")
    code, out, err = cli("generate", "--from", "g.png", model=None)
    assert (code, out, err.count("\n")) == (2, "", 1) and "compares several images" in err


def test_repeating_one_of_a_batch_says_that_it_was_one_of_several(cli):
    cli("generate", "a cat", "--seeds", "0..2", "--batch-size", "2", "-o", "x.png")
    for seed, differs in ((0, True), (1, True), (2, False)):
        code, _, err = cli("generate", "--from", f"x-{seed}.png", "-o", "y.png", model=None)
        assert code == 0 and ("number of images per call was 2" in err) == differs


def test_compare_with_one_edit_has_two_columns(cli):
    made = json.loads(
        cli("compare", "a cat", "--json", "-e", "decor", "undesired=fog", "-o", "g.png")[1]
    )
    assert len(made["columns"]) == 2


def test_edits_lists_and_describes(cli):
    assert "decor" in cli("edits")[1] and "t2i_zero" in cli("edits")[1]
    table = cli("edits", "decor")[1]
    assert "undesired" in table and "0..1" in table
    assert "(needed)" in cli("edits", "core")[1]
    schema = json.loads(cli("edits", "decor", "--json")[1])
    assert schema["options"]["properties"]["alpha"]["maximum"] == 1


def test_plugins_lists_distributions(cli):
    assert "t2iedit" in cli("plugins")[1]
    assert all(info["error"] is None for info in json.loads(cli("plugins", "--json")[1]))


def test_doctor_advises(cli):
    facts = json.loads(cli("doctor", "--json")[1])
    assert facts["advice"] and "torch" in facts
    assert "- " in cli("doctor")[1]


@pytest.mark.parametrize(
    ("gib", "cuda", "sentence"),
    [
        (2, [], "fit into memory: none."),
        (24, [], "fit into memory: SD 1.x, SDXL, SD3."),
        (8, ["a card"], "fit into the GPU's memory: SD 1.x; with --offload model also SDXL."),
        (80, ["a card"], "fit into the GPU's memory: SD 1.x, SDXL, SD3, FLUX."),
    ],
)
def test_doctor_says_what_fits(gib, cuda, sentence):
    from t2iedit.cli.doctor import fitting

    assert fitting(gib << 30, {"cuda": cuda, "bfloat16": True}).endswith(sentence)


def test_list_values_come_in_three_ways():
    for words in (
        ["undesired=fog,a dog"],
        ['undesired=["fog", "a dog"]'],
        ["undesired=fog", "undesired=a dog"],
    ):
        assert parse_edit(["decor", *words]).options.undesired == ["fog", "a dog"]


def test_json_array_keeps_commas():
    assert parse_edit(["decor", 'undesired=["a, b"]']).options.undesired == ["a, b"]


def test_seeds_and_sizes_are_parsed():
    assert parse_seeds("7", "--seeds") == (7,)
    assert parse_seeds("0..3", "--seeds") == (0, 1, 2, 3)
    assert parse_seeds("5,1", "--seeds") == (5, 1)
    assert parse_size("640x480", "--size") == (640, 480)


# What a user gets wrong: one sentence, exit code 2, nothing left behind.

WRONG = {
    "option without a name": (["generate", "a cat", "-e", "decor", "=x"], '"=x" after -e decor is not KEY=VALUE'),
    "option called self": (["generate", "a cat", "-e", "decor", "self=1"], 'no option "self"'),
    "word after the edit's name": (["generate", "a", "-e", "decor", "undesired=x", "a cat"], "put the prompt before"),
    "unknown edit": (["generate", "a cat", "-e", "dekor"], 'did you mean "decor"'),
    "unknown option": (["generate", "a cat", "-e", "decor", "undesired=x", "beta=1"], 'no option "beta"'),
    "missing option": (["generate", "a cat", "-e", "core"], 'needs the option "concept"'),
    "nothing to remove": (["generate", "a cat", "-e", "decor"], "decor: nothing is undesired"),
    "option twice": (["generate", "a cat", "-e", "decor", "undesired=x", "alpha=1", "alpha=0"], "takes alpha once"),
    "option out of range": (["generate", "a cat", "-e", "decor", "undesired=x", "alpha=3"], "alpha='3'"),
    "broken array": (["generate", "a cat", "-e", "decor", "undesired=[x"], "is not a JSON array"),
    "phrase not in the prompt": (["generate", "a cat", "-e", "t2i_zero", "concepts=dog"], 'is not in the prompt "a cat"'),
    "phrase cut off": (["generate", "a " * 90 + "cat", "-e", "t2i_zero", "concepts=cat"], "lies beyond the 77 tokens"),
    "no prompt": (["generate", "--steps", "3"], "a prompt is needed"),
    "unknown model": (["generate", "a cat", "-m", "nope"], 'there is no model "nope"'),
    "unknown flag": (["generate", "a cat", "--sed", "3"], "unrecognized arguments: --sed"),
    "abbreviated flag": (["generate", "a cat", "--step", "3"], "unrecognized arguments: --step"),
    "unknown command": (["generat", "a cat"], "invalid choice: 'generat'"),
    "seed and seeds": (["generate", "a cat", "--seed", "1", "--seeds", "0..3"], "not allowed with argument"),
    "seed no number": (["generate", "a cat", "--seed", "x"], "a seed is a whole number"),
    "negative seed": (["generate", "a cat", "--seed=-1"], "a seed is a whole number"),
    "huge seed": (["generate", "a cat", "--seed", "9999999999999999999"], "a seed is a whole number"),
    "range for one seed": (["generate", "a cat", "--seed", "0..3"], "several are --seeds"),
    "list that breaks off": (["generate", "a cat", "--seeds", "1,"], '--seeds "1,": write whole numbers'),
    "seed twice": (["generate", "a cat", "--seeds", "1,2,1"], "has a seed twice"),
    "thousands of digits": (["generate", "a cat", "--seeds", "0.." + "9" * 5000], "write whole numbers"),
    "empty range": (["generate", "a cat", "--seeds", "3..1"], "is empty"),
    "endless range": (["generate", "a cat", "--seeds", "0..99999999"], "more than 100000 images"),
    "no steps": (["generate", "a cat", "--steps", "0"], "steps=0"),
    "negative guidance": (["generate", "a cat", "--guidance=-1"], "guidance_scale=-1.0"),
    "guidance no number": (["generate", "a cat", "--guidance", "nan"], "guidance_scale=nan"),
    "size in words": (["generate", "a cat", "--size", "big"], "write width x height"),
    "size the model can't make": (["generate", "a cat", "--size", "65x64"], "multiples of 8"),
    "size of a wall": (["generate", "a cat", "--size", "99992x99992"], "at most 64000000 pixels"),
    "no images a call": (["generate", "a cat", "--batch-size", "0"], "at least 1 image"),
    "dtype": (["generate", "a cat", "--dtype", "int8"], '"int8" is no dtype'),
    "dtype that nothing computes in": (["generate", "a cat", "--dtype", "float8_e4m3fn"], "is no dtype to run a model in"),
    "device that computes nothing": (["generate", "a cat", "--device", "meta"], 'the device "meta" cannot be used'),
    "offload without a GPU": (["inspect", "a cat", "--offload", "model"], "there is none here"),
    "device": (["generate", "a cat", "--device", "quantum"], "quantum"),
    "empty output": (["generate", "a cat", "-o", ""], "-o is empty"),
    "output's name too long": (["generate", "a cat", "-o", "n" * 300 + ".png"], "cannot be written (File name too long)"),
    "folder's name too long": (["generate", "a cat", "-o", "n" * 300], "cannot be written (File name too long)"),
    "conditioning's name too long": (["encode", "a cat", "-o", "n" * 300 + ".safetensors"], "cannot be written"),
    "model's name too long": (["generate", "a cat", "-m", "n" * 300], "there is no model"),
    "image's name too long": (["generate", "--from", "n" * 300 + ".png"], "cannot be read as a PNG"),
    "not a png": (["generate", "a cat", "-o", "x.jpg"], "is not a .png name"),
    "from and prompt": (["generate", "a cat", "--from", "x.png"], "leave out prompt"),
    "from nothing": (["generate", "--from", "x.png"], "there is no file"),
    "two sweeps and two seeds": (
        ["compare", "a-cat", "--seeds", "0..1", "-e", "decor", "undesired=fog", "alpha=0..1", "rank=1..2"],
        "one --seed",
    ),
    "three sweeps": (
        ["compare", "a-cat", "-e", "decor", "undesired=fog", "alpha=0..1", "rank=1..2", "energy=0.5..0.9..0.2"],
        "two axes",
    ),
    "empty sweep": (["compare", "a-cat", "-e", "decor", "undesired=fog", "alpha=1..0"], "is empty"),
    "nothing to compare": (["compare", "a cat"], "at least one edit"),
    "encode nothing": (["encode", "-o", "c.safetensors"], "a prompt is needed"),
    "encode into a picture": (["encode", "a cat", "-o", "c.png"], "is not a .safetensors name"),
    "no conditioning": (["generate", "--conditioning", "c.safetensors"], "there is no conditioning"),
    "edits of an unknown name": (["edits", "nope"], 'no installed plugin has the edit "nope"'),
}  # fmt: skip


@pytest.mark.parametrize("damaged", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json"])
def test_damaged_model_is_one_sentence_and_exit_code_2(cli, tiny, tmp_path, damaged):
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "model" / damaged).write_bytes(b"{")
    code, out, err = cli("generate", "a cat", "-o", "x.png", model="model")
    assert (code, out, err.count("\n")) == (
        2,
        "",
        1,
    )
    assert 'the model "model" ' in err and ("cannot be loaded" in err or damaged in err)
    assert not Path("x.png").exists()


def test_foreign_image_is_one_sentence_and_exit_code_2(cli):
    Image.new("RGB", (8, 8)).save("foreign.png")
    code, out, err = cli("generate", "--from", "foreign.png", model=None)
    assert (code, out, err.count("\n")) == (2, "", 1) and "holds no t2iedit recipe" in err


@pytest.mark.parametrize("case", WRONG)
def test_mistake_gives_one_sentence_and_exit_code_2(cli, tiny, case):
    arguments, sentence = WRONG[case]
    bring = arguments[0] in MODELLED and "-m" not in arguments and "--from" not in arguments
    code, out, err = cli(*arguments, model=tiny if bring else None)
    assert (code, out) == (2, "")
    assert err.startswith("t2iedit: ") and err.count("\n") == 1 and "Traceback" not in err
    assert sentence in err
    assert files() == []


def test_folder_without_permission_is_refused(cli, tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.geteuid() == 0:  # Root may write anywhere.
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")
    code, _, err = cli("generate", "a cat", "-o", "locked/new/x.png")
    assert code == 2 and 'no permission in "locked"' in err
    assert files() == []


def test_file_in_the_way_of_a_folder_is_refused(cli, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = cli("generate", "a cat", "-o", "file/x.png")
    assert code == 2 and '"file" is a file' in err
    assert Path("file").read_text() == "mine"


def test_failure_of_an_edit_exits_with_1(cli, monkeypatch):
    from t2iedit.plugins import installed

    def explode(self, embedding, run):
        raise ArithmeticError("boom")

    monkeypatch.setattr(installed().edit("decor"), "edit_embedding", explode)
    code, _, err = cli("generate", "a cat", "-e", "decor", "undesired=fog")
    assert (
        code == 1
        and 'the edit "decor" failed with ArithmeticError: boom' in err
        and err.count("\n") == 1
    )
    with pytest.raises(t2iedit.T2IEditError):
        cli("generate", "a cat", "--debug", "-e", "decor", "undesired=fog")


def test_failed_plugin_exits_0_and_1_under_strict(cli, monkeypatch):
    from t2iedit.plugins import PluginInfo, installed

    monkeypatch.setattr(
        installed(), "infos", [PluginInfo("bad", "evil", "1.0", error="ImportError: no")]
    )
    code, out, _ = cli("plugins")
    assert code == 0 and "FAILED: ImportError: no" in out and "evil 1.0" in out
    assert cli("plugins", "--strict")[0] == 1


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "t2iedit", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def test_help_imports_no_torch():
    probe = "import sys, t2iedit.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\nassert not {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode == 0


def test_reader_that_leaves_ends_the_run_quietly(tiny, tmp_path):
    with command(
        "generate", "a cat", "-m", tiny, "--seeds", "0..5000", "-o", "out", cwd=tmp_path
    ) as process:
        assert process.stdout.readline().strip() == "out/0.png"
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(timeout=60) == 141
    kept = list((tmp_path / "out").iterdir())
    assert kept and all(pixels(path).shape == (64, 64, 3) for path in kept)


def test_results_that_cannot_be_written_are_a_failure(tmp_path):
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "t2iedit", "edits", "decor", "--json"]
        made = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert made.returncode == 1 and "No space left on device" in made.stderr
    assert made.stderr.count("\n") == 1


def test_interrupt_while_arguments_are_read_is_one_line(monkeypatch, capsys):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(t2iedit.cli.Parser, "parse_args", lambda self, words: interrupted(words))
    assert t2iedit.cli.main(["edits"]) == 130
    assert capsys.readouterr().err == "t2iedit: interrupted; what was finished is kept\n"


def test_interrupt_keeps_finished_images_and_exits_130(tiny, tmp_path):
    process = command(
        "generate",
        "a cat",
        "-m",
        tiny,
        "--seeds",
        "0..5000",
        "--steps",
        "20",
        "-o",
        "out",
        cwd=tmp_path,
    )
    assert process.stdout.readline().strip() == "out/0.png"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert "interrupted; what was finished is kept" in err
    kept = list((tmp_path / "out").iterdir())
    assert kept and all(path.suffix == ".png" for path in kept)
    for path in kept:
        assert pixels(path).shape == (64, 64, 3)


def test_same_command_in_two_processes_paints_the_same(tiny, tmp_path):
    for name in ("x.png", "y.png"):
        process = command("generate", "a cat", "-m", tiny, "-o", name, cwd=tmp_path)
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert np.array_equal(pixels(tmp_path / "x.png"), pixels(tmp_path / "y.png"))


# Commands that plugins bring.


def add_count_arguments(parser):
    parser.add_argument("number", type=int)
    parser.set_defaults(run=lambda args: args.number)


def broken(parser):
    raise ImportError("no module named counting")


def exiting(parser):
    sys.exit("I need Windows")


@pytest.fixture
def brought(monkeypatch):
    points = [
        EntryPoint(name, f"{__name__}:{function}", "t2iedit.commands")
        for name, function in (
            ("count", "add_count_arguments"),
            ("broken", "broken"),
            ("exiting", "exiting"),
            ("twice", "add_count_arguments"),
            ("twice", "broken"),
            ("edits", "broken"),
        )
    ]
    monkeypatch.setattr(t2iedit.cli, "entry_points", lambda group: points)


def test_a_plugins_command_is_listed_and_runs(cli, brought):
    code, out, _ = cli("--help")
    assert code == 0 and "count" in out and "from a plugin" in out
    assert cli("count", "7")[0] == 7


def test_a_plugins_broken_command_hurts_itself_alone(cli, brought):
    code, _, err = cli("broken")
    assert code == 1 and err.count("\n") == 1 and "no module named counting" in err
    code, _, err = cli("exiting")
    assert code == 1 and err.startswith("t2iedit: ") and "I need Windows" in err
    assert cli("count", "3")[0] == 3


def test_command_that_two_plugins_bring_is_refused_and_hurts_itself_alone(cli, brought):
    code, _, err = cli("twice", "7")
    assert code == 1 and err.count("\n") == 1 and 'several plugins bring the command "twice"' in err
    assert cli("count", "3")[0] == 3


def test_built_in_commands_stay_built_in(cli, brought):
    assert "decor" in cli("edits")[1]
