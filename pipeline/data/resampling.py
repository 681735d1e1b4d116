"""Bringing an image onto the grid of another one, through the world coordinates of both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy.ndimage import affine_transform

# Along an axis of the image, grids that differ by whole voxels up to this are taken for exact, so
# that the last digits of two headers neither blur an image nor cut off its border.
SNAP_VOXELS = 1e-3


def resample_to(
    volume: np.ndarray,
    *,
    affine: np.ndarray,
    target_shape: Sequence[int],
    target_affine: np.ndarray,
) -> np.ndarray:
    """Return `volume` (X, Y, Z) on another grid, as float32: linear inside, 0 outside.

    Both affines (4, 4) map voxel indices to RAS mm. A point belongs to the volume up to the outer
    faces of its border voxels, half a voxel beyond their centres, where it has their value, as in
    ITK. Where the grids coincide or differ by whole voxels, flips or a permutation of the axes, the
    values are copied exactly. Nothing smooths an image that goes to a coarser grid.
    """
    to_source = _snapped(np.linalg.inv(affine) @ target_affine, target_shape)
    resampled = affine_transform(
        volume.astype(np.float32, copy=False),
        to_source[:3, :3],
        offset=to_source[:3, 3],
        output_shape=tuple(target_shape),
        output=np.float32,
        order=1,
        mode="nearest",
    )
    resampled[~_inside(to_source, volume.shape, target_shape)] = 0
    return resampled


def _snapped(matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return `matrix` with each row in whole numbers if no voxel of `shape` moves visibly by it."""
    whole = np.round(matrix)
    # The largest shift of a linear map over a box is at one of its corners.
    corners = np.array([(*corner, 1) for corner in product(*((0, size - 1) for size in shape))])
    shifts = np.max(np.abs((matrix - whole) @ corners.T), axis=1, keepdims=True)
    return np.where(shifts <= SNAP_VOXELS, whole, matrix)


def _inside(
    matrix: np.ndarray, source_shape: Sequence[int], target_shape: Sequence[int]
) -> np.ndarray:
    """Return the mask (X, Y, Z) of the target voxels whose centres lie within the source."""
    x, y, z = np.ogrid[tuple(slice(size) for size in target_shape)]
    inside = np.ones(tuple(target_shape), dtype=bool)
    for (along_x, along_y, along_z, start), size in zip(matrix[:3], source_shape, strict=True):
        index = along_x * x + along_y * y + along_z * z + start
        inside &= (index >= -0.5 - SNAP_VOXELS) & (index <= size - 0.5 + SNAP_VOXELS)
    return inside
