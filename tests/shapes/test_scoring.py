"""Scores of hand-made detections."""

import pytest

from t2iedit.shapes.detector import UNKNOWN, Detected, Detection
from t2iedit.shapes.scoring import Score, Wanted, score, wilson

RED_CIRCLE, BLUE_SQUARE, GREEN_STAR = ("red", "circle"), ("blue", "square"), ("green", "star")
TWO = Wanted((RED_CIRCLE, BLUE_SQUARE))


def shown(*pairs: tuple[str, str], background: str = "white") -> Detection:
    objects = (Detected(s, c, "plain", 0.5, 0.5, 0.2, 0.9) for c, s in pairs)
    return Detection(tuple(objects), background)


def test_wanted_objects_in_any_order_are_right() -> None:
    result = score(shown(BLUE_SQUARE, RED_CIRCLE), TWO)
    assert result == Score(
        right=True,
        present=2,
        dropped=0,
        leaked=0,
        shapes_right=True,
        colors_right=True,
        background_right=None,
    )


def test_missing_object_is_dropped() -> None:
    result = score(shown(RED_CIRCLE), TWO)
    assert (result.right, result.present, result.dropped, result.leaked) == (False, 1, 1, 0)
    assert not result.shapes_right and not result.colors_right


def test_empty_picture_drops_everything() -> None:
    result = score(shown(), TWO)
    assert (result.right, result.present, result.dropped) == (False, 0, 2)


def test_swapped_colours_are_two_leaks_and_no_drop() -> None:
    result = score(shown(("blue", "circle"), ("red", "square")), TWO)
    assert (result.right, result.present, result.dropped, result.leaked) == (False, 0, 0, 2)
    assert result.shapes_right and result.colors_right


def test_one_colour_over_both_is_one_leak() -> None:
    result = score(shown(RED_CIRCLE, ("red", "square")), TWO)
    assert (result.present, result.dropped, result.leaked) == (1, 0, 1)
    assert result.shapes_right and not result.colors_right


def test_foreign_colour_is_no_leak() -> None:
    result = score(shown(RED_CIRCLE, ("green", "square")), TWO)
    assert (result.present, result.dropped, result.leaked) == (1, 0, 0)


def test_unwanted_shape_in_a_wanted_colour_is_no_leak() -> None:
    result = score(shown(RED_CIRCLE, ("blue", "heart")), TWO)
    assert (result.present, result.dropped, result.leaked) == (1, 1, 0)
    assert result.colors_right and not result.shapes_right


def test_doubled_object_counts_once_and_is_not_right() -> None:
    result = score(shown(RED_CIRCLE, RED_CIRCLE), TWO)
    assert (result.right, result.present, result.dropped, result.leaked) == (False, 1, 1, 0)


def test_extra_leaking_double_is_a_leak() -> None:
    result = score(shown(RED_CIRCLE, BLUE_SQUARE, ("blue", "circle")), TWO)
    assert (result.right, result.present, result.dropped, result.leaked) == (False, 2, 0, 1)


def test_two_of_a_kind_need_two() -> None:
    twins = Wanted((RED_CIRCLE, RED_CIRCLE))
    assert score(shown(RED_CIRCLE, RED_CIRCLE), twins).right
    single = score(shown(RED_CIRCLE), twins)
    assert (single.right, single.present, single.dropped) == (False, 1, 1)


def test_same_shape_in_two_wanted_colours_is_no_leak() -> None:
    wanted = Wanted((RED_CIRCLE, ("blue", "circle"), GREEN_STAR))
    result = score(shown(RED_CIRCLE, RED_CIRCLE, ("green", "circle")), wanted)
    assert (result.present, result.dropped, result.leaked) == (1, 1, 1)


@pytest.mark.parametrize("extra", [(UNKNOWN, UNKNOWN), ("red", UNKNOWN), (UNKNOWN, "circle")])
def test_unknown_object_is_never_right(extra: tuple[str, str]) -> None:
    result = score(shown(RED_CIRCLE, BLUE_SQUARE, extra), TWO)
    assert (result.right, result.present, result.leaked) == (False, 2, 0)


def test_unknown_colour_still_shows_the_shape() -> None:
    result = score(shown((UNKNOWN, "circle"), BLUE_SQUARE), TWO)
    assert (result.present, result.dropped, result.leaked) == (1, 0, 0)
    assert result.shapes_right and not result.colors_right


@pytest.mark.parametrize(("ground", "expected"), [("black", True), ("white", False)])
def test_background_is_judged_apart(ground: str, expected: bool) -> None:
    result = score(shown(RED_CIRCLE, background=ground), Wanted((RED_CIRCLE,), "black"))
    assert (result.right, result.background_right) == (True, expected)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson_interval_matches_published_values(
    successes: int, n: int, low: float, high: float
) -> None:
    """The last case is Newcombe's (1998, table I)."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_without_trials_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
