"""The head of a phantom: what makes it an individual, and the brain's large parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.data.phantom_fields import (
    Field,
    Grid,
    ellipsoid_depth,
    smooth_noise,
    smooth_union,
    tube_depth,
)

# Left-right, front-back and bottom-top extent of the brain below, brainstem included, and the
# middle of that extent as seen from the origin of the anatomy (between the thalami).
BRAIN_EXTENT_MM = (141.0, 178.0, 143.0)
BRAIN_CENTRE_MM = (0.0, 0.0, -6.0)


@dataclass(frozen=True)
class Head:
    """What differs from one healthy head to another."""

    stretch: tuple[float, float, float]  # along X, Y and Z
    fissure_mm: float  # half width of the fissure between the hemispheres
    sulcus_mm: float  # half width of a sulcus near the surface
    ventricle: float  # radius of the ventricles, 1 being the average
    gliosis: float  # share of bright white matter beside the ventricles in FLAIR, 0..1

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Head:
        """Draw a head: old ones have wide sulci and ventricles, and scars in the white matter."""
        age = rng.uniform(0, 1)
        return cls(
            stretch=(rng.uniform(0.93, 1.0), rng.uniform(0.92, 1.0), rng.uniform(0.93, 1.0)),
            fissure_mm=0.3 + 0.6 * age,
            sulcus_mm=0.2 + 0.35 * age,
            ventricle=rng.uniform(0.75, 1.05) + 0.45 * age,
            gliosis=rng.uniform(0, 0.6) * age,
        )


@dataclass(frozen=True)
class Bodies:
    """Depth in mm inside the large parts of the brain (negative outside), each (X, Y, Z)."""

    cerebrum: Field
    cerebellum: Field
    brainstem: Field

    def whole(self) -> Field:
        """Return the depth inside the brain, its clefts bridged as skull-stripping tools do."""
        lower = smooth_union(self.cerebellum, self.brainstem, radius_mm=10)
        return smooth_union(self.cerebrum, lower, radius_mm=9)


def bodies(points: Field) -> Bodies:
    """Return the large parts of the average brain around `points`, (3, ...), in millimetres."""
    x, y, z = points
    # Narrow at the forehead, widest above the ears, a little narrower again at the back.
    width = 1 - 0.2 * np.clip(-y / 88, 0, 1) ** 2 - 0.08 * np.clip(y / 88, 0, 1) ** 2
    upper = ellipsoid_depth((x / width, y, z), (0, 0, 4), (70, 88, 61))
    lower = ellipsoid_depth((x / width, y, z), (0, 0, 4), (70, 88, 31))
    temporal = ellipsoid_depth((np.abs(x), y + 0.3 * z, z), (41, -13, -23), (20, 42, 25))
    cerebrum = smooth_union(np.where(z > 4, upper, lower), temporal, radius_mm=8)
    # Two hemispheres with the vermis between them, under a roof that slopes to the back.
    halves = (np.sqrt(x**2 + 16), y, z + 0.25 * (y - 46))
    cerebellum = ellipsoid_depth(halves, (20, 46, -42), (33, 32, 26))
    stem = tube_depth(points, ((0, 4, -8, 18), (0, 6, -24, 15), (0, 12, -52, 11), (0, 19, -70, 8)))
    brainstem = smooth_union(stem, ellipsoid_depth(points, (0, 2, -35), (20, 15, 16)), radius_mm=6)
    # The tentorium: a layer of CSF parts the cerebrum from what lies below.
    below = np.maximum(cerebellum, ellipsoid_depth(points, (0, 46, -62), (60, 44, 40)))
    return Bodies(np.minimum(cerebrum, -0.8 - below), cerebellum, brainstem)


def roughened(rng: np.random.Generator, grid: Grid, parts: Bodies) -> Bodies:
    """Return `parts` with the gentle bumps that no ellipsoid has, by about a millimetre."""
    bumps = 1.2 * smooth_noise(rng, grid, wavelength_mm=36)
    bumps += 0.5 * smooth_noise(rng, grid, wavelength_mm=13)
    return Bodies(parts.cerebrum + bumps, parts.cerebellum + bumps, parts.brainstem + bumps)
