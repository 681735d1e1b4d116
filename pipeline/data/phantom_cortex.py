"""The folds of a phantom's brain: sulci, fissures and cisterns, as depths of tissue beside them."""

from __future__ import annotations

import numpy as np

from pipeline.data.phantom_fields import (
    Field,
    Grid,
    band_noise,
    ellipsoid_depth,
    sheet_distance,
    smooth_noise,
)
from pipeline.data.phantom_head import Head


def _fold_noise(rng: np.random.Generator, points: Field, *, wavelength_mm: float) -> Field:
    """Return noise that changes little with depth, so that its zero level runs into the brain."""
    x, y, z = points
    height = np.where(z > 4, np.float32(61), np.float32(42))
    radius = np.sqrt((x / 70) ** 2 + (y / 88) ** 2 + ((z - 4) / height) ** 2)
    # Pull everything most of the way to one shell; the rest lets the sheets bend with depth.
    pull = np.float32(0.35) + np.float32(0.65) / np.maximum(radius, np.float32(0.7))
    shell = np.stack([x * pull, y * pull, (z - 4) * pull])
    return band_noise(rng, shell, wavelength_mm=wavelength_mm)


def fold_depth(
    rng: np.random.Generator,
    grid: Grid,
    points: Field,
    surfaces: tuple[Field, Field],
    head: Head,
    swelling: Field,
) -> Field:
    """Return the depth in mm below the folded surface of the cerebrum, (X, Y, Z).

    `surfaces` are the depths below the outer surface and beside the fissure.
    """
    outer, fissure = surfaces
    depth = np.minimum(outer, fissure)
    uneven = 1 + 0.7 * smooth_noise(rng, grid, wavelength_mm=24)
    half_width = head.sulcus_mm * uneven * (1.3 - 0.03 * np.clip(outer, 0, 30))
    # Some sulci are closed: grey matter meets grey matter, with hardly any fluid in between.
    half_width = np.clip(half_width * (1 - swelling) - 0.4 * swelling, -0.3, None)
    core = np.clip(ellipsoid_depth(points, (0, 4, -10), (38, 50, 34)), 0, None)
    bent = points.copy()
    for axis in range(3):
        bent[axis] += 2.2 * smooth_noise(rng, grid, wavelength_mm=24)
    for wavelength_mm, reach_mm, medial_mm in ((31.0, 18.0, 8.0), (20.0, 8.0, 0.0)):
        noise = _fold_noise(rng, bent, wavelength_mm=wavelength_mm)
        sheet = sheet_distance(noise, voxel_mm=grid.voxel_mm)
        reach = reach_mm + 4 * smooth_noise(rng, grid, wavelength_mm=30)
        beyond = np.maximum(np.minimum(outer - reach, fissure - medial_mm), core)
        depth = np.minimum(depth, np.hypot(sheet, np.clip(beyond, 0, None)) - half_width)
    return depth


def medial_depth(rng: np.random.Generator, grid: Grid, points: Field, head: Head) -> Field:
    """Return the depth in mm beside the fissures of the medial wall, (X, Y, Z)."""
    x, y, z = points
    callosum = ellipsoid_depth((np.zeros_like(x), y, z), (0, 2, -6), (40, 46, 34))
    wobble = 1.3 * smooth_noise(rng, grid, wavelength_mm=45)
    width = head.fissure_mm * (1 + 0.4 * smooth_noise(rng, grid, wavelength_mm=20))
    falx = np.hypot(x - wobble, np.clip(callosum, 0, None))
    # The cingulate sulcus runs around the front of the callosum at some distance.
    arch = callosum + 14 + 4 * smooth_noise(rng, grid, wavelength_mm=24) + 0.4 * np.abs(x)
    cingulate = np.hypot(arch, np.clip(np.abs(x) - 9, 0, None)) + np.clip(y - 24, 0, None)
    return np.minimum(falx, cingulate + 10 * (z < 0)) - width


def sylvian_depth(rng: np.random.Generator, grid: Grid, points: Field, head: Head) -> Field:
    """Return the depth in mm beside the Sylvian fissures and the walls of the insulae."""
    x = np.abs(points[0]) + 1.8 * smooth_noise(rng, grid, wavelength_mm=26)
    y, z = points[1], points[2]
    level = -6 - 0.3 * np.clip(y + 20, -15, 50) + 2 * smooth_noise(rng, grid, wavelength_mm=40)
    end = np.clip(np.abs(y) - 32, 0, None)
    cleft = np.sqrt((z - level) ** 2 + end**2 + np.clip(39 - x, 0, None) ** 2)
    bulge = 42 - 0.008 * (y + 2) ** 2 - 0.02 * (z - level - 3) ** 2
    high = np.clip(np.abs(z - level - 3) - 11, 0, None)
    wall = np.sqrt((x - bulge) ** 2 + high**2 + np.clip(np.abs(y + 2) - 20, 0, None) ** 2)
    width = head.fissure_mm * (1 + 0.5 * smooth_noise(rng, grid, wavelength_mm=16))
    return np.minimum(cleft - 0.3, wall) - width


def cistern_depth(rng: np.random.Generator, grid: Grid, points: Field, brainstem: Field) -> Field:
    """Return the depth in mm beside the cisterns behind the midbrain and above the sella.

    `brainstem` is the depth inside it, (X, Y, Z).
    """
    _, y, z = points
    outside = np.clip(z + 9, 0, None) ** 2 + np.clip(5 - y, 0, None) ** 2
    width = 0.9 + 0.4 * smooth_noise(rng, grid, wavelength_mm=18)
    ambient = np.sqrt(brainstem**2 + outside) - width
    return np.minimum(ambient, -ellipsoid_depth(points, (0, -15, -24), (13, 9, 6)))
