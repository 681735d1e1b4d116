"""What the scores of two masks ask of them: boolean, and of the same shape."""

from __future__ import annotations

import numpy as np


def require_masks(prediction: np.ndarray, reference: np.ndarray) -> None:
    """Refuse arrays that are not two boolean masks of one shape.

    Class indices in the place of a mask would be compared bit by bit: 1 and 2 share none.

    Raises:
        ValueError: One of them is not boolean, or their shapes differ.
    """
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if mask.dtype != np.bool_:
            raise ValueError(
                f"{name} must be a boolean mask, not {mask.dtype}: "
                "compare the classes with those of a region first"
            )
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction {prediction.shape} and reference {reference.shape} "
            "must have the same shape"
        )
