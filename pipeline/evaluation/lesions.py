"""Lesion-wise Dice, HD95 and F1, as BraTS 2023 defines them.

Whole-region scores hide a small lesion that was missed beside a large one that was found; here each
lesion counts the same, and so does each false one. Source: Saluja et al., "BraTS-2023-Metrics",
https://github.com/rachitsaluja/BraTS-2023-Metrics, whose steps are:

1. Lesions: the reference is dilated `dilation_voxels` times; reference voxels in one 26-connected
   component of the result are one lesion. Lesions whose dilations touch are one, therefore.
2. Predicted components: the 26-connected components of the prediction, not dilated.
3. Each lesion is dilated in the same way; every predicted component that touches this dilation
   belongs to the lesion, whole. A component may belong to several lesions.
4. A lesion's Dice and HD95 compare the union of its components with the lesion, undilated. A lesion
   without components is missed: Dice 0, HD95 374 mm.
5. A component that belongs to no lesion is a false lesion, however small: Dice 0, HD95 374 mm.
6. Lesions of at most `min_volume_mm3` are left out, found or missed; their components are still
   not false.
7. The scores are means over the lesions that are left and the false ones; with none of either,
   Dice is 1 and HD95 is 0 mm.

The defaults are those of the adult glioma challenge (3 dilations, 50 mm3); the paediatric and the
African one share them, meningioma takes 1 and 50, metastases 1 and 2. F1 follows from the counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cc3d
import numpy as np
from scipy import ndimage

from pipeline.data.boxes import bounding_box
from pipeline.evaluation.masks import require_masks
from pipeline.evaluation.surface import hd95_mm

MISSED_LESION_MM = 374.0
"""HD95 of a missed or a false lesion. The penalty of the whole-region HD95 is 373.13 mm: each is
the number that its BraTS evaluation uses."""

Box: TypeAlias = tuple[slice, ...]

# Neighbours that share a face or an edge.
_DILATION_ELEMENT = ndimage.generate_binary_structure(3, 2)
# Headers store 1 mm as 1.0000001 mm at times: that must not lift 50 voxels above 50 mm3.
_SPACING_ROUNDING = 1e-5


@dataclass(frozen=True)
class LesionScores:
    """The lesion-wise scores of one region of one case.

    Args:
        dice: Lesion-wise Dice, 0 to 1.
        hd95_mm: Lesion-wise HD95 in mm.
        f1: 2 found / (2 found + missed + false), 0 to 1; 1 where all three are 0.
        num_found: Reference lesions with a predicted component, those left out not counted.
        num_missed: Reference lesions without one, those left out not counted.
        num_false: Predicted components that belong to no reference lesion.
    """

    dice: float
    hd95_mm: float
    f1: float
    num_found: int
    num_missed: int
    num_false: int


DILATION_VOXELS = 3
MIN_VOLUME_MM3 = 50.0


@dataclass(frozen=True)
class Parts:
    """Parts of a mask: `labels` (X, Y, Z) is 1 to N, 0 outside; the rest is indexed by label."""

    labels: np.ndarray
    num_voxels: np.ndarray
    boxes: Sequence[Box]

    @classmethod
    def of_labels(cls, labels: np.ndarray) -> Parts:
        """Return the parts of labels (X, Y, Z), 1 to N and 0 outside."""
        statistics = cc3d.statistics(labels)
        return cls(
            labels=labels,
            num_voxels=statistics["voxel_counts"].astype(np.int64),
            boxes=statistics["bounding_boxes"],
        )

    @property
    def all(self) -> range:
        """The labels in use: 1 to N."""
        return range(1, len(self.num_voxels))


@dataclass(frozen=True)
class Matches:
    """The lesions of a reference, the components of a prediction, and which belong together.

    `components_of` has the labels of the components, ascending, of each lesion that has any.
    """

    lesions: Parts
    components: Parts
    components_of: dict[int, list[int]]

    def counts(self, label: int, *, voxel_mm3: float, min_volume_mm3: float) -> bool:
        """Tell whether a lesion is large enough for the scores."""
        volume_mm3 = float(self.lesions.num_voxels[label]) * voxel_mm3
        return volume_mm3 > min_volume_mm3 * (1 + _SPACING_ROUNDING)


def match_lesions(
    prediction: np.ndarray, reference: np.ndarray, *, dilation_voxels: int = DILATION_VOXELS
) -> Matches:
    """Return the lesions and components of two masks (X, Y, Z): steps 1 to 3.

    The masks may be cut to `occupied_box` of their union: their dilations need no margin.
    """
    components = Parts.of_labels(_connected(prediction))
    # A lesion's own dilation is the component of the dilated reference that it lies in: the steps
    # of a dilation are connected, and another lesion's never touch them. One dilation serves both.
    grown = _connected(_dilated(reference, dilation_voxels=dilation_voxels))
    lesions = Parts.of_labels(np.where(reference, grown, 0))
    return Matches(lesions, components, _touching(grown, components.labels))


def lesion_scores(
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    spacing_mm: Sequence[float],
    dilation_voxels: int = DILATION_VOXELS,
    min_volume_mm3: float = MIN_VOLUME_MM3,
) -> LesionScores:
    """Return the lesion-wise scores of one region; the module's docstring defines them.

    Args:
        prediction: Boolean mask (X, Y, Z).
        reference: Boolean mask (X, Y, Z).
        spacing_mm: Voxel size along X, Y, Z in mm.
        dilation_voxels: How many times lesions are dilated (18-neighbourhood), 0 or more.
        min_volume_mm3: Reference lesions of at most this volume are left out.

    Raises:
        ValueError: A mask is not boolean or no volume, the shapes differ, or `dilation_voxels` is
            negative.
    """
    _require_fitting(prediction, reference, dilation_voxels=dilation_voxels)
    box = occupied_box(prediction | reference)
    matched = match_lesions(prediction[box], reference[box], dilation_voxels=dilation_voxels)
    lesions, components, matches = matched.lesions, matched.components, matched.components_of
    limits = {"voxel_mm3": math.prod(spacing_mm), "min_volume_mm3": min_volume_mm3}
    kept = [label for label in lesions.all if matched.counts(label, **limits)]
    found = {label: matches[label] for label in kept if label in matches}
    absorbed = {component for members in matches.values() for component in members}
    return _summary(
        dices=_dices(lesions, components, found),
        distances_mm=_distances_mm(lesions, components, found, spacing_mm=spacing_mm),
        num_missed=len(kept) - len(found),
        num_false=len(components.all) - len(absorbed),
    )


def _require_fitting(
    prediction: np.ndarray, reference: np.ndarray, *, dilation_voxels: int
) -> None:
    require_masks(prediction, reference)
    if reference.ndim != 3 or reference.size == 0:
        raise ValueError(f"masks must be volumes (X, Y, Z), not {reference.shape}")
    if dilation_voxels < 0:
        raise ValueError(f"dilation_voxels must be 0 or more, not {dilation_voxels}")


def _summary(
    *, dices: Sequence[float], distances_mm: Sequence[float], num_missed: int, num_false: int
) -> LesionScores:
    """Return the scores, given Dice and HD95 of each found lesion."""
    num_found = len(dices)
    num_unmatched = num_missed + num_false
    total = num_found + num_unmatched
    return LesionScores(
        dice=sum(dices) / total if total else 1.0,
        hd95_mm=(sum(distances_mm) + MISSED_LESION_MM * num_unmatched) / total if total else 0.0,
        f1=2 * num_found / (num_found + total) if total else 1.0,
        num_found=num_found,
        num_missed=num_missed,
        num_false=num_false,
    )


def _dices(lesions: Parts, components: Parts, found: dict[int, list[int]]) -> list[float]:
    """Return the Dice of each found lesion, from counts alone."""
    # A predicted voxel within a lesion belongs to one of its components: they touch the lesion.
    overlap = np.bincount(lesions.labels[components.labels > 0], minlength=len(lesions.num_voxels))
    return [
        2.0
        * int(overlap[label])
        / int(lesions.num_voxels[label] + components.num_voxels[members].sum())
        for label, members in found.items()
    ]


def _distances_mm(
    lesions: Parts,
    components: Parts,
    found: dict[int, list[int]],
    *,
    spacing_mm: Sequence[float],
) -> list[float]:
    """Return the HD95 of each found lesion, taken in the box that holds it and its components."""
    distances_mm = []
    for label, members in found.items():
        box = _joint_box([lesions.boxes[label], *(components.boxes[part] for part in members)])
        predicted = np.isin(components.labels[box], members)
        true = lesions.labels[box] == label
        distances_mm.append(hd95_mm(predicted, true, spacing_mm=spacing_mm))
    return distances_mm


def _touching(grown: np.ndarray, components: np.ndarray) -> dict[int, list[int]]:
    """Return for each dilated lesion that is touched the labels of the components, ascending."""
    both = (grown > 0) & (components > 0)
    base = int(components.max(initial=0)) + 1
    pairs = np.unique(grown[both].astype(np.int64) * base + components[both])
    matches: dict[int, list[int]] = {}
    for pair in pairs.tolist():
        label, component = divmod(pair, base)
        matches.setdefault(label, []).append(component)
    return matches


def _connected(mask: np.ndarray) -> np.ndarray:
    """Return the 26-connected components of a boolean mask (X, Y, Z), numbered from 1."""
    return cc3d.connected_components(mask, connectivity=26)


def _dilated(mask: np.ndarray, *, dilation_voxels: int) -> np.ndarray:
    if dilation_voxels == 0:  # to SciPy, 0 iterations means "until nothing changes"
        return mask
    return ndimage.binary_dilation(mask, _DILATION_ELEMENT, iterations=dilation_voxels)


def occupied_box(mask: np.ndarray) -> Box:
    """Return the box around a mask.

    Dilations need no margin: their steps beyond a side of the box have the same neighbours as
    their projections on to that side, which are steps of the dilation too.
    """
    # cc3d has no statistics of no voxels: of an empty mask, one voxel is taken.
    return bounding_box(mask) if mask.any() else (slice(0, 1),) * mask.ndim


def _joint_box(boxes: Iterable[Box]) -> Box:
    """Return the smallest box that holds all of the given ones."""
    return tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*boxes, strict=True)
    )
