"""HD95 and the largest component: MONAI against ours, on a real mask at full size."""

from __future__ import annotations

import warnings
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from monai.transforms.utils import get_largest_connected_component_mask, has_measure
from scipy import ndimage

from benchmarks.data import benchmark_cases
from benchmarks.measure import Comparison, compare
from pipeline.evaluation.surface import hd95_mm
from pipeline.inference.cleaning import clean_classes

SPACING_MM = (1.0, 1.0, 1.0)
SHIFT_VOXELS = 2
NUM_SPECKS = 12
SPECK_VOXELS = 3
REGIONS = {"WT": (1, 2, 3)}
DEFINITION = (
    "the definitions differ: MONAI takes the 95th percentile over voxels at the edge, ours (that "
    "of DeepMind's surface-distance) lies between voxels and is weighted by area"
)


def run(*, repeats: int) -> list[Comparison]:
    """Compare HD95 of a disturbed mask, and the largest component of one with specks."""
    (case,), words = benchmark_cases(1)
    # In C order, like what a network gives.
    mask = np.ascontiguousarray(np.asarray(nib.load(case.label).dataobj) > 0)
    shifted = np.roll(mask, SHIFT_VOXELS, axis=1)
    eroded = ndimage.binary_erosion(mask, iterations=SHIFT_VOXELS)
    options: dict[str, Any] = {"data": f"the whole tumour of {words}", "repeats": repeats}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI calls itself by an old name
        return [
            _hd95(mask, shifted, f"moved by {SHIFT_VOXELS} voxels", **options),
            _hd95(mask, eroded, f"eroded {SHIFT_VOXELS} times", **options),
            _largest_component(mask, **options),
        ]


def _hd95(
    mask: np.ndarray, disturbed: np.ndarray, what: str, *, data: str, repeats: int
) -> Comparison:
    predicted, true = (torch.from_numpy(each)[None, None] for each in (disturbed, mask))

    def reference() -> float:
        found = compute_hausdorff_distance(
            predicted, true, include_background=True, percentile=95, spacing=SPACING_MM
        )
        return float(found)

    def ours() -> float:
        return hd95_mm(disturbed, mask, spacing_mm=SPACING_MM)

    def same(theirs: float, mine: float) -> str:
        # Half the diagonal of a voxel on either side is what the two surfaces can be apart.
        assert abs(theirs - mine) <= np.linalg.norm(SPACING_MM)
        return f"MONAI {theirs:.3f} mm, ours {mine:.3f} mm, less than a voxel's diagonal apart"

    return compare(
        "C10",
        f"HD95 of a mask and itself {what}",
        reference=("MONAI compute_hausdorff_distance", reference),
        ours=("hd95_mm", ours),
        same=same,
        goal=1 / 2.5,
        data=data,
        repeats=repeats,
        notes=(DEFINITION,),
    )


def _largest_component(mask: np.ndarray, *, data: str, repeats: int) -> Comparison:
    classes = _with_specks(mask).astype(np.uint8)

    def ours() -> np.ndarray:
        cleaned, changes = clean_classes(
            classes, regions=REGIONS, spacing_mm=SPACING_MM, largest_component=True
        )
        assert len(changes) == 1
        return cleaned

    def same(theirs: np.ndarray, mine: np.ndarray) -> str:
        np.testing.assert_array_equal(theirs, mine > 0)
        return "the same mask"

    reference = ("MONAI get_largest_connected_component_mask", _monai_largest)
    notes: tuple[str, ...] = ("ours returns class indices, and says in words what it removed",)
    if not has_measure:
        reference = ("ndimage.label", _scipy_largest)
        notes += ("scikit-image, which MONAI needs for this, is missing: SciPy in its place",)
    return compare(
        "C10",
        "largest component of a mask with specks",
        reference=(reference[0], lambda: reference[1](classes)),
        ours=("clean_classes", ours),
        same=same,
        goal=1 / 6,
        data=data,
        repeats=repeats,
        notes=notes,
    )


def _monai_largest(classes: np.ndarray) -> np.ndarray:
    return np.asarray(get_largest_connected_component_mask(classes > 0, connectivity=3))


def _scipy_largest(classes: np.ndarray) -> np.ndarray:
    components, _ = ndimage.label(classes > 0, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return np.asarray(components == sizes.argmax())


def _with_specks(mask: np.ndarray) -> np.ndarray:
    """Return the mask with some small cubes far and near, which a network may leave behind."""
    random = np.random.default_rng(0)
    result = mask.copy()
    for corner in random.integers(40, 110, (NUM_SPECKS, 3)):
        result[tuple(slice(start, start + SPECK_VOXELS) for start in corner)] = True
    return result
