"""The evaluation asks balanced prompts, counts rightly, and runs on any pipeline folder."""

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from t2iedit.errors import ModelNotUsable
from t2iedit.shapes.captions import RELATIONS
from t2iedit.shapes.detector import Detection, detect
from t2iedit.shapes.evaluate import Row, main, open_model, rows_of, sheet, table
from t2iedit.shapes.renderer import render
from t2iedit.shapes.scenes import BACKGROUNDS, HELD_OUT
from t2iedit.shapes.tasks import KNOWN, Task, drawn, make_tasks
from t2iedit.tiny import tiny_pipeline

ROWS = ("one object", "two objects", "three objects", "background", "held-out pair")


def tasks(n: int = 116) -> list[Task]:
    return make_tasks(n, Random(0))


def test_every_row_has_as_many_prompts() -> None:
    assert Counter(task.row for task in tasks()) == dict.fromkeys((*ROWS, "left of", "above"), 116)


def test_known_pairs_are_asked_equally_often() -> None:
    asked = Counter(t.wanted.objects[0] for t in tasks() if t.row == "one object")
    assert asked == dict.fromkeys(KNOWN, 2)


def test_backgrounds_are_asked_equally_often() -> None:
    asked = Counter(t.wanted.background for t in tasks() if t.row == "background")
    assert asked == dict.fromkeys(BACKGROUNDS, 29)


def test_only_the_held_out_row_asks_for_held_out_pairs() -> None:
    for task in tasks():
        assert HELD_OUT.isdisjoint(task.wanted.objects) is (task.row != "held-out pair")


def test_objects_of_a_prompt_share_neither_colour_nor_shape() -> None:
    for task in tasks():
        colors, shapes = zip(*task.wanted.objects, strict=True)
        assert len(set(colors)) == len(set(shapes)) == len(shapes)


def test_prompts_read_as_in_training() -> None:
    said = {task.row: task for task in tasks(4)}
    (color, shape), (other, second) = said["left of"].wanted.objects
    article = "an" if color[0] == "o" else "a"
    other_article = "an" if other[0] == "o" else "a"
    assert said["left of"].prompt == (
        f"{article} {color} {shape} left of {other_article} {other} {second}"
    )
    assert said["background"].prompt.endswith(
        f" on a {said['background'].wanted.background} background"
    )


def test_drawn_scene_does_what_its_task_asks() -> None:
    random = Random(1)
    for task in tasks(8):
        scene = drawn(task, random)
        assert tuple((i.color, i.shape) for i in scene.objects) == task.wanted.objects
        assert task.wanted.background in (None, scene.background)
        assert task.relation is None or RELATIONS[task.relation](*scene.objects) > 0


def test_perfect_pictures_score_full_marks() -> None:
    random = Random(2)
    seen = [(task, detect(render(drawn(task, random)))) for task in tasks(4)]
    for row in rows_of(seen):
        assert row.value == (0.0 if row.metric in ("dropped", "leaked") else 1.0), row


def test_empty_pictures_score_nothing() -> None:
    rows = rows_of([(task, Detection((), "unknown")) for task in tasks(4)])
    assert all(row.value == (row.metric == "dropped") for row in rows)


def test_table_sets_each_number_beside_its_ceiling() -> None:
    row = Row("one object", "right", 4, 0.5, 0.15, 0.85)
    top = Row("one object", "right ceiling", 4, 1.0, 0.51, 1.0)
    line = table([row], [top]).splitlines()[1]
    assert line.split() == [
        "one",
        "object",
        "right",
        "4",
        "50.0%",
        "15.0%-",
        "85.0%",
        "100.0%",
        "51.0%-100.0%",
    ]


def test_sheet_shows_every_picture_kept() -> None:
    task = tasks(1)[0]
    image = render(drawn(task, Random(3)))
    assert sheet([(task, detect(image))], {0: image}).getbbox() is not None


def test_evaluation_runs_on_a_pipeline_folder(tmp_path: Path) -> None:
    folder, output, page = tmp_path / "model", tmp_path / "results" / "o.json", tmp_path / "s.png"
    tiny_pipeline().save_pretrained(folder)
    (folder / "t2iedit.json").write_text('{"steps": 2, "guidance_scale": 1.0}')
    main(
        [
            "-m",
            str(folder),
            "--n",
            "1",
            "-o",
            str(output),
            "--sheet",
            str(page),
            "--scheduler",
            "euler_a",
        ]
    )
    rows = json.loads(output.read_text())
    assert set(rows[0]) == {"name", "metric", "n", "value", "low", "high"}
    assert [r["metric"] + " ceiling" for r in rows[: len(rows) // 2]] == [
        r["metric"] for r in rows[len(rows) // 2 :]
    ]
    assert page.stat().st_size > 0


def test_settings_come_from_the_folder(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    (tmp_path / "t2iedit.json").write_text('{"steps": 7}')
    assert open_model(str(tmp_path))[1] == {"steps": 7, "guidance_scale": 7.5}


def test_folder_without_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotUsable, match="model_index"):
        open_model(str(tmp_path))
