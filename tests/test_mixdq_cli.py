"""`t2iedit mixdq`, as typed."""

import json
import subprocess
import sys

import pytest
import yaml

from t2iedit.cli import main
from t2iedit.testing import tiny_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_pipeline("sd1").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red cat\n\na blue dog\n")
    return path


def quantize(folder, prompts, out, *more):
    words = ["-m", folder, "--prompts", prompts, "--steps", "1", "-o", out, *more]
    return main(["mixdq", "quantize", *map(str, words)])


def test_quantise_report_and_generate(folder, prompts, tmp_path, capsys):
    out = tmp_path / "quantised"
    assert quantize(folder, prompts, out) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert [path.name for path in tmp_path.iterdir()] == ["quantised"]
    assert main(["mixdq", "report", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["weights"]["mean"] == 8 and report["activations"]["mean"] == 8
    assert sum(report["runs"].values()) == len(report["layers"])
    assert report["bytes"]["static"] > 0 and report["bytes"]["static in 16 bits"] > 0
    assert main(["mixdq", "report", str(out)]) == 0
    text = capsys.readouterr().out
    assert "conv_in" in text and "bytes: static" in text
    image = tmp_path / "x.png"
    words = ["a red cat", "-m", str(out), "--steps", "1", "-o", str(image)]
    assert main(["generate", *words]) == 0 and image.exists()
    words = ["a red cat", "-m", str(folder), "--steps", "1", "-o", str(image)]
    assert main(["generate", *words, "-e", "mixdq", f"recipe={out}"]) == 0


@pytest.mark.slow
def test_mean_bits_are_allocated(folder, prompts, tmp_path, capsys):
    out = tmp_path / "mixed"
    more = [
        "--weights",
        "5",
        "--activations",
        "7.5",
        "--judges",
        "1",
        "--protect",
        "0.02",
        "--json",
    ]
    assert quantize(folder, prompts, out, *more) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["weights"]["optimality gap"] < 0.01
    assert main(["mixdq", "report", str(out), "--bits-only", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["weights"]["mean without layers left whole"] == pytest.approx(5, abs=0.2)
    assert report["activations"]["mean without layers left whole"] == pytest.approx(7.5, abs=0.2)
    assert report["activations"]["mean"] > 7.5
    assert len(facts["left whole"]) >= 2


def test_bits_from_files(folder, prompts, tmp_path, capsys):
    bits = tmp_path / "weights.yaml"
    bits.write_text(yaml.safe_dump({"model.conv_in": 8, "model.conv_out": 4}))
    out = tmp_path / "out"
    assert quantize(folder, prompts, out, "--weights", bits, "--activations", "16") == 0
    capsys.readouterr()
    assert main(["mixdq", "report", str(out), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["layers"]}
    assert (rows["conv_in"]["weights"], rows["conv_out"]["weights"]) == (8, 4)
    assert rows["conv_in"]["why"] == "its inputs stay in 16 bits"
    assert rows["mid_block.resnets.0.conv1"]["runs"] == "floating point"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--weights", "3", "--uniform"], "2, 4, 8 or 16"),
        (["--weights", "12"], "mean from 2 to 8"),
        (["--weights", "many"], "number of bits"),
        (["--weights", "absent.yaml"], "cannot be read"),
        (["--size", "big"], "width x height"),
        (["--weights", ""], "number of bits"),
        (["--weights", "2"], "can be reached"),
        (["--activations", "3.5"], "can be reached"),
        (["--protect", "2"], "out of range"),
        (["-m", "tiny-sd3"], "denoiser is a SD3Transformer2DModel"),
        (["-o", "afile/out"], "cannot be made"),
        (["--prompts", "absent.txt"], "one prompt a line"),
    ],
)
def test_mistakes_cost_one_sentence(folder, prompts, tmp_path, capsys, monkeypatch, more, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").touch()
    if "tiny-sd3" in more:
        tiny_pipeline("sd3").save_pretrained("tiny-sd3")
        capsys.readouterr()
    assert quantize(folder, prompts, tmp_path / "out", *more) == 2
    shown = capsys.readouterr()
    assert says in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--device", "foo"], 'device "foo"'),
        (["--dtype", "int8"], "no dtype"),
        (["--size", "0"], "out of range"),
    ],
)
def test_report_refuses_what_cannot_be(folder, prompts, tmp_path, capsys, more, says):
    assert quantize(folder, prompts, tmp_path / "out") == 0
    capsys.readouterr()
    assert main(["mixdq", "report", str(tmp_path / "out" / "mixdq.yaml"), *more]) == 2
    assert says in capsys.readouterr().err


def test_protecting_all_layers_is_refused(folder, prompts, tmp_path, capsys):
    more = ["--activations", "7", "--judges", "1", "--sensitivity", "hessian", "--protect", "1"]
    assert quantize(folder, prompts, tmp_path / "out", *more) == 2
    assert "protect fewer" in capsys.readouterr().err


def test_existing_folder_is_not_overwritten(folder, prompts, tmp_path, capsys):
    assert quantize(folder, prompts, tmp_path) == 2
    assert "exists already" in capsys.readouterr().err


def test_foreign_recipe_names_its_layers(folder, prompts, tmp_path, capsys):
    bits = tmp_path / "bits.yaml"
    bits.write_text(yaml.safe_dump({"model.down_blocks.9.conv": 8}))
    assert quantize(folder, prompts, tmp_path / "out", "--weights", bits) == 2
    assert "down_blocks.9.conv" in capsys.readouterr().err
    assert main(["mixdq", "report", str(bits)]) == 2
    assert "sdxl or sd15" in capsys.readouterr().err


def test_report_of_a_file_on_a_named_architecture(tmp_path, capsys):
    bits = tmp_path / "act_x.yaml"
    bits.write_text(yaml.safe_dump({"model.conv_in": 8}))
    assert main(["mixdq", "report", str(bits), "--architecture", "sd15", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["activations"]["layers by bits"]["8"] == 1
    assert report["activations"]["mean"] > 15.9


@pytest.mark.slow
def test_libraries_keep_quiet(folder, prompts, tmp_path):
    """In a process of its own: what a library says while it is imported cannot be seen in this one."""
    assert quantize(folder, prompts, tmp_path / "out") == 0
    words = [sys.executable, "-m", "t2iedit", "mixdq", "report", str(tmp_path / "out")]
    done = subprocess.run([*words, "--bits-only"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
