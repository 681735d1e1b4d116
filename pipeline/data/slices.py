"""Slices of a case as radiologists see them: in grey, with classes or errors in colour.

Pictures are arrays (rows, columns). The patient's left is on the right of axial and coronal ones;
the front is at the top of axial and on the left of sagittal ones; the head's top is at the top of
the other two.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from pipeline.data.boxes import bounding_box
from pipeline.data.colours import ERROR_COLOURS, colours_of

# Arrays whose axes run to the left, to the back and down are pictures once they are transposed.
TURNED = ("L", "P", "I")
# The axis that a plane cuts across.
AXIS_OF = {"axial": 2, "coronal": 1, "sagittal": 0}
# What is at the left, right, top and bottom of a picture.
SIDES = {
    "axial": ("R", "L", "A", "P"),
    "coronal": ("R", "L", "S", "I"),
    "sagittal": ("A", "P", "S", "I"),
}
# Of the brain's voxels: beyond these shares they are black and white.
QUANTILES = (0.01, 0.999)


@dataclass(frozen=True, eq=False)
class Scan:
    """What is drawn of a case, cut to what can be seen; axes run to the left, to the back and down.

    Attributes:
        grey: (X, Y, Z), uint8.
        prediction: (X, Y, Z), class indices.
        truth: The same; None if there is none.
        affine: (4, 4), from these voxels to RAS+ mm.
    """

    grey: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray | None
    affine: np.ndarray

    @classmethod
    def of(
        cls,
        image: np.ndarray,
        *,
        affine: np.ndarray,
        prediction: np.ndarray,
        truth: np.ndarray | None = None,
    ) -> Scan:
        """Turn and cut a case. Oblique grids are turned to the nearest axes, not resampled.

        Args:
            image: (X, Y, Z), any range and orientation; 0 and what is not finite lie outside.
            affine: (4, 4), voxel -> RAS+ mm.
            prediction: (X, Y, Z), class indices.
            truth: The same; None if there is none.

        Raises:
            ValueError: An array is not a volume of the same shape, or the affine not invertible.
        """
        masks = [prediction] if truth is None else [prediction, truth]
        shapes = [array.shape for array in (image, *masks)]
        if image.ndim != 3 or image.size == 0 or len(set(shapes)) > 1:
            raise ValueError(
                f"image and masks must be volumes of one shape (X, Y, Z), not {shapes}"
            )
        turn = ornt_transform(_orientation(affine), axcodes2ornt(TURNED))
        box = _box_of(image, masks)
        grey, *classes = (
            np.ascontiguousarray(apply_orientation(array, turn))
            for array in (grey_levels(image[box]), *(mask[box] for mask in masks))
        )
        start = np.eye(4)
        start[:3, 3] = [side.start for side in box]
        return cls(
            grey=grey,
            prediction=classes[0],
            truth=None if truth is None else classes[1],
            affine=affine @ start @ inv_ornt_aff(turn, image[box].shape),
        )

    @property
    def tumour(self) -> np.ndarray:
        """Where the prediction or the truth is not background, (X, Y, Z), boolean."""
        predicted = self.prediction > 0
        return predicted if self.truth is None else predicted | (self.truth > 0)

    def pixel_mm(self, plane: str) -> tuple[float, float]:
        """Return height and width of a pixel of a plane."""
        return picture_axes(tuple(map(float, voxel_sizes(self.affine))), plane)

    def size_mm(self, plane: str) -> tuple[float, float]:
        """Return height and width of a picture of a plane."""
        rows, columns = picture_axes(self.grey.shape, plane)
        row_mm, column_mm = self.pixel_mm(plane)
        return rows * row_mm, columns * column_mm


def picture_axes(values: tuple, plane: str) -> tuple:
    """Return of three values, one for each axis, those of a plane's rows and columns."""
    first, second = (value for axis, value in enumerate(values) if axis != AXIS_OF[plane])
    return second, first


def section(volume: np.ndarray, plane: str, index: int) -> np.ndarray:
    """Return slice `index` of a volume that was turned, as a picture (rows, columns)."""
    return volume.take(index, axis=AXIS_OF[plane]).T


def grey_levels(image: np.ndarray) -> np.ndarray:
    """Return the grey levels, uint8, of an image of any shape and range.

    They are spread between two quantiles of the voxels that are not 0. Zero is outside the brain
    and black, whatever the range, as is what is not finite; so is a constant image.
    """
    finite = np.isfinite(image)
    inside = finite & (image != 0)
    if not inside.any():
        return np.zeros(image.shape, np.uint8)
    low, high = map(float, np.quantile(image[inside], QUANTILES))
    if low == high:  # a brain of one value stands out against what is around it
        low = float(image[finite].min())
    scaled = (np.where(inside, image, low).clip(low, high) - low) / max(high - low, 1e-30)
    return np.where(inside, np.rint(255 * scaled), 0).astype(np.uint8)


def class_layer(classes: np.ndarray, *, opacity: float) -> np.ndarray:
    """Return the colours of class indices (..., 4), RGBA, uint8; background is transparent."""
    return _layer(colours_of(classes), classes > 0, opacity=opacity)


def error_layer(prediction: np.ndarray, truth: np.ndarray, *, opacity: float) -> np.ndarray:
    """Return colours (..., 4), RGBA, uint8, where one of two masks has a voxel the other has not.

    Args:
        prediction: Boolean, or class indices, of which all but 0 are inside.
        truth: The same.
        opacity: 0 to 1.
    """
    predicted, true = prediction > 0, truth > 0
    colours = np.where(true[..., None], ERROR_COLOURS["missed"], ERROR_COLOURS["false"])
    return _layer(colours, predicted != true, opacity=opacity)


def overlaid(grey: np.ndarray, *layers: np.ndarray) -> np.ndarray:
    """Return grey levels with layers of colour on them, (..., 3), uint8."""
    picture = np.repeat(grey[..., None], 3, axis=-1).astype(np.uint16)
    for layer in layers:
        alpha = layer[..., 3:].astype(np.uint16)
        picture = ((255 - alpha) * picture + alpha * layer[..., :3] + 127) // 255
    return picture.astype(np.uint8)


def focus_of(tumour: np.ndarray) -> tuple[int, int, int]:
    """Return along each axis the slice with most of the largest lesion, or the middle without one.

    Args:
        tumour: (X, Y, Z), boolean.
    """
    if not tumour.any():
        x, y, z = (size // 2 for size in tumour.shape)
        return x, y, z
    lesion = cc3d.largest_k(np.asfortranarray(tumour), k=1, connectivity=26) > 0
    x, y, z = (int(lesion.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1)))
    return x, y, z


def _layer(colours: np.ndarray, inside: np.ndarray, *, opacity: float) -> np.ndarray:
    layer = np.zeros((*inside.shape, 4), np.uint8)
    layer[inside, :3] = colours[inside]
    layer[inside, 3] = round(255 * opacity)
    return layer


def _orientation(affine: np.ndarray) -> np.ndarray:
    orientation = io_orientation(affine)
    if not np.isfinite(orientation).all():
        raise ValueError(f"the affine must be invertible, not {affine.tolist()}")
    return orientation


def _box_of(image: np.ndarray, masks: list[np.ndarray]) -> tuple[slice, ...]:
    """Return the box around all that can be seen; all of it if nothing can."""
    seen = np.isfinite(image) & (image != 0)
    for mask in masks:
        seen |= mask > 0
    if not seen.any():
        return tuple(slice(0, size) for size in image.shape)
    # With a voxel around it where there is one: smoothed pictures fade there.
    return tuple(slice(max(0, side.start - 1), side.stop + 1) for side in bounding_box(seen))
