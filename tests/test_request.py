"""One generation as data, as Python and as JSON."""

import json

import pytest

import t2iedit
from t2iedit.errors import InvalidOptions, InvalidRequest, UnknownEdit
from t2iedit.plugins import installed

Decor = installed().edit("decor")


def test_request_survives_json():
    request = t2iedit.Request(
        "a cat", negative="fog", seeds=(1, 2), steps=3, guidance_scale=2, size=(64, 72),
        edits=[Decor(undesired=["fog"], alpha=0.5), Decor(undesired=["dog"])],
    )  # fmt: skip
    assert t2iedit.Request.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_defaults_are_left_out_of_json():
    assert t2iedit.Request("a cat").to_json() == {"prompt": "a cat"}


def test_seed_is_short_for_one_of_seeds_and_a_range_will_do():
    assert t2iedit.Request("a", seed=5).seeds == (5,)
    assert t2iedit.Request("a", seeds=range(3)).seeds == (0, 1, 2)
    assert t2iedit.Request("a", seeds=[4, 5]).for_seed(5).seeds == (5,)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"seed": 1, "seeds": [2]}, "give seed or seeds, not both"),
        ({"seeds": []}, "at least one seed"),
        ({"seeds": [-1]}, "a seed is a whole number from 0"),
        ({"seeds": [2**63]}, "a seed is a whole number from 0"),
        ({"steps": 0}, "steps=0: input should be greater"),
        ({"guidance_scale": float("inf")}, "guidance_scale=inf"),
        ({"size": (64,)}, "size"),
        ({"colour": "red"}, 'a request has no "colour"; it has prompt, negative'),
        ({"edits": [{"options": {}}]}, "an edit is"),
        ({"edits": "decor"}, "edits is a list"),
        ({"edits": [{"name": ["decor"]}]}, "an edit is"),
        ({"edits": [{"name": "decor", "options": None}]}, "an edit is"),
        ({"edits": [{"name": "decor", "options": [1]}]}, "an edit is"),
        ({"size": (100_000, 1000)}, "at most 64000000 pixels"),
        ({"self": 1}, 'a request has no "self"'),
    ],
)
def test_bad_request_is_one_sentence(values, sentence):
    with pytest.raises(InvalidRequest, match=sentence) as caught:
        t2iedit.Request("a cat", **values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        ({"name": "dekor"}, UnknownEdit),
        ({"name": "decor", "options": {"alpha": 2, "undesired": ["x"]}}, InvalidOptions),
    ],
)
def test_bad_edit_in_a_request_keeps_its_own_sentence(edit, error):
    with pytest.raises(error):
        t2iedit.Request("a cat", edits=[edit])


@pytest.mark.parametrize("data", [[], {"steps": 3}, {"prompt": 7}])
def test_json_without_a_prompt_is_refused(data):
    with pytest.raises(InvalidRequest, match='at least a "prompt"'):
        t2iedit.Request.from_json(data)
