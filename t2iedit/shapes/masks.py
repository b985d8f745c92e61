"""Binary masks: their connected parts, growing and shrinking, the way to them."""

import numpy as np
from scipy import ndimage

Array = np.ndarray
SQUARE = np.ones((3, 3), bool)


def labelled(mask: Array) -> tuple[Array, Array]:
    """The connected parts of a mask numbered from 1, and how many pixels bear each number."""
    labels = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, output=labels)
    return labels, np.bincount(labels.ravel())


def grown(mask: Array, pixels: int) -> Array:
    return np.asarray(ndimage.binary_dilation(mask, iterations=pixels))


def shrunk(mask: Array, pixels: int) -> Array:
    return np.asarray(ndimage.binary_erosion(mask, iterations=pixels))


def without_gaps(mask: Array) -> Array:
    """The mask with its one-pixel gaps closed."""
    return np.asarray(ndimage.binary_closing(mask, SQUARE))


def without_specks(mask: Array) -> Array:
    """The mask less what is thinner than three pixels."""
    return np.asarray(ndimage.binary_opening(mask, SQUARE))


def nearest_of(mask: Array) -> tuple[Array, Array]:
    """Each pixel's distance to the mask, and the row and column of the mask's nearest pixel."""
    distance, place = np.zeros(mask.shape), np.zeros((2, *mask.shape), np.int32)
    ndimage.distance_transform_edt(~mask, return_indices=True, distances=distance, indices=place)
    return distance, place
