"""Validation pictures: orientation, slice, colours."""

from __future__ import annotations

import numpy as np

from pipeline.data.colours import CLASS_COLOURS
from pipeline.training.pictures import OPACITY, panel

SHAPE = (2, 3, 4)  # X, Y, Z


def empty() -> np.ndarray:
    return np.zeros(SHAPE, dtype=np.uint8)


def draw(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> list[np.ndarray]:
    """Return the three views (Y, X, 3)."""
    picture = panel(image, truth=truth, prediction=prediction)
    assert picture.dtype == np.uint8
    assert picture.shape == (SHAPE[1], 3 * SHAPE[0], 3)
    return np.split(picture, 3, axis=1)


def test_rows_are_y_and_columns_are_x() -> None:
    image = np.zeros(SHAPE, dtype=np.float32)
    image[1, 2, 2] = 1.0  # left and posterior, in the middle slice
    views = draw(image, empty(), empty())
    expected = np.zeros((3, 2, 3), dtype=np.uint8)
    expected[2, 1] = 255  # so it lies at the lower right
    for view in views:
        assert np.array_equal(view, expected)


def test_the_slice_with_most_tumour_is_shown() -> None:
    truth = empty()
    truth[0, 0, 1] = truth[0, 0, 3] = truth[1, 0, 3] = 2
    image = np.broadcast_to(np.arange(4, dtype=np.float32), SHAPE)
    # Its brightest slice is the last one.
    assert (draw(image, truth, empty())[0] == 255).all()


def test_without_true_tumour_the_prediction_chooses_the_slice() -> None:
    prediction = empty()
    prediction[0, 0, 0] = 1
    image = np.broadcast_to(np.arange(4, dtype=np.float32), SHAPE)
    assert (draw(image, empty(), prediction)[0] == 0).all()


def test_truth_and_prediction_are_coloured_each_in_its_view() -> None:
    truth, prediction = empty(), empty()
    truth[0, 1, 2] = 1
    prediction[1, 2, 2] = 3
    image, truth_view, prediction_view = draw(np.zeros(SHAPE, dtype=np.float32), truth, prediction)
    assert not image.any()
    for view, place, index in ((truth_view, (1, 0), 1), (prediction_view, (2, 1), 3)):
        expected = np.zeros_like(view)
        expected[place] = np.rint(OPACITY * CLASS_COLOURS[index])
        assert np.array_equal(view, expected)


def test_the_image_shines_through() -> None:
    truth = empty()
    truth[0, 0, 0] = 1
    image = np.zeros(SHAPE, dtype=np.float32)
    image[0, 0, 0] = 1.0
    # 0.4 of white and 0.6 of (0, 114, 178).
    assert draw(image, truth, empty())[1][0, 0].tolist() == [102, 170, 209]


def test_classes_beyond_the_colours_share_the_last() -> None:
    truth = np.full(SHAPE, 9, dtype=np.int64)
    view = draw(np.zeros(SHAPE, dtype=np.float32), truth, empty())[1]
    assert np.array_equal(view[0, 0], np.rint(OPACITY * CLASS_COLOURS[-1]))


def test_a_constant_image_is_black_and_raises_no_warning() -> None:
    assert not draw(np.full(SHAPE, 7.0, dtype=np.float32), empty(), empty())[0].any()


def test_the_inputs_are_not_changed() -> None:
    arrays = [np.ones(SHAPE, dtype=np.float32), empty() + 1, empty() + 2]
    copies = [array.copy() for array in arrays]
    panel(arrays[0], truth=arrays[1], prediction=arrays[2])
    for array, copy in zip(arrays, copies, strict=True):
        assert np.array_equal(array, copy)
