"""How far a network's confidence is from the share of voxels in which it is right.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2.
"""

from __future__ import annotations

import numpy as np

# Voxels looked at in one go: a few arrays of 2 MB, whatever the size of the volume.
_SLAB_VOXELS = 2**18
# Probabilities of half precision miss a sum of 1 by less than this.
_ROUNDING = 1e-3


def expected_calibration_error(
    probabilities: np.ndarray,
    reference: np.ndarray,
    *,
    num_bins: int = 15,
    mask: np.ndarray | None = None,
) -> float:
    """Return the top-label expected calibration error (ECE), 0 (calibrated) to 1.

    It is the mean over all voxels of |share of right predictions - mean confidence| of a voxel's
    bin. Arguments and errors are those of `calibration_bins`; the mask must hold a voxel.
    """
    bins = calibration_bins(probabilities, reference, num_bins=num_bins, mask=mask)
    num_voxels, confidence, right = bins.T
    if num_voxels.sum() == 0:
        raise ValueError("no voxel to take the calibration error of: the mask is empty")
    return float(np.abs(right - confidence).sum() / num_voxels.sum())


def calibration_bins(
    probabilities: np.ndarray,
    reference: np.ndarray,
    *,
    num_bins: int = 15,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Return of each bin its voxels, the sum of their confidences, and how many are right.

    A voxel's confidence is its largest probability, its prediction the class that has it (the first
    of several). The voxels go into `num_bins` bins of equal width by confidence; bin m of M holds
    (m - 1)/M < confidence <= m/M, the first one 0 as well and the last one what rounding lifted
    above 1. The edges m/M and the sums, (num_bins, 3), are float64.

    Args:
        probabilities: (C, X, Y, Z), floating point, summing to 1 over C.
        reference: (X, Y, Z), class indices 0 to C - 1.
        num_bins: The number of bins; Guo et al. use 15.
        mask: (X, Y, Z), boolean; only its voxels count. Without it all voxels do, and a brain's
            easy background outweighs its tumour.

    Raises:
        ValueError: The shapes do not fit, `mask` is not boolean, `num_bins` is not positive, a
            class index is not one of the channels, or a confidence cannot be a probability (logits,
            not a number).
    """
    _require_fitting(probabilities, reference, num_bins=num_bins, mask=mask)
    bins = np.zeros((num_bins, 3))
    slab_size = max(1, _SLAB_VOXELS // max(1, reference[:1].size))
    for start in range(0, len(reference), slab_size):
        slab = slice(start, start + slab_size)
        chosen = np.s_[:] if mask is None else mask[slab]
        scores = probabilities[:, slab][:, chosen].reshape(len(probabilities), -1)
        classes = reference[slab][chosen].reshape(-1)
        if classes.size:
            bins += _bins_of(scores, classes, num_bins=num_bins)
    return bins


def _bins_of(scores: np.ndarray, classes: np.ndarray, *, num_bins: int) -> np.ndarray:
    """Return what `calibration_bins` does, of scores (C, N) and classes (N,)."""
    confidence = scores.max(axis=0).astype(np.float64)
    _require_probabilities(confidence, num_classes=len(scores))
    if classes.min() < 0 or classes.max() >= len(scores):
        raise ValueError(
            f"class indices must lie in 0 to {len(scores) - 1}, one for each channel; "
            f"found {classes.min()} to {classes.max()}"
        )
    right = scores.argmax(axis=0) == classes
    # side="left": a confidence on an edge belongs to the bin below it.
    bins = np.searchsorted(np.arange(1, num_bins) / num_bins, confidence, side="left")
    sums = (np.bincount(bins, weights, num_bins) for weights in (None, confidence, right))
    return np.stack(list(sums), axis=1)


def _require_probabilities(confidence: np.ndarray, *, num_classes: int) -> None:
    """Refuse a largest of C probabilities outside 1/C to 1; not a number is outside too."""
    low, high = float(confidence.min()), float(confidence.max())
    if not (1 / num_classes - _ROUNDING <= low and high <= 1 + _ROUNDING):
        raise ValueError(
            f"the largest of {num_classes} probabilities lies in 1/{num_classes} to 1; "
            f"found {low:g} to {high:g}: apply softmax first"
        )


def _require_fitting(
    probabilities: np.ndarray,
    reference: np.ndarray,
    *,
    num_bins: int,
    mask: np.ndarray | None,
) -> None:
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, not {num_bins}")
    if probabilities.ndim != 4 or probabilities.shape[1:] != reference.shape:
        raise ValueError(
            f"probabilities must be (C, X, Y, Z) and reference (X, Y, Z), on one grid; "
            f"found {probabilities.shape} and {reference.shape}"
        )
    if mask is not None and (mask.dtype != np.bool_ or mask.shape != reference.shape):
        raise ValueError(
            f"mask must be boolean and {reference.shape} like the reference, "
            f"not {mask.dtype} and {mask.shape}"
        )
