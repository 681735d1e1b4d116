"""The glioma of a phantom: where it lies, what it pushes aside, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipeline.data.phantom_fields import Field, Grid, Real, smooth_noise
from pipeline.data.phantom_head import Head, bodies

Mask = npt.NDArray[np.bool_]
Point = tuple[float, float, float]

# Of the whole tumour, in millilitres of a head that was not scaled down.
VOLUME_RANGE_ML = (25.0, 140.0)
# Depth of the centre of the tumour below the surface of the cerebrum.
EDGE_DEPTH_MM = (6.0, 12.0)
INNER_DEPTH_MM = (22.0, 38.0)
FLUIDS = ("csf", "vessel")


@dataclass(frozen=True)
class Traits:
    """What kind of case it is."""

    enhancing: bool
    at_edge: bool
    num_satellites: int


@dataclass(frozen=True)
class Glioma:
    """What is decided about a tumour before the brain is made."""

    centres_mm: tuple[Point, ...]  # the main one first, then the satellites
    volume_ml: float  # core and oedema
    core_share: float  # of that volume
    enhancing: bool
    rim_mm: float  # usual thickness of the enhancing ring
    axes: Point  # elongation of the core along X, Y and Z
    push_mm: float  # how far it displaces what is next to it
    wet: float  # share of fluid in the oedema
    liquid: float  # share of fluid in the core that does not enhance

    @property
    def radius_mm(self) -> float:
        """Return the radius of a ball of the tumour's volume."""
        return float(np.cbrt(self.volume_ml * 1000 * 3 / (4 * np.pi)))


def draw_glioma(rng: np.random.Generator, head: Head, traits: Traits) -> Glioma:
    """Draw the tumour of a case with these `traits`, somewhere in the cerebrum of `head`."""
    low, high = np.log(VOLUME_RANGE_ML)
    core_range = (0.2, 0.55) if traits.enhancing else (0.35, 0.75)
    return Glioma(
        centres_mm=_sites(rng, head, traits),
        volume_ml=float(np.exp(rng.uniform(low, high))),
        core_share=rng.uniform(*core_range),
        enhancing=traits.enhancing,
        rim_mm=rng.uniform(2.5, 6.0),
        axes=(rng.uniform(0.8, 1.25), rng.uniform(0.8, 1.25), rng.uniform(0.8, 1.25)),
        push_mm=rng.uniform(2, 7),
        wet=rng.uniform(0.55, 0.9),
        liquid=rng.uniform(0.35, 0.8) if traits.enhancing else rng.uniform(0.0, 0.4),
    )


def _sites(rng: np.random.Generator, head: Head, traits: Traits) -> tuple[Point, ...]:
    """Return the centres: in the cerebrum, away from the midline, the base and the brainstem."""
    points = rng.uniform((-62, -70, -25), (62, 70, 55), (8000, 3)).astype(np.float32)
    depth_mm = bodies(points.T).cerebrum
    usable = np.abs(points[:, 0]) > 16
    low, high = EDGE_DEPTH_MM if traits.at_edge else INNER_DEPTH_MM
    main = points[usable & (depth_mm > low) & (depth_mm < high)][0]
    distance_mm = np.sqrt(np.sum((points - main) ** 2, axis=1))
    near = points[usable & (depth_mm > 12) & (distance_mm > 24) & (distance_mm < 38)]
    chosen = np.vstack([main, near[: traits.num_satellites]]) * np.array(head.stretch)
    return tuple((float(x), float(y), float(z)) for x, y, z in chosen)


def displaced(points: Field, glioma: Glioma) -> tuple[Field, Field]:
    """Return where `points`, (3, X, Y, Z), were before the tumour grew, and the swelling, 0..1."""
    centre = np.array(glioma.centres_mm[0], np.float32)[:, None, None, None]
    offset = points - centre
    distance_mm = np.sqrt(np.sum(offset**2, axis=0))
    relative = distance_mm / np.float32(glioma.radius_mm)
    swelling = np.exp(-((relative / np.float32(1.4)) ** 2))
    push_mm = np.float32(glioma.push_mm * 1.8) * relative * np.exp(-0.6 * relative**2)
    return points - offset / (distance_mm + np.float32(1e-3)) * push_mm, swelling


def grow(
    rng: np.random.Generator,
    grid: Grid,
    points: Field,
    glioma: Glioma,
    shares: Mapping[str, Field],
    cerebrum: Field,
) -> dict[str, Mask]:
    """Return the masks `necrotic_core`, `oedema` and `enhancing_tumour`, each (X, Y, Z), disjoint.

    The core grows in all directions, the oedema along white matter. Both stop at fluid and where
    the depth inside the `cerebrum` ends, and each is cut where it reaches its volume.
    """
    fluid = shares["csf"] + shares["vessel"]
    passable = (ndimage.uniform_filter(fluid, 3) < 0.45) & (cerebrum > 0)
    way_mm = np.where(passable, _core_distance(rng, grid, points, glioma), np.inf)
    core_mm = _level(way_mm, _num_voxels(glioma.volume_ml * glioma.core_share, grid))
    core = way_mm < core_mm
    spread = np.clip(way_mm - core_mm, 0, None) * _resistance(rng, grid, points, glioma, shares)
    spread = np.where(core, -np.inf, spread + _fingers(rng, grid))
    whole = spread < _level(spread, _num_voxels(glioma.volume_ml, grid))
    whole = ndimage.binary_opening(whole) | core
    ring = np.zeros_like(core)
    if glioma.enhancing:
        depth_mm = ndimage.distance_transform_edt(core) * grid.voxel_mm
        rim_mm = glioma.rim_mm * (1 + 0.55 * smooth_noise(rng, grid, wavelength_mm=22))
        rim_mm += 0.9 * smooth_noise(rng, grid, wavelength_mm=8)
        ring = core & (depth_mm < np.maximum(rim_mm, 0))
    return {"necrotic_core": core & ~ring, "oedema": whole & ~core, "enhancing_tumour": ring}


def _core_distance(rng: np.random.Generator, grid: Grid, points: Field, glioma: Glioma) -> Field:
    """Return the distance in mm from the nearest centre, made uneven as tumours are."""
    nearest = np.full(grid.shape, np.inf, np.float32)
    for number, centre in enumerate(glioma.centres_mm):
        square = np.zeros(grid.shape, np.float32)
        for axis_points, at, elongation in zip(points, centre, glioma.axes, strict=True):
            square += ((axis_points - np.float32(at)) / np.float32(elongation)) ** 2
        # Satellites are smaller: they start to grow later.
        nearest = np.minimum(nearest, np.sqrt(square) + (8 if number else 0))
    nearest += 3.5 * smooth_noise(rng, grid, wavelength_mm=30)
    nearest += 1.3 * smooth_noise(rng, grid, wavelength_mm=11)
    return nearest


def _resistance(
    rng: np.random.Generator, grid: Grid, points: Field, glioma: Glioma, shares: Mapping[str, Field]
) -> Field:
    """Return how much harder the oedema spreads than in open white matter, from about 1."""
    white = ndimage.gaussian_filter(shares["white"] + shares["gliosis"], 0.8 / grid.voxel_mm)
    deep = shares["deep_grey"] + shares["pallidum"]
    side = 1 if glioma.centres_mm[0][0] > 0 else -1
    beyond_mm = np.clip(-side * points[0], 0, None)
    tracts = np.exp(0.3 * smooth_noise(rng, grid, wavelength_mm=40))
    return tracts * (1 + 2.2 * (1 - white) + deep) + 0.15 * beyond_mm


def _fingers(rng: np.random.Generator, grid: Grid) -> Field:
    """Return by how many mm the oedema's front lags behind or runs ahead."""
    long = 5 * smooth_noise(rng, grid, wavelength_mm=32)
    return long + 2.5 * smooth_noise(rng, grid, wavelength_mm=13)


def _num_voxels(volume_ml: float, grid: Grid) -> int:
    return round(volume_ml * 1000 / grid.voxel_mm**3)


def _level(values: Real, count: int) -> float:
    """Return the level below which `count` of `values` lie."""
    return float(np.partition(values, count, axis=None)[count])


def invade(
    rng: np.random.Generator,
    grid: Grid,
    glioma: Glioma,
    masks: Mapping[str, Mask],
    shares: Mapping[str, Field],
) -> dict[str, Field]:
    """Return the tissue shares with the tumour in them, each (X, Y, Z), sum 1.

    Borders are soft, oedema leaves part of the tissue in place, and core and ring are uneven: their
    intensities overlap those of healthy tissue as they do in patients.
    """
    core_mask = masks["necrotic_core"] | masks["enhancing_tumour"]
    core = _soft(core_mask, grid)
    ring = np.minimum(_soft(masks["enhancing_tumour"], grid), core)
    wet = np.clip(glioma.wet + 0.15 * smooth_noise(rng, grid, wavelength_mm=18), 0.2, 1)
    wet *= _soft(masks["oedema"] | core_mask, grid) * (1 - core)
    mixed = {}
    for name, share in shares.items():
        mixed[name] = share * (1 - core) if name in FLUIDS else share * (1 - core - wet)
    mixed["oedema"] = wet * (1 - shares["csf"] - shares["vessel"])
    uneven = 0.3 * smooth_noise(rng, grid, wavelength_mm=16)
    uneven += 0.15 * smooth_noise(rng, grid, wavelength_mm=7)
    liquid = np.clip(glioma.liquid + uneven, 0, 1)
    uptake = np.clip(0.75 + 0.2 * smooth_noise(rng, grid, wavelength_mm=9), 0.2, 1)
    mixed["necrosis"] = (core - ring) * liquid
    mixed["enhancing"] = ring * uptake
    mixed["solid"] = (core - ring) * (1 - liquid) + ring * (1 - uptake)
    return mixed


def _soft(mask: Mask, grid: Grid) -> Field:
    """Return `mask` as a share with a border of about a millimetre and a half."""
    return ndimage.gaussian_filter(mask.astype(np.float32), 0.8 / grid.voxel_mm)
