"""Surface distances: by hand, against a naive twin, and against DeepMind's `surface-distance`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import surface_distance
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist

from pipeline.evaluation.surface import (
    MISSED_MM,
    SurfaceScores,
    average_surface_distance_mm,
    hd95_mm,
    surface_scores,
)
from pipeline.evaluation.surface_elements import element_areas_mm2

# The package calls SciPy by names that SciPy has moved.
old_scipy_names = pytest.mark.filterwarnings("ignore:Please import `:DeprecationWarning")

UNIT = (1.0, 1.0, 1.0)
SPACING_MM = (1.2, 0.9, 2.5)
# The last bits of sums of some thousand products in float64.
FLOAT64 = 1e-9


def points(*places: tuple[int, int, int], shape: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(np.transpose(places))] = True
    return mask


def blob(seed: int, *, shape: tuple[int, int, int] = (22, 18, 14), sigma: float = 2) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return noise > noise.std()


def scores_of(*masks: np.ndarray, spacing_mm: tuple[float, float, float]) -> tuple[float, float]:
    scores = surface_scores(*masks, spacing_mm=spacing_mm)
    return scores.hd95_mm, scores.average_surface_distance_mm


# ---- By hand ------------------------------------------------------------------------------------


def test_missed_is_the_diagonal_of_the_brats_grid() -> None:
    assert round(math.hypot(240, 240, 155), 2) == MISSED_MM


@pytest.mark.parametrize(
    ("step", "near_mm", "far_mm"),
    [((2, 0, 0), 1.2, 2.4), ((0, 3, 0), 1.8, 2.7), ((0, 0, 4), 7.5, 10.0)],
)
def test_two_voxels(step: tuple[int, int, int], near_mm: float, far_mm: float) -> None:
    """Four of a voxel's eight equal elements are one step nearer than the other four."""
    one, other = points((0, 0, 0), shape=(5, 5, 5)), points(step, shape=(5, 5, 5))
    expected = (far_mm, (near_mm + far_mm) / 2)
    assert scores_of(one, other, spacing_mm=SPACING_MM) == pytest.approx(expected, abs=FLOAT64)


def test_cube_and_its_shift_by_a_voxel() -> None:
    """What differs is one face with its edges and corners, and the inside of the opposite one."""
    cube, shifted = np.zeros((2, 7, 6, 6), dtype=bool)
    cube[1:5, 1:5, 1:5] = shifted[2:6, 1:5, 1:5] = True
    corner, edge = math.sqrt(3) / 8, math.sqrt(2) / 2
    total = 8 * corner + 12 * 3 * edge + 6 * 9
    apart = 4 * corner + 4 * 3 * edge + 9 + 9
    expected = (1.0, apart / total)
    assert scores_of(cube, shifted, spacing_mm=UNIT) == pytest.approx(expected, abs=FLOAT64)


@pytest.mark.parametrize(("num_voxels", "expected_mm"), [(20, 0.0), (19, 2.4)])
def test_95_percent_is_enough(num_voxels: int, expected_mm: float) -> None:
    """Of lone voxels two apart, the last is missing: 5 % of the area, and a little more."""
    places = [(3 * index, 0, 0) for index in range(num_voxels)]
    reference = points(*places, shape=(60, 1, 1))
    prediction = points(*places[:-1], shape=(60, 1, 1))
    assert hd95_mm(prediction, reference, spacing_mm=SPACING_MM) == pytest.approx(expected_mm)


@pytest.mark.parametrize("thickness_mm", [0.4, 0.7, 0.9, 1.2])
def test_rounding_does_not_decide_what_95_percent_are(thickness_mm: float) -> None:
    """Of 40 equal elements two are (12, 5) away and two (12, 4): the 38th is one of these.

    At these thicknesses the plain sum of the first 38 areas stays just below 95 %.
    """
    lone = [(0, 0, 0), (3, 0, 0), (6, 0, 0), (9, 0, 0), (12, 5, 0)]
    reference, prediction = points(*lone, shape=(13, 6, 1)), points(lone[0], shape=(13, 6, 1))
    found = hd95_mm(prediction, reference, spacing_mm=(1.0, 1.0, thickness_mm))
    assert found == pytest.approx(math.hypot(12, 4), abs=FLOAT64)


def test_identical_masks() -> None:
    mask = blob(0)
    assert scores_of(mask, mask, spacing_mm=SPACING_MM) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected_mm"),
    [(False, False, 0.0), (True, False, MISSED_MM), (False, True, MISSED_MM), (True, True, 0.0)],
)
def test_empty_masks(prediction: bool, reference: bool, expected_mm: float) -> None:
    masks = np.full((3, 4, 5), prediction), np.full((3, 4, 5), reference)
    assert scores_of(*masks, spacing_mm=SPACING_MM) == (expected_mm, expected_mm)


def test_a_mask_at_the_border_has_a_surface_there() -> None:
    full, hollow = np.ones((4, 5, 6), dtype=bool), np.ones((4, 5, 6), dtype=bool)
    hollow[1:-1, 1:-1, 1:-1] = False
    padded = np.pad(full, 3), np.pad(hollow, 3)
    at_border = scores_of(full, hollow, spacing_mm=SPACING_MM)
    assert at_border == scores_of(*padded, spacing_mm=SPACING_MM)
    assert at_border[0] > 0


# ---- Against others -----------------------------------------------------------------------------


def package_scores(
    prediction: np.ndarray, reference: np.ndarray, *, spacing_mm: tuple[float, float, float]
) -> tuple[float, float]:
    """Return what the package gives, its two directed averages united by the surfaces' areas."""
    found = surface_distance.compute_surface_distances(reference, prediction, spacing_mm)
    averages = surface_distance.compute_average_surface_distance(found)
    areas = found["surfel_areas_gt"].sum(), found["surfel_areas_pred"].sum()
    hd95 = surface_distance.compute_robust_hausdorff(found, 95)
    return float(hd95), float(np.dot(averages, areas) / sum(areas))


@old_scipy_names
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing_mm", [UNIT, SPACING_MM, (0.5, 0.6, 5.0)])
def test_agrees_with_the_package(seed: int, spacing_mm: tuple[float, float, float]) -> None:
    # Smooth blobs, then ragged ones, whose neighbourhoods show every code.
    masks = [blob(seed + offset, sigma=(2, 1, 0.5)[seed % 3]) for offset in (0, 100)]
    expected = package_scores(*masks, spacing_mm=spacing_mm)
    assert scores_of(*masks, spacing_mm=spacing_mm) == pytest.approx(expected, abs=FLOAT64)


@old_scipy_names
@pytest.mark.real
def test_agrees_with_the_package_on_a_real_case(real_cases: Path) -> None:
    path = real_cases / "BraTS2021_00003" / "BraTS2021_00003_seg.nii.gz"
    reference = np.asarray(nib.load(path).dataobj) > 0
    prediction = np.roll(binary_erosion(reference), 2, axis=1)
    expected = package_scores(prediction, reference, spacing_mm=SPACING_MM)
    found = scores_of(prediction, reference, spacing_mm=SPACING_MM)
    assert found == pytest.approx(expected, abs=FLOAT64)


def naive_scores(
    prediction: np.ndarray, reference: np.ndarray, *, spacing_mm: tuple[float, float, float]
) -> tuple[float, float]:
    """Every neighbourhood by a loop, every pair of elements, the percentile by counting up."""
    areas = element_areas_mm2(spacing_mm)
    places, weights = [], []
    for mask in (np.pad(prediction, 1), np.pad(reference, 1)):
        found = []
        for index in itertools.product(*(range(size - 1) for size in mask.shape)):
            eight = [mask[tuple(np.add(index, c))] for c in itertools.product((0, 1), repeat=3)]
            if any(eight) and not all(eight):
                code = sum(int(inside) << bit for bit, inside in enumerate(eight))
                found.append((np.multiply(index, spacing_mm), areas[code]))
        places.append(np.array([place for place, _ in found]))
        weights.append(np.array([area for _, area in found]))
    pairs = cdist(*places)
    nearest = pairs.min(axis=1), pairs.min(axis=0)
    percentiles = []
    for distances, area in zip(nearest, weights, strict=True):
        enough = [d for d in distances if area[distances <= d].sum() >= 0.95 * area.sum()]
        percentiles.append(min(enough))
    weighted = sum(float(d @ a) for d, a in zip(nearest, weights, strict=True))
    return max(percentiles), weighted / sum(float(a.sum()) for a in weights)


def noisy_pair() -> tuple[np.ndarray, np.ndarray]:
    """Close surfaces: all elements find the nearest one by looking around."""
    mask = blob(3, shape=(13, 12, 11))
    return mask ^ (np.random.default_rng(4).random(mask.shape) < 0.01), mask


def pair_with_one_far_voxel() -> tuple[np.ndarray, np.ndarray]:
    """Few far elements in a long box: a tree finds what they are nearest to."""
    reference = points((2, 2, 2), (2, 3, 2), shape=(30, 9, 9))
    return reference | points((29, 8, 8), shape=(30, 9, 9)), reference


def far_pair() -> tuple[np.ndarray, np.ndarray]:
    """Many far elements: a transform of the box finds what they are nearest to."""
    one, other = np.zeros((2, 16, 9, 9), dtype=bool)
    one[1:4, 2:7, 1:5] = other[12:16, 3:8, 5:9] = True
    return one, other


@pytest.mark.parametrize("make_pair", [noisy_pair, pair_with_one_far_voxel, far_pair])
def test_agrees_with_the_naive_twin(
    make_pair: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> None:
    pair = make_pair()
    expected = naive_scores(*pair, spacing_mm=SPACING_MM)
    assert scores_of(*pair, spacing_mm=SPACING_MM) == pytest.approx(expected, abs=FLOAT64)


# ---- Invariances --------------------------------------------------------------------------------


def test_exchange() -> None:
    one, other = blob(0), blob(1)
    there, back = (scores_of(*pair, spacing_mm=SPACING_MM) for pair in ((one, other), (other, one)))
    assert there == pytest.approx(back, abs=FLOAT64)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_flips(axes: tuple[int, ...]) -> None:
    masks = blob(0, sigma=1), blob(1, sigma=1)
    flipped = [np.flip(mask, axes) for mask in masks]
    expected = scores_of(*masks, spacing_mm=SPACING_MM)
    assert scores_of(*flipped, spacing_mm=SPACING_MM) == pytest.approx(expected, abs=FLOAT64)


def test_exchanged_axes_take_their_spacing_along() -> None:
    """The arrays are then no longer contiguous either, like those of a NIfTI file."""
    masks = blob(0, sigma=1), blob(1, sigma=1)
    expected = scores_of(*masks, spacing_mm=SPACING_MM)
    found = scores_of(*(mask.T for mask in masks), spacing_mm=SPACING_MM[::-1])
    assert found == pytest.approx(expected, abs=FLOAT64)


def test_thin_functions() -> None:
    masks = blob(0), blob(1)
    assert surface_scores(*masks, spacing_mm=SPACING_MM) == SurfaceScores(
        hd95_mm=hd95_mm(*masks, spacing_mm=SPACING_MM),
        average_surface_distance_mm=average_surface_distance_mm(*masks, spacing_mm=SPACING_MM),
    )


# ---- Refusals -----------------------------------------------------------------------------------

MASK = np.ones((2, 3, 4), dtype=bool)


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (MASK[:1], MASK, r"prediction \(1, 3, 4\) and reference \(2, 3, 4\)"),
        (MASK[0], MASK[0], r"the masks must have three axes, not the shape \(3, 4\)"),
        (MASK, MASK.astype(np.uint8), "reference must be a boolean mask, not uint8"),
    ],
)
def test_refuses_masks(prediction: np.ndarray, reference: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        surface_scores(prediction, reference, spacing_mm=UNIT)


@pytest.mark.parametrize(
    "spacing_mm", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, math.nan, 1.0)]
)
def test_refuses_spacing(spacing_mm: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="spacing_mm must be three finite numbers > 0"):
        surface_scores(MASK, MASK, spacing_mm=spacing_mm)
