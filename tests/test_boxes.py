"""The box around a mask, against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pipeline.data.boxes import bounding_box


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("seed", range(20))
def test_the_box_is_scipy_s_whatever_the_order_in_memory(seed: int, order: tuple[int, ...]) -> None:
    random = np.random.default_rng(seed)
    mask = (random.random((7, 8, 9)) < 0.01).transpose(order)[::-1]
    boxes = ndimage.find_objects(mask.view(np.uint8)) or [(slice(0),) * 3]
    assert bounding_box(mask) == boxes[0]
    assert mask[bounding_box(mask)].sum() == mask.sum()


@pytest.mark.parametrize("value", [True, False])
def test_the_box_of_everything_and_of_nothing(value: bool) -> None:
    box = bounding_box(np.full((2, 3, 4), value))
    assert box == ((slice(0, 2), slice(0, 3), slice(0, 4)) if value else (slice(0),) * 3)
