"""Many requests: read line by line, made once, killed and resumed."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import t2iedit
import t2iedit.cli
from t2iedit import batch, workers
from t2iedit.errors import InvalidRequest, LoraNotUsable, OutputNotWritable
from t2iedit.lora import Lora
from t2iedit.painters import KNOWN_TEXTS, Made, Setup
from t2iedit.plugins import installed
from t2iedit.provenance import RECIPE
from t2iedit.repeating import differences, recorded
from t2iedit.request_files import read_lines
from t2iedit.text import TextEncoder
from t2iedit.tiny import tiny_pipeline

FOG = {"name": "decor", "options": {"undesired": ["fog"]}}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batch") / "tiny"
    tiny_pipeline("sd1").save_pretrained(folder)
    (folder / "t2iedit.json").write_text('{"steps": 2, "guidance_scale": 3.0}')
    return str(folder)


def written(path, *lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


def paint(lines, folder, engine=batch.in_process, **setup):
    """Run a batch; what was made, as `on_made` heard of it."""
    heard = []
    with batch.Folder(folder).held() as held:
        made = batch.plan(lines, held)
        batch.run(made, held, engine, Setup(**setup), lambda m, path: heard.append((m, path)))
    return heard


def results(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def state(folder):
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("*.png")
    }


# Reading.


def test_json_lines_csv_and_plain_prompts_are_read_alike(tmp_path):
    as_json = written(
        tmp_path / "r.jsonl",
        {"prompt": "a cat", "seeds": "0..1", "size": "64x72", "edits": [FOG]},
        "",
        {"prompt": "a dog", "steps": 3, "seed": 7},
    )
    as_csv = written(
        tmp_path / "r.csv",
        "prompt,seeds,size,steps,edits",
        'a cat,0..1,64x72,,"' + json.dumps([FOG]).replace('"', '""') + '"',
        ",,,,",
        "a dog,7,,3,",
    )
    read = [list(read_lines(path)) for path in (as_json, as_csv)]
    assert [line.request for line in read[0]] == [line.request for line in read[1]]
    assert [line.number for line in read[0]] == [1, 3] and [line.number for line in read[1]] == [
        2,
        4,
    ]
    assert read[0][0].request.seeds == (0, 1) and read[0][0].request.size == (64, 72)
    plain = written(tmp_path / "r.txt", "a cat", "", "a dög")
    assert [line.request.prompt for line in read_lines(plain)] == ["a cat", "a dög"]


def test_defaults_fill_what_a_line_leaves_out(tmp_path):
    path = written(tmp_path / "r.jsonl", {"prompt": "a"}, {"prompt": "b", "steps": 1, "seed": 9})
    first, second = read_lines(path, {"steps": 5, "seeds": (1, 2), "negative": "fog"})
    assert (first.request.steps, first.request.seeds, first.request.negative) == (5, (1, 2), "fog")
    assert (second.request.steps, second.request.seeds) == (1, (9,))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "this is not JSON"),
        ("[]", 'with at least a "prompt"'),
        ('{"steps": 3}', 'needs at least a "prompt"'),
        ('{"prompt": "a", "self": 1}', 'a request has no "self"'),
        ('{"prompt": "\\ud800"}', "bytes that are no characters"),
        ('{"prompt": "a", "edits": [{"name": ["decor"]}]}', "an edit is"),
        ('{"prompt": "a", "edits": [{"name": "decor", "options": []}]}', "an edit is"),
        (
            '{"prompt": "a", "edits": [{"name": "decor", "options": {"self": 1}}]}',
            'no option "self"',
        ),
        ('{"prompt": "a", "loras": 3}', "loras is a list"),
        ('{"prompt": "a", "loras": [{"file": "x", "size": 1}]}', 'loras.0 has no "size"'),
        ('{"prompt": "a", "seeds": "0..' + "9" * 5000 + '"}', "whole numbers"),
        ('{"prompt": "a", "stepps": 3}', 'a request has no "stepps"'),
        ('{"prompt": "a", "edits": [{"name": "dekor"}]}', 'did you mean "decor"'),
        ('{"prompt": "a", "size": "big"}', "write width x height"),
        ('{"prompt": "a", "seeds": "3..1"}', "is empty"),
        ("[" * 100_000, "this is not JSON"),
    ],
)
def test_bad_line_is_told_by_its_number_and_the_rest_is_read(tmp_path, line, sentence):
    path = written(tmp_path / "r.jsonl", {"prompt": "a"}, line, {"prompt": "b"})
    first, bad, last = read_lines(path)
    assert first.request and last.request and bad.number == 2 and sentence in bad.error


def test_bytes_and_rows_that_are_none_are_bad_lines(tmp_path):
    (tmp_path / "r.txt").write_bytes(b"a cat\n\xff\xfe\na dog\n")
    assert [line.error is None for line in read_lines(tmp_path / "r.txt")] == [True, False, True]
    long = written(tmp_path / "r.csv", "prompt", "a cat", "a,b", "a dog")
    assert [line.error is None for line in read_lines(long)] == [True, False, True]
    long.write_bytes(b"prompt\na cat\n\xff\xfe\na dog\n")
    assert [line.error is None for line in read_lines(long)] == [True, False, True]


def test_every_field_of_a_request_has_its_form_in_csv(tmp_path):
    path = written(
        tmp_path / "r.csv",
        "prompt, loras,prompts,steps",
        'a cat,style.safetensors:0.5,"{""clip_g"": ""a, b""}",3',
        'a cat,"[""a.safetensors"", ""b.safetensors""]",,',
    )
    first, second = (line.request for line in read_lines(path))
    assert [(lora.file, lora.scale) for lora in first.loras] == [("style.safetensors", 0.5)]
    assert first.prompts == {"clip_g": "a, b"} and first.steps == 3
    assert [lora.file for lora in second.loras] == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("none.jsonl", None, "there is no file"),
        ("r.csv", "promt,seed\na,1\n", 'no "promt"; did you mean "prompt"'),
        ("r.csv", "prompt;seed\na;1\n", "with commas between them"),
        ("r.csv", "a\0b\n", "is not CSV|has no"),
        ("r.jsnl", "{}\n", "says nothing of its form"),
    ],
)
def test_file_that_cannot_be_read_at_all_is_one_sentence(tmp_path, name, text, sentence):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidRequest, match=sentence):
        list(read_lines(tmp_path / name))


# Painting.


def test_images_are_those_of_generate_and_each_has_its_line(tiny, tmp_path):
    lines = [
        {"prompt": "a red cat", "model": tiny, "seeds": [0, 1], "edits": [FOG]},
        {"prompt": "a dog", "model": tiny, "negative": "fog", "steps": 3},
    ]
    read = list(read_lines(written(tmp_path / "r.jsonl", *lines)))
    paint(read, tmp_path / "out")
    records = results(tmp_path / "out")
    assert [(r["lines"], r["seed"]) for r in records] == [([2], 0), ([1], 0), ([1], 1)]
    assert all(r["seconds"] > 0 and r["threads"] == torch.get_num_threads() for r in records)
    assert records[1]["edits"][0]["change"]["clip"] > 0
    model = t2iedit.open_model(tiny)
    for record in records:
        request = read[record["lines"][0] - 1].request.for_seed(record["seed"])
        expected = np.asarray(t2iedit.generate(model, request).image)
        assert np.array_equal(pixels(tmp_path / "out" / record["path"]), expected)
        assert record["key"] == batch.key_of(request) and len(record["key"]) == 20


def test_second_run_makes_nothing_and_equal_requests_are_one_image(tiny, tmp_path):
    lines = [{"prompt": "a cat", "model": tiny, "seed": seed} for seed in (0, 1, 0)]
    path = written(tmp_path / "r.jsonl", *lines)
    assert len(paint(read_lines(path), tmp_path / "out")) == 2
    before = state(tmp_path / "out")
    assert paint(read_lines(path), tmp_path / "out") == []
    assert state(tmp_path / "out") == before
    assert sorted(r["lines"] for r in results(tmp_path / "out")) == [[1, 3], [2]]
    # Another order and one more: only the new one is made.
    written(path, {"prompt": "a dog", "model": tiny}, *reversed(lines))
    assert len(paint(read_lines(path), tmp_path / "out")) == 1


def test_texts_are_encoded_once_and_patches_stay_on(tiny, tmp_path, monkeypatch):
    encoded = []
    original = TextEncoder.encode_batch

    def counting(self, tokens, embeds=None):
        encoded.extend(token.text for token in tokens)
        return original(self, tokens, embeds)

    monkeypatch.setattr(TextEncoder, "encode_batch", counting)
    lines = [
        {"prompt": prompt, "model": tiny, "negative": "fog", "seeds": [0, 1]}
        for prompt in ("a cat", "a dog", "a cat and a dog")
    ]
    paint(read_lines(written(tmp_path / "r.jsonl", *lines)), tmp_path / "out")
    assert sorted(encoded) == ["a cat", "a cat and a dog", "a dog", "fog"]
    assert KNOWN_TEXTS > 2


def test_bad_lines_and_failures_are_recorded_and_the_rest_is_made(tiny, tmp_path):
    lines = [
        {"prompt": "a cat", "model": "nowhere"},
        "{",
        {"prompt": "a cat", "model": tiny, "size": [65, 64]},
        {"prompt": "a cat", "model": tiny, "edits": [{"name": "t2i_zero", "options": {"concepts": ["dog"]}}]},
        {"prompt": "a cat", "model": tiny},
    ]  # fmt: skip
    path = written(tmp_path / "r.jsonl", *lines)
    paint(read_lines(path), tmp_path / "out")
    records = results(tmp_path / "out")
    errors = {r["lines"][0]: r["error"] for r in records if "error" in r}
    assert sorted(errors) == [1, 2, 3, 4] and [r["lines"] for r in records if "key" in r] == [[5]]
    assert {r["lines"][0]: r["seed"] for r in records} == {1: 0, 2: None, 3: 0, 4: 0, 5: 0}
    assert 'there is no model "nowhere"' in errors[1] and "multiples of 8" in errors[3]
    assert '"dog" is not in the prompt' in errors[4]
    # Failures are tried again, and told once.
    assert len(paint(read_lines(path), tmp_path / "out")) == 4
    assert len(results(tmp_path / "out")) == 5


class Clumsy(t2iedit.Edit):
    """Fails for one seed, with what only a bug raises."""

    name = "clumsy"

    def edit_embedding(self, embedding, run):
        if run.seeds == (1,):
            raise AttributeError("no such thing")
        return embedding


def test_one_image_that_fails_stops_neither_its_line_nor_the_next(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(installed().edits, "clumsy", Clumsy)
    lines = [
        {"prompt": "a cat", "model": tiny, "seeds": [0, 1, 2], "edits": [{"name": "clumsy"}]},
        {"prompt": "a dog", "model": tiny},
        {"prompt": "a cat", "model": tiny, "seed": 1, "edits": [{"name": "clumsy"}]},
    ]
    path = written(tmp_path / "r.jsonl", *lines)
    with batch.Folder(tmp_path / "out").held() as held:
        made = batch.plan(read_lines(path), held)
        counts = batch.run(made, held, batch.in_process, Setup(), lambda made, path: None)
    assert counts == (3, 1)
    records = results(tmp_path / "out")
    (failed,) = [record for record in records if "error" in record]
    assert failed["seed"] == 1 and failed["lines"] == [1, 3] and "AttributeError" in failed["error"]
    assert sorted((r["lines"][0], r["seed"]) for r in records) == [(1, 0), (1, 1), (1, 2), (2, 0)]


def test_precisions_of_one_model_do_not_meet(tiny, tmp_path):
    """Their fingerprints differ, and a batch that goes on must not take one for the other."""
    lines = [{"prompt": "a cat", "model": tiny}, {"prompt": "a cat", "model": tiny, "dtype": "bfloat16"}]  # fmt: skip
    path = written(tmp_path / "r.jsonl", *lines)
    paint(read_lines(path), tmp_path / "out")
    written(path, *lines, *({**line, "prompt": "a dog"} for line in lines))
    paint(read_lines(path), tmp_path / "out")
    records = results(tmp_path / "out")
    assert len(records) == 4 and not any("error" in record for record in records)
    assert {record["dtype"] for record in records} == {"float32", "bfloat16"}


def test_texts_known_under_a_lora_are_not_taken_for_those_without(tiny, tmp_path):
    """Nor after a LoRA that failed to load, which leaves none on."""
    from safetensors.torch import save_file

    model = t2iedit.open_model(tiny)
    name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer"
    width = model.pipeline.text_encoder.config.hidden_size
    down, up = torch.randn(2, 2, width, generator=torch.Generator().manual_seed(0))
    good = {f"{name}.down.weight": down, f"{name}.up.weight": up.T.contiguous()}
    save_file(good, tmp_path / "good.safetensors")
    save_file({"nothing.of.use": torch.ones(1)}, tmp_path / "bad.safetensors")
    known = {}
    plain = t2iedit.Request("a cat", steps=1)
    expected = np.asarray(t2iedit.generate(model, plain).image)
    lora = t2iedit.Request("a cat", steps=1, loras=[f"{tmp_path}/good.safetensors:4"])
    with_lora = np.asarray(t2iedit.generate(model, lora, known=known).image)
    assert not np.array_equal(with_lora, expected)
    with pytest.raises(LoraNotUsable):
        bad = plain.model_copy(update={"loras": (Lora(file=str(tmp_path / "bad.safetensors")),)})
        t2iedit.generate(model, bad, known=known)
    after = np.asarray(t2iedit.generate(model, plain, known=known).image)
    assert np.array_equal(after, expected)


def test_requests_of_one_lora_stand_together():
    def like(prompt, *loras):
        return t2iedit.Request(prompt, loras=loras)

    mixed = [like("a", "x.safetensors"), like("b"), like("c", "x.safetensors"), like("d")]
    loras = [bool(request.loras) for request in sorted(mixed, key=batch._alike)]
    assert loras == sorted(loras)


# Crashes.


def test_what_a_crash_left_is_repaired(tiny, tmp_path):
    path = written(
        tmp_path / "r.jsonl", *({"prompt": "a cat", "model": tiny, "seed": s} for s in range(4))
    )
    out = tmp_path / "out"
    paint(read_lines(path), out)
    kept = results(out)
    before = state(out)
    # The last line half written, one line lost before, one image deleted, one file unfinished.
    lines = [json.dumps(r) for r in kept]
    (out / "results.jsonl").write_text(f"{lines[0]}\n{lines[2]}\n{lines[3][:40]}")
    (out / kept[2]["path"]).unlink()
    (out / ".x.part").write_bytes(b"half")
    made = paint(read_lines(path), out)
    assert [m.seed for m, _ in made] == [2]
    assert sorted(r["seed"] for r in results(out)) == [0, 1, 2, 3]
    recovered = [r for r in results(out) if r.get("recovered")]
    assert sorted(r["seed"] for r in recovered) == [1, 3]
    after = state(out)
    for record in kept:
        name = record["path"]
        assert after[name] == before[name] or name == kept[2]["path"]
    assert not list(out.glob("*.part"))


def test_other_weights_of_the_same_name_are_refused(tiny, tmp_path):
    folder = tmp_path / "model"
    tiny_pipeline("sd1").save_pretrained(folder)
    path = written(tmp_path / "r.jsonl", {"prompt": "a cat", "model": str(folder), "steps": 1})
    paint(read_lines(path), tmp_path / "out")
    tiny_pipeline("sd1", seed=1).save_pretrained(folder)
    written(
        path, *({"prompt": "a cat", "model": str(folder), "steps": 1, "seed": s} for s in (0, 1))
    )
    with batch.Folder(tmp_path / "out").held() as held:
        made = batch.plan(read_lines(path), held)
        (failed,) = batch.in_process(made.tasks, Setup(fingerprints=held.fingerprints))
    assert failed.error is not None and "were made with other weights" in failed.error


def test_two_batches_in_one_folder_are_refused(tmp_path):
    with (
        batch.Folder(tmp_path / "out").held(),
        pytest.raises(OutputNotWritable, match="another batch is writing"),
        batch.Folder(tmp_path / "out").held(),
    ):
        pass


def test_full_disc_stops_with_a_sentence_and_resumes(tiny, tmp_path, monkeypatch):
    path = written(
        tmp_path / "r.jsonl", *({"prompt": "a cat", "model": tiny, "seed": s} for s in range(3))
    )
    real, calls = os.replace, []

    def full(source, target):
        if str(target).endswith(".png"):
            calls.append(target)
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputNotWritable, match="No space left"):
        paint(read_lines(path), tmp_path / "out")
    assert len(results(tmp_path / "out")) == 1 and not list((tmp_path / "out").glob("*.part"))
    assert len(paint(read_lines(path), tmp_path / "out")) == 2


def command(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "t2iedit", "batch", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def killed_at_random(tiny, tmp_path, times, *flags):
    """Start a batch, kill it somewhere, start it again; every image must be made once and whole."""
    count, chance = 12 * (times + 1), random.Random(times)
    path = written(tmp_path / "r.jsonl", *({"prompt": "a cat", "seed": s} for s in range(count)))
    out, seen = tmp_path / "out", {}
    for _ in range(times):
        process = command(path, "-m", tiny, "--steps", "20", "-o", out, *flags, cwd=tmp_path)
        process.stdout.readline()
        time.sleep(chance.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = state(out)
        assert all(now[name] == before for name, before in seen.items()), "an image was made twice"
        for name in now:
            assert pixels(out / name).shape == (64, 64, 3)
        seen = now
    assert 0 < len(seen) < count
    process = command(path, "-m", tiny, "--steps", "20", "-o", out, *flags, cwd=tmp_path)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0 and "Traceback" not in err, err
    final = state(out)
    assert len(final) == count and all(final[name] == before for name, before in seen.items())
    records = results(out)
    assert sorted(r["seed"] for r in records) == list(range(count))
    assert {r["path"] for r in records} == set(final) and not list(out.glob("*.part"))


def test_killed_at_random_points_it_resumes(tiny, tmp_path):
    killed_at_random(tiny, tmp_path, 3)


@pytest.mark.slow
def test_killed_at_twenty_random_points_it_resumes(tiny, tmp_path):
    killed_at_random(tiny, tmp_path, 20)


@pytest.mark.slow
def test_killed_with_its_workers_it_resumes(tiny, tmp_path):
    killed_at_random(tiny, tmp_path, 3, "--workers", "2")


def test_interrupt_keeps_what_is_finished(tiny, tmp_path):
    path = written(tmp_path / "r.txt", *(f"a cat and {n} dogs" for n in range(200)))
    process = command(path, "-m", tiny, "-o", "out", cwd=tmp_path)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and "Traceback" not in err
    assert results(tmp_path / "out")


# Several workers.


def test_workers_paint_what_one_paints_and_survive_a_death(tiny, tmp_path):
    lines = [{"prompt": "a cat", "model": tiny, "seeds": [3 * n, 3 * n + 1, 3 * n + 2], "steps": 60} for n in range(4)]  # fmt: skip
    path = written(tmp_path / "r.jsonl", *lines)
    two, threads = tmp_path / "two", torch.get_num_threads()
    killed = []

    def kill_one(made, image):
        if not killed:
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()

    with batch.Folder(two).held() as held:
        made = batch.plan(read_lines(path), held)
        engine = workers.processes(2)
        assert batch.run(made, held, engine, Setup(threads=threads), kill_one) == (12, 0)
    assert killed
    assert sorted(r["seed"] for r in results(two)) == list(range(12))
    paint(read_lines(path), tmp_path / "one")
    assert {p.name for p in two.glob("*.png")} == {p.name for p in (tmp_path / "one").glob("*.png")}
    for image in (tmp_path / "one").glob("*.png"):
        assert np.array_equal(pixels(image), pixels(two / image.name))


def test_workers_share_cores():
    assert workers.share_of(0, 1000, Setup()).threads == 1
    assert workers.share_of(1, 2, Setup(threads=3, device="cpu")) == Setup("cpu", None, 3)


# The command.


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys, tiny):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = t2iedit.cli.main(["batch", *map(str, arguments), "-m", tiny, "-o", "out"])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_batch_prints_paths_and_a_summary(cli, tmp_path):
    written(tmp_path / "r.txt", "a cat", "a dog")
    code, out, err = cli("r.txt", "--steps", 1, "--seeds", "0..1")
    assert code == 0 and len(out.split()) == 4 and all(Path(p).exists() for p in out.split())
    assert "4 images made, 0 were there already, 0 failures" in err
    assert json.loads(cli("r.txt", "--steps", 1, "--json")[1])["already there"] == 2


def test_dry_run_checks_every_line_and_makes_nothing(cli, tmp_path):
    written(
        tmp_path / "r.jsonl",
        {"prompt": "a cat"},
        "{",
        {"prompt": "a cat", "edits": [{"name": "t2i_zero", "options": {"concepts": ["dog"]}}]},
        {"prompt": "a cat", "size": "65x64"},
    )
    code, out, err = cli("r.jsonl", "--dry-run")
    assert code == 1 and out == "" and not Path("out").exists()
    assert "line 2: this is not JSON" in err and 'line 3: "dog" is not in the prompt' in err
    assert "line 4: this model cannot make pictures of 65x64" in err
    assert "1 images could be made" in err


def test_bad_line_exits_with_1_and_the_rest_is_there(cli, tmp_path):
    written(tmp_path / "r.jsonl", {"prompt": "a cat", "steps": 1}, "{")
    code, out, err = cli("r.jsonl")
    assert (
        code == 1 and len(out.split()) == 1 and err.startswith("t2iedit: line 2: this is not JSON")
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["none.jsonl"], "there is no file"),
        (["r.txt", "--workers", "0"], "at least 1 is needed"),
        (["r.txt", "--batch-size", "4"], "leave out --batch-size"),
        (["r.txt", "--address", "auto"], "give --engine ray"),
        (["r.txt", "--offload", "model"], "and there is none here"),
    ],
)
def test_mistakes_in_the_command_are_one_sentence(cli, tmp_path, flags, sentence):
    written(tmp_path / "r.txt", "a cat")
    code, out, err = cli(*flags)
    assert code in (1, 2) and out == "" and sentence in err and "Traceback" not in err


def test_empty_output_is_refused(cli, tmp_path, capsys):
    written(tmp_path / "r.txt", "a cat")
    assert t2iedit.cli.main(["batch", str(tmp_path / "r.txt"), "-o", ""]) == 2
    assert "-o is empty" in capsys.readouterr().err


def test_made_travels_without_an_image():
    assert Made(3, error="no").png is None


def concept(path, model, value):
    from t2iedit_context.embeddings import Concept, write_concept

    width = model.pipeline.text_encoder.config.hidden_size
    write_concept(Concept("<toy>", {"clip": torch.full((1, width), value)}), path)


def test_other_file_of_the_same_name_is_another_image(tiny, tmp_path, sd1):
    path, out = tmp_path / "toy.safetensors", tmp_path / "out"
    core = {"name": "core", "options": {"concept": [str(path)]}}
    jobs = written(tmp_path / "a.jsonl", {"prompt": "a <toy>", "model": tiny, "edits": [core]})
    made = []
    for value in (0.1, 0.1, -0.2):
        concept(path, sd1, value)
        made.append([each for _, each in paint(read_lines(jobs), out)])
    assert [len(paths) for paths in made] == [1, 0, 1] and made[0] != made[2]
    request, made_with = recorded(made[0][0])
    told = differences(t2iedit.open_model(tiny), request, made_with)
    assert any("content of toy.safetensors" in sentence for sentence in told)


def test_half_a_character_stops_nothing(tiny, tmp_path):
    bad = '{"prompt": "a", "edits": [{"name": "\\ud800"}]}'
    jobs = written(tmp_path / "a.jsonl", bad, {"prompt": "a cat", "model": tiny})
    assert [path is not None for _, path in paint(read_lines(jobs), tmp_path / "out")] == [
        False,
        True,
    ]
    assert len(results(tmp_path / "out")) == 2
    assert [path for _, path in paint(read_lines(jobs), tmp_path / "out")] == [None]


@pytest.mark.parametrize("seeds", [5, [], "x"])
def test_recipe_with_strange_seeds_is_recovered(tiny, tmp_path, seeds):
    jobs = written(tmp_path / "a.jsonl", {"prompt": "a cat", "model": tiny})
    ((_, path),) = paint(read_lines(jobs), tmp_path / "out")
    with Image.open(path) as image:
        info, copy = dict(image.info), image.copy()
    held = PngInfo()
    for key, value in info.items():
        text = json.dumps(json.loads(value) | {"seeds": seeds}) if key == RECIPE else value
        held.add_text(key, str(text))
    copy.save(path, pnginfo=held)
    (tmp_path / "out" / "results.jsonl").unlink()
    assert paint(read_lines(jobs), tmp_path / "out") == []
    assert results(tmp_path / "out")[0]["recovered"]
