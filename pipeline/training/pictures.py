"""Validation pictures: a slice of the image, beside it with the truth and the prediction on it."""

from __future__ import annotations

import numpy as np

from pipeline.data.slices import class_layer, grey_levels, overlaid, section

OPACITY = 0.6


def panel(image: np.ndarray, *, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Return image, truth and prediction side by side, (Y, 3 X, 3) uint8.

    The axial slice is the one with most tumour (of the prediction where the truth has none). It is
    shown as radiologists see it: anterior up, the patient's left on the right.

    Args:
        image: (X, Y, Z), any range; its axes run to the left and to the back, as the pipeline's do.
        truth: (X, Y, Z), class indices.
        prediction: (X, Y, Z), class indices.
    """
    tumour = truth if truth.any() else prediction
    z = int((tumour > 0).sum(axis=(0, 1)).argmax()) if tumour.any() else image.shape[2] // 2
    grey = section(grey_levels(image), "axial", z)
    layers = [
        class_layer(section(mask, "axial", z), opacity=OPACITY) for mask in (truth, prediction)
    ]
    return np.concatenate([overlaid(grey), *(overlaid(grey, layer) for layer in layers)], axis=1)
