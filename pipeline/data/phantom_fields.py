"""The grid on which a phantom is made, its random fields, and depths inside simple bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

Field = npt.NDArray[np.float32]
Real = npt.NDArray[np.floating[Any]]  # what mypy knows of a Field after arithmetic

# Fields are drawn on a cube around the head's centre, so that a case looks much the same whatever
# the voxels that sample it.
CUBE_MM = 224.0
BAND_STEP_MM = 2.8
# Standard deviation of unit white noise under a separable cubic B-spline, averaged over position.
SPLINE_STD = (151.0 / 315.0) ** 1.5


@dataclass(frozen=True)
class Grid:
    """Voxel centres along X (to the left), Y (to the back) and Z (up), in mm of the head.

    The head's millimetres are the world's, unless the head was scaled down to fit its box.
    """

    axes_mm: tuple[Field, Field, Field]
    voxel_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the number of voxels along X, Y and Z."""
        x, y, z = self.axes_mm
        return (x.size, y.size, z.size)

    def points(self) -> Field:
        """Return the voxel centres as (3, X, Y, Z)."""
        return np.stack(np.meshgrid(*self.axes_mm, indexing="ij"))


def smooth_noise(rng: np.random.Generator, grid: Grid, *, wavelength_mm: float) -> Field:
    """Return low-pass noise, (X, Y, Z), of mean 0 and standard deviation 1.

    White noise on a lattice of two knots a wavelength, interpolated by cubic B-splines. Plain sums
    and not matrix products: those round differently with the number of threads.
    """
    step_mm = wavelength_mm / 2
    num_knots = int(np.ceil(CUBE_MM / step_mm)) + 4
    values = rng.standard_normal((num_knots,) * 3, dtype=np.float32) / np.float32(SPLINE_STD)
    for axis, axis_mm in enumerate(grid.axes_mm):
        values = _interpolate(values, (axis_mm + CUBE_MM / 2) / step_mm + 1, axis)
    return values


def _interpolate(values: Field, position: Field, axis: int) -> Field:
    """Evaluate the cubic B-spline with coefficients `values` at `position` knots along `axis`."""
    first = np.clip(np.floor(position), 1, values.shape[axis] - 3)
    at = np.clip(position - first, 0, 1)
    weights = (
        (1 - at) ** 3 / 6,
        2 / 3 - at**2 + at**3 / 2,
        1 / 6 + (at + at**2 - at**3) / 2,
        at**3 / 6,
    )
    across = tuple(-1 if i == axis else 1 for i in range(values.ndim))
    shape = tuple(position.size if i == axis else n for i, n in enumerate(values.shape))
    result = np.zeros(shape, np.float32)
    for number, weight in enumerate(weights):
        knots = first.astype(np.intp) - 1 + number
        result += np.take(values, knots, axis=axis) * weight.astype(np.float32).reshape(across)
    return result


def band_noise(rng: np.random.Generator, points: Field, *, wavelength_mm: float) -> Field:
    """Return noise of one wavelength at `points`, (3, ...) -> (...), standard deviation 1.

    White noise passes a ring in the spectrum; its zero level is a labyrinth of sheets about half a
    wavelength apart, like the pattern of gyri.
    """
    size = round(CUBE_MM / BAND_STEP_MM)
    spectrum = fft.rfftn(rng.standard_normal((size,) * 3, dtype=np.float32))
    across = fft.fftfreq(size, BAND_STEP_MM)
    along = fft.rfftfreq(size, BAND_STEP_MM)
    frequency = np.sqrt(
        across[:, None, None] ** 2 + across[None, :, None] ** 2 + along[None, None, :] ** 2
    )
    ring = np.exp(-0.5 * ((frequency * wavelength_mm - 1) / 0.2) ** 2)
    noise = fft.irfftn(spectrum * ring.astype(np.float32), s=(size,) * 3)
    noise /= noise.std()
    index = (points + np.float32(CUBE_MM / 2)) / np.float32(BAND_STEP_MM)
    return ndimage.map_coordinates(noise, index, order=1, mode="grid-wrap", output=np.float32)


def sheet_distance(noise: Field, *, voxel_mm: float) -> Field:
    """Return the distance in mm from the zero level of `noise`, to first order."""
    slope = np.zeros_like(noise)
    for axis in range(noise.ndim):
        slope += np.gradient(noise, voxel_mm, axis=axis) ** 2
    # At saddles the slope vanishes; the floor keeps junctions of sheets from growing into blobs.
    return np.abs(noise) / np.sqrt(slope + np.float32(0.25) * np.mean(slope))


def occupancy(depth_mm: Real, *, voxel_mm: float) -> Field:
    """Return the share (0..1) of a voxel that lies inside a surface `depth_mm` outside its centre.

    Exact for a plane across the voxel: the partial volume at an edge.
    """
    return np.clip(depth_mm / np.float32(voxel_mm) + np.float32(0.5), 0, 1).astype(
        np.float32, copy=False
    )


def coarse(fine: Field, *, factor: int) -> Field:
    """Return the means of blocks of `factor` voxels along each axis, (X, Y, Z) / factor."""
    if factor == 1:
        return fine
    x, y, z = (size // factor for size in fine.shape)
    return fine.reshape(x, factor, y, factor, z, factor).mean(axis=(1, 3, 5))


def smooth_union(first: Field, second: Field, *, radius_mm: float) -> Field:
    """Return the depth inside either of two bodies, their seam rounded over `radius_mm`."""
    seam = np.clip(radius_mm - np.abs(first - second), 0, None) / np.float32(radius_mm)
    return np.maximum(first, second) + seam**2 * np.float32(radius_mm / 4)


def ellipsoid_depth(
    points: Sequence[Field] | Field, centre_mm: Sequence[float], radii_mm: Sequence[float]
) -> Field:
    """Return the depth in mm inside an ellipsoid (negative outside), exact to first order."""
    shape = np.shape(points[0])
    level, slope = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for axis_points, centre, radius in zip(points, centre_mm, radii_mm, strict=True):
        scaled = (axis_points - np.float32(centre)) / np.float32(radius)
        level += scaled**2
        slope += (scaled / np.float32(radius)) ** 2
    level = np.sqrt(level)
    return (1 - level) * level / (np.sqrt(slope) + np.float32(1e-6))


def tube_depth(points: Sequence[Field] | Field, knots: Sequence[Sequence[float]]) -> Field:
    """Return the depth in mm inside a bent tube through `knots`, each (x, y, z, radius) in mm."""
    depth = np.full(np.shape(points[0]), -np.inf, np.float32)
    for start, end in pairwise(knots):
        way = [np.float32(to - of) for of, to in zip(start[:3], end[:3], strict=True)]
        offsets = [
            axis_points - np.float32(of) for axis_points, of in zip(points, start[:3], strict=True)
        ]
        length_squared = way[0] ** 2 + way[1] ** 2 + way[2] ** 2
        along = offsets[0] * way[0] + offsets[1] * way[1] + offsets[2] * way[2]
        along = np.clip(along / length_squared, 0, 1)
        square = np.zeros_like(along)
        for offset, step in zip(offsets, way, strict=True):
            square += (offset - along * step) ** 2
        radius = np.float32(start[3]) + along * np.float32(end[3] - start[3])
        depth = np.maximum(depth, radius - np.sqrt(square))
    return depth
