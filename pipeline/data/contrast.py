"""Whether the T1 of a case looks like its contrast-enhanced T1, and the reverse."""

from __future__ import annotations

import numpy as np

from pipeline.data.boxes import bounding_box

TAIL_PERCENTILE = 99.9
MIN_VOXELS = 20_000  # so that twenty voxels at least lie beyond the percentile
MARGIN = 1.3  # what the tails must differ by before a word is said


def tail_ratio(t1: np.ndarray, t1ce: np.ndarray) -> float | None:
    """Return how long the bright tail of `t1ce` is, relative to that of `t1`; None if unknown.

    Contrast agent adds a few very bright voxels (vessels, choroid plexus, enhancing tumour). So in
    the inner half of the brain's box along each axis, away from fat and from what skull stripping
    left, the tail is (99.9th percentile - median) / interquartile range, which does not change with
    the scale of the intensities. Both images are (X, Y, Z) on one grid, with 0 outside the head.
    Exchanging them inverts the ratio. It is 1.41 to 6.98 on 19 cases of BraTS 2021, whether they
    enhance or not, and near 1 where a phantom has no vessel in this part.
    """
    is_head = (t1 != 0) & (t1ce != 0)
    if not is_head.any():
        return None
    inner = tuple(map(_middle_half, bounding_box(is_head)))
    inside = is_head[inner] & np.isfinite(t1[inner]) & np.isfinite(t1ce[inner])
    if np.count_nonzero(inside) < MIN_VOXELS:
        return None
    before, after = (_tail(image[inner][inside]) for image in (t1, t1ce))
    return after / before if before and after else None


def _middle_half(side: slice) -> slice:
    quarter = (side.stop - side.start) // 4
    return slice(side.start + quarter, side.stop - quarter)


def _tail(values: np.ndarray) -> float:
    """Return the length of the bright tail in interquartile ranges; 0 where there is no range."""
    low, middle, high, top = np.percentile(values, (25, 50, 75, TAIL_PERCENTILE))
    return float((top - middle) / (high - low)) if high > low else 0.0
