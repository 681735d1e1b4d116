"""Distances between the surfaces of two masks: HD95 and the average surface distance, in mm.

The definition is that of DeepMind's `surface-distance` (Nikolov et al. 2021, "Clinically applicable
segmentation of head and neck anatomy for radiotherapy", doi:10.2196/26151), which the official
BraTS metrics use. The surface passes between the voxels; its elements lie at the centres of 2x2x2
neighbourhoods and are weighted by their area (`pipeline.evaluation.surface_elements`). The distance
of an element is the distance to the nearest element of the other surface.

The rule for empty masks is that of `pipeline.evaluation`: both empty, 0 mm; one, `MISSED_MM`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from pipeline.data.boxes import bounding_box
from pipeline.evaluation.masks import require_masks
from pipeline.evaluation.surface_elements import element_areas_mm2, element_codes, is_element

MISSED_MM = 373.13
"""The distance in mm of a mask from an empty one, which has no surface.

It is the diagonal of the grid of BraTS, 240 x 240 x 155 voxels of 1 mm: sqrt(139225) = 373.13 mm,
the largest distance that two voxels of that grid can have. It stays the same on other grids, so
that means over different datasets penalise a missed region alike.
"""

_ROUNDING = 1e-9  # far above the rounding of a sum of areas, far below one element's share
# What follows decides only how long a search takes. Measured on whole tumours of real cases.
_NEAR_VOXELS = 3.0  # how far every element looks around, in voxels of the same volume
_VOXELS_PER_QUERY = 100  # transforming so many voxels takes as long as a tree does for one element

_Mask = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.intp]
_Spacing = Sequence[float] | _Floats


@dataclass(frozen=True)
class SurfaceScores:
    """The distances of two surfaces in mm, >= 0.

    Attributes:
        hd95_mm: The smallest distance within which at least 95 % of a surface's area lies from the
            other surface; the larger of the two directions (the robust Hausdorff distance).
        average_surface_distance_mm: The mean distance over the area of both surfaces together.
            Each direction's own mean counts with its surface's area: with the means m, n of two
            surfaces of area A, B it is (m A + n B) / (A + B).
    """

    hd95_mm: float
    average_surface_distance_mm: float


@dataclass(frozen=True)
class _Distances:
    """From one surface to the other, where they differ: in the common elements they are 0."""

    distances_mm: _Floats
    areas_mm2: _Floats
    total_area_mm2: float  # of the whole surface, the common elements included

    def percentile_mm(self, percent: float) -> float:
        """Return the smallest distance within which `percent` of the area lies."""
        order = np.argsort(self.distances_mm)
        distances = np.concatenate(([0.0], self.distances_mm[order]))
        common = self.total_area_mm2 - self.areas_mm2.sum()
        within = common + np.concatenate(([0.0], np.cumsum(self.areas_mm2[order])))
        # Where exactly this share lies within a distance, the rounding of a sum must not decide
        # (in `surface-distance` it does, and the next distance may win).
        wanted = self.total_area_mm2 * (percent / 100.0 - _ROUNDING)
        return float(distances[np.searchsorted(within, wanted)])


def surface_scores(prediction: _Mask, reference: _Mask, *, spacing_mm: _Spacing) -> SurfaceScores:
    """Return HD95 and the average surface distance of two masks.

    Outside the volume nothing is inside: cropping both masks alike changes nothing as long as no
    inside is lost. Prediction and reference may be exchanged.

    Args:
        prediction: Boolean, (X, Y, Z).
        reference: Boolean, the same shape.
        spacing_mm: The distances of voxel centres along X, Y, Z in mm, > 0.

    Raises:
        ValueError: The masks are not boolean, not 3D or differ in shape, or the spacing is not
            three finite numbers > 0.
    """
    require_masks(prediction, reference)
    if prediction.ndim != 3:
        raise ValueError(f"the masks must have three axes, not the shape {prediction.shape}")
    spacing = _checked_spacing(spacing_mm)
    box = bounding_box(prediction | reference)
    prediction, reference = prediction[box], reference[box]
    if not prediction.size:
        return SurfaceScores(hd95_mm=0.0, average_surface_distance_mm=0.0)
    if not (prediction.any() and reference.any()):
        return SurfaceScores(hd95_mm=MISSED_MM, average_surface_distance_mm=MISSED_MM)
    return _scores(_both_ways(prediction, reference, spacing=spacing))


def hd95_mm(prediction: _Mask, reference: _Mask, *, spacing_mm: _Spacing) -> float:
    """Return the robust Hausdorff distance in mm (arguments and errors of `surface_scores`)."""
    return surface_scores(prediction, reference, spacing_mm=spacing_mm).hd95_mm


def average_surface_distance_mm(
    prediction: _Mask, reference: _Mask, *, spacing_mm: _Spacing
) -> float:
    """Return the symmetric mean distance in mm (arguments and errors of `surface_scores`)."""
    scores = surface_scores(prediction, reference, spacing_mm=spacing_mm)
    return scores.average_surface_distance_mm


def _checked_spacing(spacing_mm: _Spacing) -> _Floats:
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,) or not np.isfinite(spacing).all() or not (spacing > 0).all():
        raise ValueError(f"spacing_mm must be three finite numbers > 0, not {spacing_mm}")
    return spacing


def _both_ways(
    prediction: _Mask, reference: _Mask, *, spacing: _Floats
) -> tuple[_Distances, _Distances]:
    one, other = element_codes(prediction), element_codes(reference)
    return (
        _one_way(one, is_element(other), spacing=spacing),
        _one_way(other, is_element(one), spacing=spacing),
    )


def _one_way(codes: npt.NDArray[np.uint8], other: _Mask, *, spacing: _Floats) -> _Distances:
    areas = element_areas_mm2(spacing)
    surface = is_element(codes)
    apart = surface & ~other
    return _Distances(
        distances_mm=_nearest_mm(apart, other, spacing=spacing),
        areas_mm2=areas[codes[apart]],
        total_area_mm2=float(areas[codes[surface]].sum()),
    )


def _nearest_mm(queries: _Mask, targets: _Mask, *, spacing: _Floats) -> _Floats:
    """Return the distance of each query to the nearest target, in the order of the array.

    Nearly all are near, and are found by looking around. For a few that are far a tree is fastest;
    where many are, a tree has to compare ever more targets that are almost as near as each other,
    and a transform of the whole box is faster.
    """
    places = _indices(queries)
    distances = _near_mm(places, targets, spacing=spacing)
    far = np.isinf(distances)
    if np.count_nonzero(far) * _VOXELS_PER_QUERY > targets.size:
        distances[far] = _transform_mm(places[far], targets, spacing=spacing)
    elif far.any():
        # Sliding midpoints build it three times as fast as medians, and a grid needs no balance.
        tree = cKDTree(_indices(targets) * spacing, balanced_tree=False)
        distances[far], _ = tree.query(places[far] * spacing)
    return distances


def _near_mm(places: _Indices, targets: _Mask, *, spacing: _Floats) -> _Floats:
    """Return the distances of the places (N, 3) that have a target near, infinity for the others.

    All look at once one step further, in the order of the steps' lengths, until they see a target.
    """
    limit_mm = _NEAR_VOXELS * float(spacing.prod()) ** (1 / 3)
    reach = (limit_mm / spacing).astype(np.intp)
    steps = np.indices(2 * reach + 1).reshape(3, -1).T - reach
    lengths_mm = np.linalg.norm(steps * spacing, axis=1)
    padded = np.pad(targets, [(width, width) for width in reach])
    strides = np.array(padded.strides)  # a voxel is one byte
    padded, places = padded.ravel(order="K"), (places + reach) @ strides
    distances, waiting = np.full(len(places), np.inf), np.arange(len(places))
    for step in np.argsort(lengths_mm):
        if lengths_mm[step] > limit_mm or not waiting.size:
            break
        found = padded.take(places + steps[step] @ strides)
        distances[waiting[found]] = lengths_mm[step]
        places, waiting = places[~found], waiting[~found]
    return distances


def _transform_mm(places: _Indices, targets: _Mask, *, spacing: _Floats) -> _Floats:
    nearest = distance_transform_edt(
        ~targets, sampling=spacing, return_distances=False, return_indices=True
    )
    steps = nearest[:, places[:, 0], places[:, 1], places[:, 2]].T - places
    return np.linalg.norm(steps * spacing, axis=1)


def _indices(elements: _Mask) -> _Indices:
    return np.stack(np.unravel_index(np.flatnonzero(elements), elements.shape), axis=1)


def _scores(both: tuple[_Distances, _Distances]) -> SurfaceScores:
    weighted = sum(float(one.distances_mm @ one.areas_mm2) for one in both)
    return SurfaceScores(
        hd95_mm=max(one.percentile_mm(95.0) for one in both),
        average_surface_distance_mm=weighted / sum(one.total_area_mm2 for one in both),
    )
