"""Bringing an image onto another grid: exact where voxels meet, linear between, 0 outside."""

from __future__ import annotations

import warnings
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from conftest import AFFINE
from image_files import LPS_TO_RAS, OBLIQUE, phantom
from nibabel.affines import voxel_sizes

from pipeline.data.itk_library import load_itk
from pipeline.data.resampling import resample_to


def shift(*voxels: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = voxels
    return matrix


def naive(
    volume: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray
) -> np.ndarray:
    """The definition, voxel by voxel: clamp to the centres, mix eight neighbours, 0 outside."""
    result = np.zeros(shape)
    sizes = np.array(volume.shape)
    for index in np.ndindex(*shape):
        place = (np.linalg.inv(affine) @ target @ (*index, 1))[:3]
        if np.any(place < -0.5) or np.any(place > sizes - 0.5):
            continue
        place = np.clip(place, 0, sizes - 1)
        low = np.minimum(np.floor(place).astype(int), sizes - 2)
        for corner in product((0, 1), repeat=3):
            weights = np.where(corner, place - low, 1 - (place - low))
            result[index] += np.prod(weights) * volume[tuple(low + corner)]
    return result


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE])
def test_the_same_grid_changes_nothing(affine: np.ndarray) -> None:
    volume = phantom()
    same = resample_to(volume, affine=affine, target_shape=volume.shape, target_affine=affine)
    assert same.dtype == np.float32
    np.testing.assert_array_equal(same, volume)


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product((False, True), repeat=3)))
def test_all_48_orientations_are_exact(axes: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    volume = phantom()
    flipped = [axis for axis in range(3) if flips[axis]]
    expected = np.flip(volume.transpose(axes), flipped)
    # Where voxel (i, j, k) of the new grid lies in the old one.
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1
    for new, old in enumerate(axes):
        to_old[old, new] = -1 if flips[new] else 1
        to_old[old, 3] = volume.shape[old] - 1 if flips[new] else 0
    result = resample_to(
        volume, affine=OBLIQUE, target_shape=expected.shape, target_affine=OBLIQUE @ to_old
    )
    np.testing.assert_array_equal(result, expected)


def test_whole_voxel_shifts_are_exact_and_the_outside_is_0() -> None:
    volume = phantom()
    result = resample_to(
        volume, affine=OBLIQUE, target_shape=(6, 7, 3), target_affine=OBLIQUE @ shift(-2, 1, 0)
    )
    expected = np.zeros((6, 7, 3))
    expected[2:, :4] = volume[:4, 1:, :3]
    np.testing.assert_array_equal(result, expected)


def test_the_last_digits_of_a_header_change_nothing() -> None:
    volume = phantom()
    moved = AFFINE.copy()
    moved[:3] += 1e-5  # more than float32 headers differ by, and less than a hundredth of a voxel
    result = resample_to(volume, affine=AFFINE, target_shape=volume.shape, target_affine=moved)
    np.testing.assert_array_equal(result, volume)


def test_half_a_voxel_is_the_mean_of_two() -> None:
    volume = np.array([10.0, 20.0, 40.0]).reshape(3, 1, 1)
    result = resample_to(
        volume, affine=np.eye(4), target_shape=(5, 1, 1), target_affine=shift(-1.5, 0, 0)
    )
    # Centres at -1.5 (outside), -0.5 (the outer face: the border's value), 0.5, 1.5, 2.5.
    np.testing.assert_array_equal(result.ravel(), [0, 10, 15, 30, 40])


def test_a_constant_image_stays_constant_as_far_as_it_reaches() -> None:
    """On a grid of half the spacing whose outer faces are the image's own."""
    volume = np.full((3, 4, 5), 7, dtype=np.int16)
    fine = shift(-0.25, -0.25, -0.25) @ np.diag([0.5, 0.5, 0.5, 1])
    result = resample_to(
        volume, affine=OBLIQUE, target_shape=(6, 8, 10), target_affine=OBLIQUE @ fine
    )
    # Weights are float64 and sum to 1 but for rounding; the result is float32.
    np.testing.assert_allclose(result, 7, rtol=1e-6)


@pytest.mark.parametrize(
    "target",
    [
        OBLIQUE @ shift(0.3, -0.4, 0.2),
        shift(*(OBLIQUE @ (2.5, 2, 1.5, 1) - AFFINE @ (3, 2.5, 3.5, 1))[:3]) @ AFFINE,
        OBLIQUE @ np.diag([1.7, 1.3, 0.4, 1]),
    ],
    ids=["shifted", "turned", "rescaled"],
)
def test_is_what_the_definition_says(target: np.ndarray) -> None:
    """The second one has the same centre, and axes in other directions."""
    volume = phantom()
    result = resample_to(volume, affine=OBLIQUE, target_shape=(7, 6, 8), target_affine=target)
    expected = naive(volume, OBLIQUE, (7, 6, 8), target)
    # float32 results of up to 3000: 2e-4.
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-3)
    assert np.count_nonzero(expected) > 20


def test_is_what_itk_s_resampling_says() -> None:
    """ITK as the judge of both conventions: world coordinates, and where an image ends."""
    volume = phantom().astype(np.float32)
    target = OBLIQUE @ shift(0.3, -0.4, 0.2) @ np.diag([0.8, 1.1, 0.9, 1])
    shape = (8, 6, 5)
    result = resample_to(volume, affine=OBLIQUE, target_shape=shape, target_affine=target)
    expected = resampled_by_itk(volume, OBLIQUE, shape, target)
    # Both are float32, of values up to 3000.
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-3)
    assert np.count_nonzero(expected) > 100


def test_the_input_is_not_changed() -> None:
    volume = phantom().astype(np.float32)
    before = volume.copy()
    resample_to(volume, affine=OBLIQUE, target_shape=(9, 9, 9), target_affine=AFFINE)
    np.testing.assert_array_equal(volume, before)


def resampled_by_itk(
    volume: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], target: np.ndarray
) -> np.ndarray:
    """Resample with ITK: linear, identity transform, 0 outside."""
    itk = load_itk()
    with warnings.catch_warnings():  # as in load_itk: these wrappers are only used here
        warnings.simplefilter("ignore", DeprecationWarning)
        resample = itk.ResampleImageFilter
    image = itk.image_from_array(np.ascontiguousarray(volume.T))
    place(image, affine)
    grid = itk.image_from_array(np.zeros(shape[::-1], dtype=np.float32))
    place(grid, target)
    filtered = resample.New(Input=image, ReferenceImage=grid, UseReferenceImage=True)
    filtered.Update()
    return itk.array_from_image(filtered.GetOutput()).T


def place(image: Any, affine: np.ndarray) -> None:
    in_lps, spacing = LPS_TO_RAS @ affine, voxel_sizes(affine)
    image.SetSpacing([float(size) for size in spacing])
    image.SetOrigin([float(value) for value in in_lps[:3, 3]])
    image.SetDirection(in_lps[:3, :3] / spacing)
