"""Random fields, depths and partial volume: against hand-worked values and naive twins."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.phantom_fields import (
    CUBE_MM,
    SPLINE_STD,
    Grid,
    band_noise,
    coarse,
    ellipsoid_depth,
    occupancy,
    sheet_distance,
    smooth_noise,
    smooth_union,
    tube_depth,
)


def cube_grid(size: int, voxel_mm: float) -> Grid:
    axis = ((np.arange(size) - (size - 1) / 2) * voxel_mm).astype(np.float32)
    return Grid((axis, axis, axis), voxel_mm)


def points_at(*places: tuple[float, float, float]) -> np.ndarray:
    return np.array(places, np.float32).T


def test_grid_gives_its_shape_and_its_points_in_the_order_of_the_axes():
    axes = tuple(np.array(values, np.float32) for values in ([0, 1], [10, 11, 12], [5]))
    grid = Grid((axes[0], axes[1], axes[2]), 1.0)
    assert grid.shape == (2, 3, 1)
    np.testing.assert_array_equal(grid.points()[:, 1, 2, 0], [1, 12, 5])


def test_smooth_noise_equals_the_sum_of_all_splines_one_by_one():
    grid, step_mm = cube_grid(5, 9.7), 20.0
    fast = smooth_noise(np.random.default_rng(3), grid, wavelength_mm=2 * step_mm)
    num_knots = int(np.ceil(CUBE_MM / step_mm)) + 4
    knots = np.random.default_rng(3).standard_normal((num_knots,) * 3, dtype=np.float32)

    def spline(distance: np.ndarray) -> np.ndarray:
        near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance) ** 3 / 6
        return np.where(distance < 1, near, np.where(distance < 2, far, 0))

    for place in np.ndindex(grid.shape):
        weights = [
            spline(np.abs((axis[i] + CUBE_MM / 2) / step_mm + 1 - np.arange(num_knots)))
            for axis, i in zip(grid.axes_mm, place, strict=True)
        ]
        slow = np.einsum("ijk,i,j,k->", knots.astype(float), *weights) / SPLINE_STD
        # float32 sums of 64 products of numbers around 1
        assert fast[place] == pytest.approx(slow, abs=1e-5)


def test_smooth_noise_is_standardised_and_smooth():
    noise = smooth_noise(np.random.default_rng(0), cube_grid(60, 3.0), wavelength_mm=12)
    # 30^3 knots: the moments of the sample scatter by about a hundredth
    assert noise.mean() == pytest.approx(0, abs=0.05)
    assert noise.std() == pytest.approx(1, abs=0.05)
    assert noise.dtype == np.float32
    steps = np.diff(noise, axis=0)
    assert steps.std() < 0.9, "a quarter of a wavelength on, white noise would differ by 1.4"


def test_smooth_noise_is_the_same_place_for_place_on_another_grid():
    fine, rough = cube_grid(9, 2.0), cube_grid(5, 4.0)
    first = smooth_noise(np.random.default_rng(1), fine, wavelength_mm=25)
    second = smooth_noise(np.random.default_rng(1), rough, wavelength_mm=25)
    # the same sums in another order of memory
    np.testing.assert_allclose(first[::2, ::2, ::2], second, atol=1e-5)


def test_band_noise_has_the_asked_wavelength():
    axis = (np.arange(56) * 4 - 112).astype(np.float32)
    noise = band_noise(
        np.random.default_rng(0), Grid((axis, axis, axis), 4.0).points(), wavelength_mm=20
    )
    power = np.abs(np.fft.fftn(noise)) ** 2
    frequency = np.fft.fftfreq(56, 4.0)
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*[frequency] * 3, indexing="ij")))
    # the ring is 20 % wide, and linear interpolation damps its outer side
    assert (radius * power).sum() / power.sum() == pytest.approx(1 / 20, rel=0.1)
    inside = (radius > 0.4 / 20) & (radius < 1.6 / 20)
    assert power[inside].sum() > 0.95 * power.sum()
    assert noise.std() == pytest.approx(1, abs=0.2), "linear interpolation takes some of it"


def test_sheet_distance_is_the_distance_from_a_plane_whatever_the_slope():
    x = np.arange(-5, 6, dtype=np.float32)[:, None, None] * np.ones((1, 3, 3), np.float32)
    distance = sheet_distance(7 * x * 2, voxel_mm=2.0)  # x in voxels of 2 mm
    # the floor of a quarter of the mean square slope takes 1 - 1 / sqrt(1.25)
    np.testing.assert_allclose(distance, np.abs(2 * x) / np.sqrt(1.25), rtol=1e-5)


def test_occupancy_is_the_share_that_a_plane_cuts_off():
    depth = np.array([-3, -1, -0.5, 0, 0.5, 1, 3], np.float32)
    np.testing.assert_allclose(occupancy(depth, voxel_mm=2.0), [0, 0, 0.25, 0.5, 0.75, 1, 1])


def test_coarse_takes_means_of_blocks():
    fine = np.arange(4 * 2 * 6, dtype=np.float32).reshape(4, 2, 6)
    result = coarse(fine, factor=2)
    assert result.shape == (2, 1, 3)
    for i, j, k in np.ndindex(result.shape):
        block = fine[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, 2 * k : 2 * k + 2]
        assert result[i, j, k] == block.mean()
    assert coarse(fine, factor=1) is fine


def test_ellipsoid_depth_is_exact_for_a_ball_and_on_the_surface():
    points = points_at((1, 2, 3), (1, 2, 13), (6, 2, 3), (1, -10, 3))
    depth = ellipsoid_depth(points, (1, 2, 3), (10, 10, 10))
    # at the very centre the direction is undefined; elsewhere exact but for the guard of 1e-6
    np.testing.assert_allclose(depth[1:], [0, 5, -2], atol=1e-3)
    on_surface = ellipsoid_depth(points_at((4, 0, 0), (0, 0, -9)), (0, 0, 0), (4, 5, 9))
    np.testing.assert_allclose(on_surface, 0, atol=1e-6)


def test_tube_depth_follows_the_knots_with_a_changing_radius():
    knots = ((0, 0, 0, 2), (10, 0, 0, 4), (10, 10, 0, 4))
    points = points_at((5, 1, 0), (-3, 0, 0), (10, 5, 0), (13, 10, 4))
    np.testing.assert_allclose(tube_depth(points, knots), [2, -1, 4, -1], atol=1e-5)


def test_smooth_union_adds_to_the_seam_only():
    first = np.array([5, -4, 1], np.float32)
    second = np.array([-5, -4, -1], np.float32)
    # equal depths gain a quarter of the radius; 2 of 4 mm apart: (2 / 4)^2 of that quarter
    np.testing.assert_allclose(smooth_union(first, second, radius_mm=4), [5, -3, 1.25])
