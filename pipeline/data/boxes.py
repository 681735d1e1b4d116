"""The smallest box around what a mask holds."""

from __future__ import annotations

import numpy as np


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box that holds everything inside; one without voxels if nothing is.

    Args:
        mask: Boolean, any shape.
    """
    box = [slice(None)] * mask.ndim
    # The axis along which the memory is slowest comes first: what its ends cut off is one piece,
    # and the next axes have that much less to look at.
    for axis in np.argsort(mask.strides)[::-1]:
        others = tuple(other for other in range(mask.ndim) if other != axis)
        filled = np.flatnonzero(mask[tuple(box)].any(axis=others))
        box[axis] = slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0)
    return tuple(box)
