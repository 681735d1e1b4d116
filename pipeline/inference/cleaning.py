"""Cleaning of a segmentation: holes, specks, and enhancing tumours too small to be believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import cc3d
import numpy as np
from scipy import ndimage

from pipeline.data.boxes import bounding_box
from pipeline.data.voxel_volume import MM3_PER_ML

ENHANCING = "ET"


def clean_classes(
    classes: np.ndarray,
    *,
    regions: Mapping[str, Sequence[int]],
    spacing_mm: Sequence[float],
    fill_holes: bool = False,
    largest_component: bool = False,
    min_component_ml: float | None = None,
    min_et_volume_ml: float | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Return a cleaned copy of `classes`, and what was changed, in words.

    The steps come in the order of the arguments, each off by default; cleaning what is clean
    changes nothing. Tumour is every class above 0.

    Args:
        classes: Class indices, uint8 (X, Y, Z).
        regions: For each region the class indices that it unites.
        spacing_mm: Edges of a voxel along X, Y, Z.
        fill_holes: Background that tumour encloses (no path over faces to the volume's border)
            takes the class of the nearest tumour voxel, in mm.
        largest_component: Of the whole tumour only the largest component stays (voxels that touch,
            be it by a corner, belong together); of equal ones the first in the order of the
            array's indices.
        min_component_ml: Components of the whole tumour with less volume than this become
            background; the largest one stays whatever its size.
        min_et_volume_ml: An enhancing tumour of less volume than this becomes what else the
            smallest region around it holds: the necrotic core, where regions are those of BraTS.

    Raises:
        ValueError: `classes` is not uint8 (X, Y, Z), a smallest volume is not above 0, or that of
            the enhancing tumour is asked for where the regions do not say what it is to become.
    """
    if classes.ndim != 3 or classes.dtype != np.uint8:
        raise ValueError(
            f"classes must be uint8 (X, Y, Z); found {classes.dtype} {tuple(classes.shape)}"
        )
    if min_et_volume_ml is not None:
        _check_et_settings(min_et_volume_ml, regions)
    if min_component_ml is not None and not min_component_ml > 0:
        raise ValueError(f"the smallest component must be above 0 mL; found {min_component_ml}")
    # In C order, whatever the input's: cc3d numbers components in the order of memory.
    cleaned = classes.copy(order="C")
    tumour = cleaned[bounding_box(cleaned > 0)]  # a view: what is written into it is in `cleaned`
    changes: list[str] = []
    if tumour.size == 0:
        return cleaned, changes
    voxel_ml = prod(spacing_mm) / MM3_PER_ML
    if fill_holes:
        changes += _fill_holes(tumour, spacing_mm=spacing_mm, voxel_ml=voxel_ml)
    if largest_component:
        changes += _keep_largest_component(tumour, voxel_ml=voxel_ml)
    if min_component_ml is not None:
        changes += _drop_small_components(tumour, min_volume_ml=min_component_ml, voxel_ml=voxel_ml)
    if min_et_volume_ml is not None:
        changes += _drop_small_et(
            tumour, regions=regions, min_volume_ml=min_et_volume_ml, voxel_ml=voxel_ml
        )
    return cleaned, changes


def _fill_holes(classes: np.ndarray, *, spacing_mm: Sequence[float], voxel_ml: float) -> list[str]:
    """Fill enclosed background in the tumour's box, in place.

    Background at the faces of that box is not enclosed: beyond them is background up to the
    volume's border, or the border itself.
    """
    holes = ndimage.binary_fill_holes(classes > 0) & (classes == 0)
    num_voxels = int(holes.sum())
    if num_voxels == 0:
        return []
    # One voxel around the holes is enough: whatever lies further off is further off than the
    # tumour in front of it. A hole never reaches a face, so that there is always one voxel more.
    x, y, z = (slice(edge.start - 1, edge.stop + 1) for edge in bounding_box(holes))
    classes, holes = classes[x, y, z], holes[x, y, z]
    nearest = ndimage.distance_transform_edt(
        classes == 0, sampling=spacing_mm, return_distances=False, return_indices=True
    )
    classes[holes] = classes[tuple(index[holes] for index in nearest)]
    return [f"holes: {_amount(num_voxels, voxel_ml)} of enclosed background filled"]


def _keep_largest_component(classes: np.ndarray, *, voxel_ml: float) -> list[str]:
    """Turn all components but the largest into background, in place."""
    return _keep_components(
        classes, lambda sizes: sizes > sizes.max(), voxel_ml=voxel_ml, step="largest component"
    )


def _drop_small_components(
    classes: np.ndarray, *, min_volume_ml: float, voxel_ml: float
) -> list[str]:
    """Turn components below the limit into background, the largest one excepted, in place."""
    return _keep_components(
        classes,
        lambda sizes: sizes * voxel_ml >= min_volume_ml,
        voxel_ml=voxel_ml,
        step=f"smallest component, {min_volume_ml:g} mL",
    )


def _keep_components(
    classes: np.ndarray,
    large_enough: Callable[[np.ndarray], np.ndarray],
    *,
    voxel_ml: float,
    step: str,
) -> list[str]:
    """Turn what is not `large_enough`, by sizes in voxels, into background, but never the largest.

    Of equal ones, the first is the largest.
    """
    labels, num_components = cc3d.connected_components(classes > 0, connectivity=26, return_N=True)
    sizes = np.bincount(labels.ravel())[1:]
    stays = large_enough(sizes)
    stays[sizes.argmax()] = True
    if stays.all():
        return []
    classes[~np.concatenate(([True], stays))[labels]] = 0
    return [
        f"{step}: kept {stays.sum()} of {num_components} components; "
        f"{_amount(int(sizes[~stays].sum()), voxel_ml)} became background"
    ]


def _drop_small_et(
    classes: np.ndarray,
    *,
    regions: Mapping[str, Sequence[int]],
    min_volume_ml: float,
    voxel_ml: float,
) -> list[str]:
    """Give an enhancing tumour below the limit the class of what is around it, in place."""
    enhancing = np.isin(classes, list(regions[ENHANCING]))
    num_voxels = int(enhancing.sum())
    if num_voxels == 0 or num_voxels * voxel_ml >= min_volume_ml:
        return []
    (replacement,) = _besides_et(regions)
    classes[enhancing] = replacement
    return [
        f"smallest ET volume: {_amount(num_voxels, voxel_ml)} of ET, less than "
        f"{min_volume_ml:g} mL, became class {replacement}"
    ]


def _besides_et(regions: Mapping[str, Sequence[int]]) -> set[int]:
    """Return the classes that the smallest region around ET has besides it."""
    enhancing = set(regions.get(ENHANCING, ()))
    around = [set(classes) - enhancing for classes in regions.values() if enhancing < set(classes)]
    return min(around, key=len, default=set())


def _check_et_settings(min_volume_ml: float, regions: Mapping[str, Sequence[int]]) -> None:
    """Raise before any work, so that wrong settings fail with the first case, not a later one."""
    if not min_volume_ml > 0:
        raise ValueError(f"the smallest ET volume must be above 0 mL; found {min_volume_ml}")
    if not regions.get(ENHANCING) or len(_besides_et(regions)) != 1:
        found = {name: tuple(classes) for name, classes in regions.items()}
        raise ValueError(
            f"a smallest ET volume needs a region {ENHANCING}, and around it one with a single "
            f"class more, which too small an ET becomes; found the regions {found}"
        )


def _amount(num_voxels: int, voxel_ml: float) -> str:
    return f"{num_voxels} voxels ({num_voxels * voxel_ml:.3f} mL)"
