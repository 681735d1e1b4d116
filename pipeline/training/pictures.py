"""Validation pictures: a slice of the image, beside it with the truth and the prediction on it."""

from __future__ import annotations

import numpy as np

from pipeline.data.colours import colours_of

OPACITY = 0.6


def panel(image: np.ndarray, *, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Return image, truth and prediction side by side, (Y, 3 X, 3) uint8.

    The axial slice is the one with most tumour (of the prediction where the truth has none). It is
    shown as radiologists see it: anterior up, the patient's left on the right.

    Args:
        image: (X, Y, Z), any range.
        truth: (X, Y, Z), class indices.
        prediction: (X, Y, Z), class indices.
    """
    grey = _to_grey(image)
    tumour = truth if truth.any() else prediction
    z = int((tumour > 0).sum(axis=(0, 1)).argmax()) if tumour.any() else image.shape[2] // 2
    views = [
        grey[:, :, z],
        _overlay(grey[:, :, z], truth[:, :, z]),
        _overlay(grey[:, :, z], prediction[:, :, z]),
    ]
    # Arrays run to the left and to the back: transposed, rows go down to the back.
    return np.concatenate([view.transpose(1, 0, 2) for view in views], axis=1)


def _to_grey(image: np.ndarray) -> np.ndarray:
    low, high = np.quantile(image, (0.01, 0.999))
    scaled = np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255
    return np.repeat(scaled.astype(np.uint8)[..., None], 3, axis=-1)


def _overlay(grey: np.ndarray, classes: np.ndarray) -> np.ndarray:
    inside = classes > 0
    coloured = grey.astype(np.float32)
    coloured[inside] = (1 - OPACITY) * coloured[inside] + OPACITY * colours_of(classes)[inside]
    return coloured.astype(np.uint8)
