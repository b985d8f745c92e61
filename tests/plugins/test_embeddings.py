"""Concepts as files: ours, other programs', and those that nobody should open."""

import errno
import json
import os
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file
from t2iedit_context.embeddings import Concept, ConceptNotUsable, read_concept, write_concept

import t2iedit
from t2iedit import OutputNotWritable
from t2iedit.plugins import installed
from t2iedit.tiny import tiny_pipeline

Core = installed().edit("core")
ROWS = torch.arange(64, dtype=torch.float32).reshape(2, 32) / 64
MADE = {"model": "here", "steps": 300, "encoders": {"clip": [0.5]}}


def concept(**values):
    return Concept(**({"placeholder": "<toy>", "vectors": {"clip": ROWS}} | values))


def written(tmp_path, name, **values):
    path = tmp_path / name
    write_concept(concept(**values), path)
    return path


def same(found, rows=ROWS, name="<toy>"):
    assert found.placeholder == name
    assert torch.equal(found.vectors["clip"], rows)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_concept_comes_back_from_every_layout(tmp_path, suffix):
    same(read_concept(written(tmp_path, f"x{suffix}")))


def test_our_file_remembers_category_and_origin(tmp_path):
    found = read_concept(written(tmp_path, "x.safetensors", category="cat", made=MADE))
    assert (found.category, found.made) == ("cat", MADE)
    assert len(found.digest) == 12 and found.count == 2


def test_two_encoders_travel_in_one_file(tmp_path):
    vectors = {"clip_l": ROWS, "clip_g": torch.ones(2, 48)}
    path = written(tmp_path, "x.safetensors", vectors=vectors)
    assert set(load_file(path)) == {"clip_l", "clip_g"}
    found = read_concept(path)
    assert found.placeholder == "<toy>" and torch.equal(found.vectors["clip_g"], torch.ones(2, 48))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_plain_diffusers_loads_what_we_write_and_reads_it_the_same(tmp_path, sd1, suffix):
    path = written(tmp_path, f"x{suffix}", category="cat")
    pipeline = tiny_pipeline("sd1")
    pipeline.load_textual_inversion(
        str(tmp_path), weight_name=path.name, use_safetensors=suffix == ".safetensors"
    )
    theirs, _ = pipeline.encode_prompt("a red <toy> and a dog", "cpu", 1, False)
    request = t2iedit.Request("a red <toy> and a dog", steps=2, edits=[Core(concept=[str(path)])])
    (conditioning,) = t2iedit.condition([t2iedit.start(sd1, request)])
    assert torch.allclose(theirs[0], conditioning.prompt[0].hidden, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_plain_diffusers_loads_both_encoders_of_ours(tmp_path):
    vectors = {"clip_l": ROWS[:1], "clip_g": torch.ones(1, 48)}
    state = load_file(written(tmp_path, "x.safetensors", vectors=vectors))
    pipeline = tiny_pipeline("sdxl")
    for key, encoder, tokenizer in (
        ("clip_l", pipeline.text_encoder, pipeline.tokenizer),
        ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
    ):
        pipeline.load_textual_inversion(
            state[key], token="<toy>", text_encoder=encoder, tokenizer=tokenizer
        )
        row = tokenizer.convert_tokens_to_ids("<toy>")
        assert torch.equal(encoder.get_input_embeddings().weight[row], vectors[key][0])


def test_layouts_of_others_are_read(tmp_path):
    folder = tmp_path
    save_file({"<cat-toy>": ROWS[0]}, folder / "learned_embeds.safetensors")
    same(read_concept(folder / "learned_embeds.safetensors"), ROWS[:1], "<cat-toy>")
    torch.save({"<cat-toy>": ROWS.half()}, folder / "learned_embeds.bin")
    same(read_concept(folder / "learned_embeds.bin"), ROWS.half().float(), "<cat-toy>")
    parameter = torch.nn.Parameter(ROWS)
    a1111 = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": parameter},
        "name": "easy",
        "step": 3,
    }
    torch.save(a1111, folder / "easy.pt")
    same(read_concept(folder / "easy.pt"), ROWS, "easy")
    save_file({"emb_params": ROWS}, folder / "EasyNegative.safetensors")
    same(read_concept(folder / "EasyNegative.safetensors"), ROWS, "EasyNegative")
    torch.save(ROWS, folder / "bare.pt")
    same(read_concept(folder / "bare.pt", "<mine>"), ROWS, "<mine>")
    both = {"clip_l": ROWS, "clip_g": torch.ones(2, 48), "clip_g_out": torch.ones(2, 48)}
    save_file(both, folder / "trainer.safetensors")
    assert list(read_concept(folder / "trainer.safetensors").vectors) == ["clip_l", "clip_g"]


class Program:
    """A pickle that runs something when it is opened."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_pickle_with_a_program_in_it_is_refused_and_not_run(tmp_path):
    torch.save({"<toy>": Program(tmp_path / "ran")}, tmp_path / "x.bin")
    with pytest.raises(ConceptNotUsable, match="could run a program"):
        read_concept(tmp_path / "x.bin")
    assert not (tmp_path / "ran").exists()


def broken(folder):
    nan = ROWS.clone()
    nan[0, 0] = float("nan")
    save_file({"<toy>": nan}, folder / "nan.safetensors")
    save_file({"<toy>": ROWS.int()}, folder / "ints.safetensors")
    save_file({"<toy>": torch.ones(76, 4)}, folder / "many.safetensors")
    save_file({"<toy>": torch.ones(2, 2, 2)}, folder / "deep.safetensors")
    save_file({"a": ROWS, "b": ROWS.clone()}, folder / "lora.safetensors")
    save_file({"clip_l": ROWS, "clip_g": ROWS[:1].clone()}, folder / "uneven.safetensors")
    save_file({" ": ROWS}, folder / "nameless.safetensors")
    (folder / "text.safetensors").write_text("no tensors at all")
    (folder / "text.pt").write_text("no tensors at all")
    (folder / "empty.pt").write_bytes(b"")
    torch.save(["<toy>"], folder / "list.bin")
    torch.save({"string_to_param": {}}, folder / "hollow.pt")
    torch.save({}, folder / "nothing.bin")
    (folder / "picture.png").write_bytes(b"x")
    with (folder / "huge.safetensors").open("wb") as file:
        file.truncate(65 * 2**20)
    whole = written(folder, "whole.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-10])
    whole = written(folder, "whole.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])


BROKEN = {
    "nan.safetensors": "not finite",
    "ints.safetensors": "something else than rows",
    "many.safetensors": "76 vectors",
    "deep.safetensors": "something else than rows",
    "lora.safetensors": "no layout of a textual inversion",
    "uneven.safetensors": "different numbers of vectors",
    "nameless.safetensors": "--placeholder",
    "text.safetensors": "damaged",
    "text.pt": "",
    "empty.pt": "",
    "list.bin": "no tensors",
    "hollow.pt": "something else than rows",
    "nothing.bin": "holds nothing",
    "picture.png": "no .safetensors",
    "huge.safetensors": "65 MiB",
    "cut.safetensors": "damaged",
    "cut.pt": "damaged",
    "missing.pt": "cannot read",
}


def test_broken_files_cost_one_sentence_each(tmp_path):
    broken(tmp_path)
    for name, sentence in BROKEN.items():
        with pytest.raises(ConceptNotUsable) as error:
            read_concept(tmp_path / name)
        assert sentence in str(error.value), name
        assert name in str(error.value) and "\n" not in str(error.value)


def test_metadata_of_others_is_not_taken_for_ours(tmp_path):
    save_file({"<toy>": ROWS}, tmp_path / "x.safetensors", {"t2iedit": "[1]"})
    same(read_concept(tmp_path / "x.safetensors"))
    save_file({"<toy>": ROWS}, tmp_path / "y.safetensors", {"t2iedit": "{"})
    with pytest.raises(ConceptNotUsable, match="damaged"):
        read_concept(tmp_path / "y.safetensors")


def test_layout_that_cannot_hold_it_is_refused(tmp_path):
    vectors = {"clip_l": ROWS, "clip_g": torch.ones(2, 48)}
    with pytest.raises(ConceptNotUsable, match="one encoder"):
        written(tmp_path, "x.pt", vectors=vectors)
    with pytest.raises(OutputNotWritable, match="no name for a concept"):
        written(tmp_path, "x.png")
    assert list(tmp_path.iterdir()) == []


def test_full_disc_leaves_the_old_file_and_no_rest(tmp_path):
    path = written(tmp_path, "x.safetensors")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OutputNotWritable, match=os.strerror(errno.EFBIG)):
            written(tmp_path, "x.safetensors", vectors={"clip": torch.ones(9, 32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_file_is_plain_safetensors_with_json_beside(tmp_path):
    data = written(tmp_path, "x.safetensors", category="cat", made=MADE).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["t2iedit"])["category"] == "cat"
    assert set(header) == {"__metadata__", "<toy>"}


@pytest.mark.parametrize(
    "ours", [{"made": ["x"]}, {"made": {"encoders": 3}}, {"category": 7}, {"category": ["cat"]}]
)
def test_header_of_wrong_types_is_damage(tmp_path, ours):
    path = tmp_path / "x.safetensors"
    save_file({"<toy>": ROWS}, path, {"t2iedit": json.dumps({"placeholder": "<toy>"} | ours)})
    with pytest.raises(ConceptNotUsable, match="damaged"):
        read_concept(path)


def test_empty_category_is_none(tmp_path):
    assert read_concept(written(tmp_path, "x.safetensors", category="")).category is None
