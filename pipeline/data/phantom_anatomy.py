"""The healthy anatomy of a phantom: the share of every tissue in every voxel."""

from __future__ import annotations

import numpy as np

from pipeline.data.phantom_cortex import (
    cistern_depth,
    fold_depth,
    medial_depth,
    sylvian_depth,
)
from pipeline.data.phantom_fields import (
    Field,
    Grid,
    ellipsoid_depth,
    occupancy,
    sheet_distance,
    smooth_noise,
    tube_depth,
)
from pipeline.data.phantom_head import Bodies, Head

# Fischl and Dale 2000 (PNAS 97:11050): 1.3 to 4.5 mm, 2.5 mm on average; partial volume adds some.
CORTEX_MM = 2.8


def tissue_shares(
    rng: np.random.Generator, grid: Grid, points: Field, outer: Bodies, head: Head, swelling: Field
) -> dict[str, Field]:
    """Return the share of each healthy tissue in every voxel, each (X, Y, Z), 0..1, sum 1.

    `points`, (3, X, Y, Z), say where the voxels' content was before the tumour pushed it aside;
    `outer` belongs to the voxels as they are. `swelling`, 0..1, closes the sulci.
    """
    voxel_mm = grid.voxel_mm
    fissure = medial_depth(rng, grid, points, head)
    pial = fold_depth(rng, grid, points, (outer.cerebrum, fissure), head, swelling)
    pial = np.minimum(pial, sylvian_depth(rng, grid, points, head))
    pial = np.minimum(pial, cistern_depth(rng, grid, points, outer.brainstem))
    cortex = CORTEX_MM + 0.35 * smooth_noise(rng, grid, wavelength_mm=12)
    solid = occupancy(pial, voxel_mm=voxel_mm)
    white = np.minimum(occupancy(pial - cortex, voxel_mm=voxel_mm), solid)
    shares = {"white": white, "grey": solid - white}
    _add_cerebellum(rng, grid, points, outer.cerebellum, shares)
    stem = occupancy(outer.brainstem, voxel_mm=voxel_mm) * (1 - shares["white"] - shares["grey"])
    shares["white"] = shares["white"] + 0.7 * stem
    shares["grey"] = shares["grey"] + 0.3 * stem
    nuclei, pallidum = _nuclei_depth(points)
    _replace(shares, "deep_grey", occupancy(np.minimum(nuclei, fissure), voxel_mm=voxel_mm))
    _replace(shares, "pallidum", occupancy(pallidum, voxel_mm=voxel_mm))
    ventricles = _ventricle_depth(points, head)
    _add_gliosis(rng, grid, ventricles, head, shares)
    _replace(shares, "csf", occupancy(ventricles, voxel_mm=voxel_mm))
    fluid = np.clip(1 - _total(shares), 0, 1)
    vessels = fluid * _vessel_share(rng, grid, points, np.minimum(outer.cerebrum, fissure))
    shares["csf"] += fluid - vessels
    shares["vessel"] = vessels
    return shares


def _total(shares: dict[str, Field]) -> Field:
    total = np.zeros_like(shares["white"])
    for share in shares.values():
        total += share
    return total


def _replace(shares: dict[str, Field], name: str, share: Field) -> None:
    """Let `share` of every voxel become the tissue `name`, at the cost of those there."""
    for other in shares:
        shares[other] = shares[other] * (1 - share)
    shares[name] = share


def _ventricle_depth(points: Field, head: Head) -> Field:
    """Return the depth in mm inside the lateral, third and fourth ventricles, (X, Y, Z)."""
    x, y, z = np.abs(points[0]), points[1], points[2]
    size = head.ventricle
    # Horns are higher than wide, and lean outwards: squeezed and sheared tubes.
    lateral = tube_depth(
        (x * 1.7 - 0.35 * (z - 12), y, z),
        (
            (25, -35, 4, 3.0 * size),
            (14, -22, 12, 6.0 * size),
            (9, -2, 20, 5.0 * size),
            (16, 20, 19, 5.5 * size),
            (38, 36, 9, 9.0 * size),
            (43, 54, 4, 3.0 * size),
        ),
    )
    horn = tube_depth((x, y, z), ((24, 38, 6, 4 * size), (33, 20, -12, 2.4), (31, -8, -22, 2.2)))
    third = ellipsoid_depth((x * 5 / size, y, z), (0, 3, -2), (9, 12, 9)) / 4
    fourth = ellipsoid_depth(points, (0, 23, -38), (7 * size, 4, 9))
    return np.maximum(np.maximum(lateral / 1.7, horn), np.maximum(third, fourth))


def _nuclei_depth(points: Field) -> tuple[Field, Field]:
    """Return the depth in mm inside the deep grey matter, and inside the pallidum."""
    x, y, z = np.abs(points[0]), points[1], points[2]
    thalamus = ellipsoid_depth((x - 0.3 * (y - 9), y, z), (10, 9, 4), (8.5, 16, 9.5))
    caudate = tube_depth((x, y, z), ((14, -25, 5, 6.5), (17, -8, 17, 4.5), (21, 14, 19, 2.5)))
    lens = (x - 0.28 * (y + 6), y, z)
    putamen = ellipsoid_depth(lens, (27, -4, 0), (5.5, 18, 10.5))
    pallidum = ellipsoid_depth(lens, (19.5, -3, -2), (4.5, 10, 6.5))
    hippocampus = tube_depth((x, y, z), ((27, -12, -21, 5), (29, 8, -15, 4), (24, 22, -4, 3)))
    basal = np.maximum(putamen, hippocampus)
    return np.maximum(np.maximum(thalamus, caudate), basal), pallidum


def _add_cerebellum(
    rng: np.random.Generator, grid: Grid, points: Field, depth: Field, shares: dict[str, Field]
) -> None:
    """Add the cerebellum: thin folia around white matter that branches like a tree."""
    y, z = points[1], points[2]
    # The folia lie in layers that fan out from the fourth ventricle.
    angle = np.arctan2(z + 40, y - 10) + 0.05 * smooth_noise(rng, grid, wavelength_mm=20)
    angle += 0.03 * smooth_noise(rng, grid, wavelength_mm=9)
    trunk = occupancy(depth - 17 - 3 * smooth_noise(rng, grid, wavelength_mm=14), voxel_mm=8)
    twigs = np.clip(1.1 - 3.5 * np.abs(np.sin(angle * 8)), 0, 1)
    twigs *= occupancy(depth - 4, voxel_mm=grid.voxel_mm)
    clefts = np.clip(np.abs(np.cos(angle * 16)) * 8 - 7.2, 0, 1) * occupancy(10 - depth, voxel_mm=8)
    inside = occupancy(depth, voxel_mm=grid.voxel_mm) * (1 - shares["white"] - shares["grey"])
    inside = inside * (1 - 0.45 * clefts)
    white = np.maximum(trunk, 0.6 * twigs)
    shares["white"] = shares["white"] + inside * white
    shares["grey"] = shares["grey"] + inside * (1 - white)


def _add_gliosis(
    rng: np.random.Generator, grid: Grid, ventricles: Field, head: Head, shares: dict[str, Field]
) -> None:
    """Turn white matter beside the ventricles, and spots elsewhere, into scars, bright in FLAIR."""
    caps = np.exp(-((np.clip(-ventricles, 0, None) / 4) ** 2)) * head.gliosis
    spots = np.clip(smooth_noise(rng, grid, wavelength_mm=11) - 3.2 + head.gliosis, 0, 1)
    scars = shares["white"] * np.clip(caps + spots, 0, 1)
    shares["gliosis"] = scars
    shares["white"] = shares["white"] - scars


def _vessel_share(rng: np.random.Generator, grid: Grid, points: Field, hull: Field) -> Field:
    """Return the share of vessels and dura in the fluid: winding tubes, the falx, the rim."""
    voxel_mm = grid.voxel_mm
    first, second = (
        sheet_distance(smooth_noise(rng, grid, wavelength_mm=24), voxel_mm=voxel_mm)
        for _ in range(2)
    )
    tubes = occupancy(1.0 - np.hypot(first, second), voxel_mm=voxel_mm)
    patches = smooth_noise(rng, grid, wavelength_mm=24)
    falx = occupancy(0.4 - np.abs(points[0]), voxel_mm=voxel_mm) * (points[2] > 0)
    rim = occupancy(0.5 - np.abs(hull), voxel_mm=voxel_mm) * np.clip(patches - 0.8, 0, 1)
    return np.clip(tubes + 0.4 * falx + 0.8 * rim, 0, 1)
