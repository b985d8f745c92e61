"""Conditionings as files: whole, versioned, and read as untrusted."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import t2iedit
from t2iedit.conditioning_files import KEY
from t2iedit.errors import ConditioningNotUsable, OutputNotWritable
from t2iedit.plugins import installed

Decor = installed().edit("decor")
PROMPT = "a red cät and a blue dog"


@pytest.fixture
def held(model):
    return t2iedit.encode(
        model, PROMPT, negative="fog", edits=[Decor(undesired=["fog"], start=0.25, stop=0.5)]
    )


@pytest.fixture
def file(sd1, tmp_path):
    return t2iedit.encode(sd1, PROMPT, guidance_scale=1).save(tmp_path / "c.safetensors")


def test_file_gives_back_the_conditioning_bit_for_bit(held, tmp_path):
    again = t2iedit.Conditioning.load(held.save(tmp_path / "new" / "c.safetensors"))
    mine, theirs = dict(held.tensors()), dict(again.tensors())
    assert list(mine) == list(theirs) and all(map(torch.equal, mine.values(), theirs.values()))
    assert again.digest == held.digest and again.origin == held.origin
    assert [start for start, _ in again.changes] == [0.25, 0.5]
    for moment in (0.0, 0.3, 0.7):
        for a, b in zip(held.at(moment).prompt, again.at(moment).prompt, strict=True):
            assert (a.tokens.text, a.tokens.offsets, a.tokens.kinds) == (
                b.tokens.text,
                b.tokens.offsets,
                b.tokens.kinds,
            )
            assert torch.equal(a.tokens.ids, b.tokens.ids)


def test_half_precision_and_no_negative_survive(file, sd1, tmp_path):
    half = t2iedit.Conditioning.load(file).to("cpu", torch.bfloat16)
    again = t2iedit.Conditioning.load(half.save(tmp_path / "half.safetensors"))
    assert again.negative is None
    assert again.prompt[0].hidden.dtype == torch.bfloat16
    assert again.origin.history[-1] == {"converted": "bfloat16"}


def test_saving_leaves_the_old_file_if_it_fails(file, held, monkeypatch):
    old = file.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputNotWritable, match="No space left"):
        held.save(file)
    assert file.read_bytes() == old and list(file.parent.iterdir()) == [file]


def rewritten(file, header=lambda h: None, version=None, tensors=lambda t: None):
    """The file with its header, version or tensors changed."""
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata())
    values, told = load_file(file), json.loads(metadata[KEY])
    header(told)
    tensors(values)
    metadata[KEY] = json.dumps(told)
    metadata["format"] = version or metadata["format"]
    save_file(values, file, metadata)


def test_file_of_a_later_minor_version_is_read(file):
    """What a later version may add: header entries at every level, and tensors."""
    before = t2iedit.Conditioning.load(file)

    def later(header):
        header["mood"] = "blue"
        header["encoders"][0]["quantised"] = True
        header["moments"][0]["image"] = [1, 2]
        header["moments"][0]["prompt"][0]["language"] = "en"

    rewritten(file, later, "1.7", lambda t: t.update({"0/prompt/0/mask": torch.ones(77)}))
    assert t2iedit.Conditioning.load(file).digest == before.digest


@pytest.mark.parametrize("version", ["²", "9" * 5000, "x", "-1"])
def test_format_that_is_no_version_is_damage(file, version):
    rewritten(file, version=version)
    with pytest.raises(ConditioningNotUsable, match="no version"):
        t2iedit.Conditioning.load(file)


def test_kinds_below_zero_are_damage(file):
    kinds = "0/prompt/0/kinds"
    rewritten(file, tensors=lambda t: t.update({kinds: t[kinds].to(torch.int64) - 100}))
    with pytest.raises(ConditioningNotUsable, match="below 0"):
        t2iedit.Conditioning.load(file)


@pytest.mark.parametrize(
    ("version", "advice"), [("2.0", "update t2iedit"), ("0.9", "encode the prompt again")]
)
def test_file_of_another_major_version_is_refused(file, version, advice):
    rewritten(file, version=version)
    with pytest.raises(ConditioningNotUsable, match=f"format {version}.*{advice}"):
        t2iedit.Conditioning.load(file)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "new"},
        {"header": lambda h: h.pop("moments")},
        {"header": lambda h: h.update(moments=[])},
        {"header": lambda h: h["moments"][0].update(start=0.5)},
        {"header": lambda h: h["moments"].append(h["moments"][0])},
        {"header": lambda h: h["moments"][0].update(start=float("nan"))},
        {"header": lambda h: h.update(kinds=["bos", "image"])},
        {"header": lambda h: h["moments"][0]["prompt"].append({"encoder": "x", "text": ""})},
        {"tensors": lambda t: t.pop("0/prompt/0/ids")},
        {"tensors": lambda t: t.update({"0/prompt/0/ids": torch.ones(5, dtype=torch.int64)})},
        {"tensors": lambda t: t.update({"0/prompt/0/kinds": torch.full((77,), 9, dtype=torch.uint8)})},
        {"tensors": lambda t: t.update({"0/prompt/0/hidden": torch.full((77, 32), torch.nan)})},
        {"tensors": lambda t: t.update({"0/prompt/0/hidden": torch.ones(77, 32, dtype=torch.int8)})},
        {"tensors": lambda t: t.update({"0/prompt/0/offsets": torch.ones(77, 3, dtype=torch.int32)})},
        {"tensors": lambda t: t.update({"0/prompt/0/offsets": torch.full((77, 2), torch.inf)})},
        {"tensors": lambda t: t.update({name: tensor[:0] for name, tensor in t.items()})},
        {"header": lambda h: h["moments"][0]["prompt"][0].update(encoder="clip_x")},
        {"header": lambda h: h["encoders"].append(h["encoders"][0])},
    ],
)  # fmt: skip
def test_damaged_file_is_one_sentence(file, change):
    rewritten(file, **change)
    with pytest.raises(ConditioningNotUsable, match="cannot be read as a conditioning") as caught:
        t2iedit.Conditioning.load(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\xff" * 64,
        (99).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (10_000).to_bytes(8, "little") + b"[" * 10_000,
    ],
)
def test_file_that_is_none_is_one_sentence(tmp_path, data):
    path = tmp_path / "c.safetensors"
    path.write_bytes(data)
    with pytest.raises(ConditioningNotUsable, match="cannot be read as a conditioning"):
        t2iedit.Conditioning.load(path)
    with pytest.raises(ConditioningNotUsable, match="there is no conditioning"):
        t2iedit.Conditioning.load(tmp_path / "none.safetensors")
    header = b'{"__metadata__":null}'
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ConditioningNotUsable, match="cannot be read as a conditioning"):
        t2iedit.Conditioning.load(path)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(ConditioningNotUsable, match="holds no conditioning"):
        t2iedit.Conditioning.load(path)


def test_truncated_file_is_one_sentence(file):
    whole = file.read_bytes()
    for length in range(0, len(whole), len(whole) // 7):
        file.write_bytes(whole[:length])
        with pytest.raises(ConditioningNotUsable):
            t2iedit.Conditioning.load(file)


def test_kinds_hold_the_attention_mask_of_the_tokenizer(model):
    for encoder in model.encoders:
        tokens = encoder.tokenize(PROMPT)
        theirs = encoder.tokenizer(PROMPT, padding="max_length", max_length=encoder.length)
        mine = [int(kind is not t2iedit.Kind.PAD) for kind in tokens.kinds]
        assert mine == theirs["attention_mask"]


def test_file_of_format_1_0_is_read_for_ever():
    """Written by the first version that wrote any: two windows of a prompt, edited from 0.5 on."""
    held = t2iedit.Conditioning.load(Path(__file__).parent / "data" / "format-1.0.safetensors")
    assert held.text == "a red cat a blue dog" and [start for start, _ in held.changes] == [0.5]
    assert held.prompt[0].tokens.of(t2iedit.Kind.BOS) == [0, 77] and held.negative is not None
    assert held.origin is not None and held.origin.family == "sd"
    assert [list(step) for step in held.origin.history] == [["encoded"]]
    assert held.digest == "f2ef9bf7192e"


def test_document_names_every_part_of_a_file(file):
    text = (Path(__file__).parent.parent / "docs" / "conditioning-format.md").read_text()
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()[KEY])
    parts = {name.rsplit("/", 1)[1] for name in load_file(file)} | {"pooled"}
    for name in {*header, *header["encoders"][0], *header["moments"][0], *parts, *header["kinds"]}:
        assert f"`{name}`" in text, name
