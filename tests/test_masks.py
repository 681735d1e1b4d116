"""What the scores of two masks refuse."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.masks import require_masks

MASK = np.zeros((2, 3, 4), dtype=bool)


def test_two_masks_of_one_shape_pass() -> None:
    require_masks(MASK, MASK)


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (MASK.astype(np.uint8), MASK, "prediction must be a boolean mask, not uint8"),
        (MASK, MASK.astype(np.float32), "reference must be a boolean mask, not float32"),
        (MASK, MASK[:1], r"\(2, 3, 4\) and reference \(1, 3, 4\) must have the same shape"),
    ],
)
def test_others_are_refused(prediction: np.ndarray, reference: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_masks(prediction, reference)
