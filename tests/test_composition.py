"""The composition benchmark: many prompts a call, who judges, what is kept, and how candidates drop out."""

import json

import numpy as np
import pytest
from referees import (
    Detector,
    GenEval,
    Verdict,
    as_asked,
    in_turn,
    of_detection,
    of_geneval,
    picture,
)
from studio import Arm, Studio
from together import paint

import t2iedit
from t2iedit import UserError
from t2iedit.plugins import installed
from t2iedit.shapes.detector import Detected, Detection
from t2iedit.shapes.scoring import Wanted
from t2iedit.shapes.tasks import Task
from t2iedit.testing import tiny_model

PAIR = Wanted((("red", "circle"), ("blue", "square")))
PROMPTS = ("a red cat and a blue dog", "a photo of a red cat and a car in the fog", "a dog")


def found(*pairs):
    items = (Detected(shape, color, "plain", 0.5, 0.5, 0.2, 1.0) for color, shape in pairs)
    return Detection(tuple(items), "white")


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_prompts_painted_together_are_those_painted_alone(family):
    model = tiny_model(family)
    zero, decor = installed().edit("t2i_zero"), installed().edit("decor")
    edits = (
        [zero(concepts=["red cat", "blue dog"], suppression=1.0, smallest_map=1, stop=0.6)],
        [decor(undesired=["fog"], start=0.4)],
        [],
    )
    requests = [
        t2iedit.Request(prompt, edits=own, seed=3 + number, steps=3, guidance_scale=4.0)
        for number, (prompt, own) in enumerate(zip(PROMPTS, edits, strict=True))
    ]
    together, _ = paint(model, requests)
    for request, image in zip(requests, together, strict=True):
        alone = t2iedit.generate(model, request).image
        assert abs(np.asarray(image).astype(int) - np.asarray(alone)).max() <= 1
        if request.edits:
            plain = t2iedit.generate(model, request.model_copy(update={"edits": ()})).image
            assert np.asarray(plain).tobytes() != np.asarray(alone).tobytes()


@pytest.mark.parametrize(
    ("shown", "verdict"),
    [
        (found(("red", "circle"), ("blue", "square")), Verdict(2, 2, 2, 0, True, 1.0)),
        (found(("blue", "circle"), ("blue", "square")), Verdict(2, 2, 1, 1, False, 1 / 3)),
        (found(("red", "circle")), Verdict(2, 1, 1, 0, False, 1 / 2)),
        (found(("red", "circle"), ("blue", "square"), ("blue", "square")), Verdict(2, 2, 2, 0, False, 2 / 3)),
        (found(), Verdict(2, 0, 0, 0, False, 0.0)),
    ],
)  # fmt: skip
def test_verdicts_of_the_detector(shown, verdict):
    assert of_detection(shown, PAIR) == verdict


CUP_AND_DOG = Wanted((("red", "cup"), ("blue", "dog")))


@pytest.mark.parametrize(
    ("reason", "verdict"),
    [
        ("", Verdict(2, 2, 2, 0, True, 1.0)),
        ("expected dog>=1, found 0", Verdict(2, 1, 1, 0, False, 0.5)),
        ("expected red cup>=1, found 0 red; and 1 blue", Verdict(2, 2, 1, 1, False, 0.5)),
        ("expected red cup>=1, found 0 red; and 1 green", Verdict(2, 2, 1, 0, False, 0.5)),
        ("expected red cup>=1, found 0 red; and 1 blue\nexpected dog>=1, found 0", Verdict(2, 1, 0, 1, False, 0.0)),
    ],
)  # fmt: skip
def test_verdicts_from_genevals_reasons(reason, verdict):
    assert of_geneval({"correct": not reason, "reason": reason}, CUP_AND_DOG) == verdict


def test_geneval_is_asked_for_and_then_read(tmp_path):
    place, referee = tmp_path / "plain-1", GenEval()
    tasks = referee.tasks({"two objects": 2, "three objects": 1}, seed=1)
    with pytest.raises(UserError, match="evaluate_images.py"):
        referee.judge(tasks, place)
    lines = [
        {"filename": str(picture(place, k)), "correct": k == 1, "reason": ""} for k in range(3)
    ]
    scores = tmp_path / "plain-1.scores.jsonl"
    scores.write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    with pytest.raises(UserError, match="nothing of picture 00002"):
        referee.judge(tasks, place)
    scores.write_text("".join(json.dumps(line) + "\n" for line in reversed(lines)))
    assert [verdict.right for verdict in referee.judge(tasks, place)] == [False, True, False]


def test_sets_of_prompts_are_distinct_and_of_all_sizes_from_the_start():
    tasks = Detector().tasks({"two objects": 30, "three objects": 30}, seed=5)
    assert len({task.prompt for task in tasks}) == 60
    first = [task.row for task in tasks[:10]]
    assert first.count("two objects") == first.count("three objects") == 5
    assert tasks == Detector().tasks({"two objects": 30, "three objects": 30}, seed=5)
    # Single objects come again, since there are but a few dozen.
    assert len(Detector().tasks({"one object": 90}, seed=5)) == 90


def test_rows_are_interleaved_at_an_even_pace():
    def rows(name, n):
        return [Task(name, f"{name}{k}", PAIR) for k in range(n)]

    order = "".join(task.row for task in in_turn([rows("a", 4), rows("b", 2)]))
    assert order == "abaaba" and len(order) == 6


class Counting(Arm):
    """An arm that counts what it is asked to paint."""

    asked: list = []

    def request(self, task, seed):
        self.asked.append((task.prompt, seed))
        return super().request(task, seed)


def test_what_is_painted_is_not_painted_again_unless_its_prompt_changed(tmp_path):
    studio = Studio(tiny_model("sd1"), tmp_path)
    arm = Counting("plain", run={"steps": 1})
    tasks = [Task("two objects", f"a {word}", PAIR) for word in ("cat", "dog", "car")]
    Counting.asked.clear()
    studio.paint([arm], tasks[:2], seed=7)
    studio.paint([arm], tasks, seed=7)
    assert [prompt for prompt, _ in Counting.asked] == ["a cat", "a dog", "a car"]
    assert [seed for _, seed in Counting.asked] == [7000, 7001, 7002]
    studio.paint([arm], [tasks[0], Task("two objects", "a fog", PAIR), tasks[2]], seed=7)
    assert [prompt for prompt, _ in Counting.asked][3:] == ["a fog"]
    metadata = json.loads((studio.place(arm, 7) / "00001" / "metadata.jsonl").read_text())
    assert metadata == as_asked(Task("two objects", "a fog", PAIR)).metadata
    assert not list(tmp_path.rglob("*.part"))


def test_arms_say_what_they_are_to_paint():
    task = Task("two objects", "a red circle and a blue square", PAIR)
    plain, weighted = Arm("plain").request(task, 1), Arm("compel", weight=1.3).request(task, 1)
    assert plain.prompt == task.prompt and not plain.edits
    assert weighted.prompt == "a (red circle)1.3 and a (blue square)1.3"
    assert weighted.syntax == "compel"
    zero = Arm("both", {"alpha": 0.3, "suppression": 1.0})
    (edit,) = zero.request(task, 1).edits
    assert edit.options.concepts == ["red circle", "blue square"] and edit.options.suppression == 1
    alone = Task("one object", "a red circle", Wanted((("red", "circle"),)))
    assert zero.request(alone, 1).edits[0].options.suppression == 0


def test_each_arm_has_a_place_of_its_own(tmp_path):
    studio = Studio(tiny_model("sd1"), tmp_path)
    arms = Arm("a"), Arm("a", weight=2.0), Arm("a", {"alpha": 0.1})
    assert len({studio.place(arm, seed) for arm in arms for seed in (1, 2)}) == 6


def test_search_keeps_the_better_and_merges_what_helped():
    from readings import Search

    gains = {"tau": 0.2, "gamma": 0.1, "heads": -0.3}

    class Judged(Search):
        """Likeness is known for each change, and all changes together add up."""

        def ranked(self, candidates, size):
            seen.append((size, len(candidates)))
            return sorted(candidates, key=lambda arm: -sum(gains.get(k, 0) for k in arm.zero))

    seen: list = []
    search = Judged(studio=None, referee=None, tasks=[], rounds=(2, 4, 8))
    best = search.best_reading(
        Arm("a", {"alpha": 0.3}), [{"tau": 0.5}, {"gamma": 2}, {"heads": "each"}]
    )
    assert best.zero == {"alpha": 0.3, "tau": 0.5, "gamma": 2}
    # Once all but the merged one, then five, the better two, and the two again.
    assert seen == [(2, 4), (2, 5), (4, 2), (8, 2)]
