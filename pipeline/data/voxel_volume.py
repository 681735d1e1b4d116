"""The volume of voxels and of regions, from the affine of their grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

MM3_PER_ML = 1000.0


def voxel_volume_mm3(affine: np.ndarray) -> float:
    """Return the volume of a voxel, which in a sheared grid is less than its edges' product.

    Args:
        affine: (4, 4), from voxels to millimetres.
    """
    return abs(float(np.linalg.det(affine[:3, :3])))


def voxel_volume_ml(affine: np.ndarray) -> float:
    """Return the volume of a voxel in millilitres; see `voxel_volume_mm3`."""
    return voxel_volume_mm3(affine) / MM3_PER_ML


def region_volumes_ml(
    classes: np.ndarray, *, regions: Mapping[str, Sequence[int]], affine: np.ndarray
) -> dict[str, float]:
    """Return the volume of each region in millilitres, to six decimals.

    Args:
        classes: class indices, of any shape.
        regions: the class indices of each region.
        affine: (4, 4), from voxels to millimetres.
    """
    voxel_ml = voxel_volume_ml(affine)
    counts = np.bincount(classes.ravel(), minlength=1 + max(map(max, regions.values())))
    return {
        region: round(int(counts[sorted(set(members))].sum()) * voxel_ml, 6)
        for region, members in regions.items()
    }
