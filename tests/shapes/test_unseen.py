"""Shapes, textures and styles that the bundled model never saw."""

import numpy as np
import pytest

from t2iedit.shapes import unseen
from t2iedit.shapes.detector import UNKNOWN, detect
from t2iedit.shapes.renderer import render, render_array
from t2iedit.shapes.scenes import SHAPES, TEXTURES, Scene, SceneObject

NEW = (*unseen.SHAPES, *unseen.POLYGONS)


def drawn(shape, texture="plain"):
    return Scene((SceneObject(shape, "red", texture, radius=0.3),), "white")


def test_nothing_unseen_is_in_the_world():
    assert not set(NEW) & set(SHAPES) and not set(unseen.TEXTURES) & set(TEXTURES)


@pytest.mark.parametrize("shape", NEW)
def test_an_unseen_shape_is_found_when_it_is_looked_for(shape):
    image = render(drawn(shape))
    assert [(o.color, o.shape) for o in detect(image, NEW).objects] == [("red", shape)]
    assert [o.shape for o in detect(image).objects] == [UNKNOWN]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_worlds_shapes_are_not_taken_for_unseen_ones(shape):
    assert [o.shape for o in detect(render(drawn(shape)), NEW).objects] == [shape]


@pytest.mark.parametrize("texture", sorted(unseen.TEXTURES))
def test_an_unseen_texture_darkens_about_half_of_an_object(texture):
    plain, textured = (
        render_array(drawn("circle", t), 128).astype(int) for t in ("plain", texture)
    )
    darker = (textured < plain - 40).any(-1).sum() / (plain != plain[0, 0]).any(-1).sum()
    assert 0.25 < darker < 0.75


@pytest.mark.parametrize("style", sorted(unseen.STYLES))
def test_a_style_changes_the_picture_and_keeps_its_form(style):
    picture = render_array(drawn("star"), 128)
    styled = unseen.STYLES[style](picture)
    assert styled.shape == picture.shape and styled.dtype == np.uint8
    assert (styled != picture).any() and picture[0, 0, 0] == 245
