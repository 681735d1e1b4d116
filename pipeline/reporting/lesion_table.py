"""A table of lesions: where each one is, how large, and whether the prediction found it.

Lesions and their matching are those of `pipeline.evaluation.lesions`, so the rows of a case add up
to its scores: those of the truth that are `found` or `missed`, those of the prediction that are
`false`. A lesion of the truth is what its dilation holds together; one of the prediction is a
26-connected component.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine

from pipeline.data.voxel_volume import MM3_PER_ML, voxel_volume_mm3
from pipeline.evaluation.lesions import MIN_VOLUME_MM3, Parts, match_lesions, occupied_box

TRUTH, PREDICTION = "truth", "prediction"
FOUND, MISSED, FALSE, NOT_COUNTED = "found", "missed", "false", "not counted"

# Spreadsheets take text that begins so for a formula, which may start programs.
_FORMULA_SIGNS = ("=", "+", "-", "@")


@dataclass(frozen=True)
class LesionRow:
    """One lesion of one region of one case; the columns of the table.

    Attributes:
        case: The case's id.
        region: The region's name.
        source: ``truth`` or ``prediction``.
        number: From 1, the largest first, for each case, region and source.
        volume_ml: Volume of its voxels in mL.
        centre_r_mm: Centre of gravity in RAS+ mm, to the patient's right.
        centre_a_mm: The same, to the front.
        centre_s_mm: The same, upwards.
        extent_r_mm: Size from left to right in mm, its voxels whole.
        extent_a_mm: Size from back to front in mm.
        extent_s_mm: Size from below to above in mm.
        status: Of the truth ``found`` or ``missed``, but ``not counted`` if it has at most 50 mm3,
            which the lesion-wise scores leave out; of the prediction ``found`` or ``false``. None
            where there is nothing to compare with.
    """

    case: str
    region: str
    source: str
    number: int
    volume_ml: float
    centre_r_mm: float
    centre_a_mm: float
    centre_s_mm: float
    extent_r_mm: float
    extent_a_mm: float
    extent_s_mm: float
    status: str | None


def lesion_rows(
    case: str,
    *,
    regions: Mapping[str, Sequence[int]],
    affine: np.ndarray,
    truth: np.ndarray | None = None,
    prediction: np.ndarray | None = None,
) -> list[LesionRow]:
    """Return the lesions of one case: by region, the truth's before the prediction's, by size.

    Args:
        case: The case's id.
        regions: The class indices that each region unites.
        affine: (4, 4), voxel -> RAS+ mm.
        truth: Class indices (X, Y, Z); None if there is none.
        prediction: The same.

    Raises:
        ValueError: The shapes differ.
    """
    if truth is not None and prediction is not None and truth.shape != prediction.shape:
        raise ValueError(
            f"truth {truth.shape} and prediction {prediction.shape} must have the same shape"
        )
    given = {TRUTH: truth, PREDICTION: prediction}
    volumes = {source: classes for source, classes in given.items() if classes is not None}
    rows = []
    for region, members in regions.items():
        masks = {
            source: np.isin(classes, np.asarray(members, dtype=classes.dtype))
            for source, classes in volumes.items()
        }
        if any(mask.any() for mask in masks.values()):
            rows += _region_rows(masks, case=case, region=region, affine=affine)
    return rows


def is_lesion_csv(path: Path) -> bool:
    """Tell whether a file begins as `lesion_csv` does: with the names of its columns."""
    header = lesion_csv([])
    try:
        with path.open("rb") as file:
            return file.read(len(header)) == header
    except OSError:
        return False


def lesion_csv(rows: Iterable[LesionRow]) -> bytes:
    """Return rows as CSV in UTF-8, None as an empty cell.

    Text that a spreadsheet would take for a formula has an apostrophe put before it.
    """
    stream = io.StringIO()
    names = [field.name for field in fields(LesionRow)]
    writer = csv.DictWriter(stream, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _inert(value) for name, value in asdict(row).items()})
    return stream.getvalue().encode()


def _region_rows(
    masks: Mapping[str, np.ndarray], *, case: str, region: str, affine: np.ndarray
) -> list[LesionRow]:
    """Return the rows of one region, of which at least one mask has a voxel."""
    box = occupied_box(np.logical_or.reduce(list(masks.values())))
    voxel_mm3 = voxel_volume_mm3(affine)
    parts, statuses = _lesions({source: mask[box] for source, mask in masks.items()}, voxel_mm3)
    rows = []
    for source, lesions in parts.items():
        by_size = sorted(lesions.all, key=lambda label: (-lesions.num_voxels[label], label))
        for number, label in enumerate(by_size, start=1):
            inner = lesions.boxes[label]
            start = [side.start + part.start for side, part in zip(box, inner, strict=True)]
            voxels = np.argwhere(lesions.labels[inner] == label) + start
            row = LesionRow(
                case=case,
                region=region,
                source=source,
                number=number,
                volume_ml=round(len(voxels) * voxel_mm3 / MM3_PER_ML, 6),
                **_place(voxels, affine),
                status=statuses.get((source, label)),
            )
            rows.append(row)
    return rows


def _lesions(
    masks: Mapping[str, np.ndarray], voxel_mm3: float
) -> tuple[dict[str, Parts], dict[tuple[str, int], str]]:
    """Return the lesions of each mask, and the status of each if both are there."""
    # Without the other mask, an empty one: it matches nothing.
    empty = np.zeros_like(next(iter(masks.values())))
    matched = match_lesions(masks.get(PREDICTION, empty), masks.get(TRUTH, empty))
    both = {TRUTH: matched.lesions, PREDICTION: matched.components}
    parts = {source: both[source] for source in both if source in masks}
    if len(parts) < 2:
        return parts, {}
    absorbed = {component for members in matched.components_of.values() for component in members}
    statuses = {}
    for label in matched.lesions.all:
        counts = matched.counts(label, voxel_mm3=voxel_mm3, min_volume_mm3=MIN_VOLUME_MM3)
        status = FOUND if label in matched.components_of else MISSED
        statuses[TRUTH, label] = status if counts else NOT_COUNTED
    for label in matched.components.all:
        statuses[PREDICTION, label] = FOUND if label in absorbed else FALSE
    return parts, statuses


def _place(voxels: np.ndarray, affine: np.ndarray) -> dict[str, float]:
    """Return centre and extent of voxels (N, 3) in mm, as columns of the table."""
    points = apply_affine(affine, voxels)
    # What one voxel covers along each axis of the scanner: oblique ones cover more than a side.
    one_voxel = np.abs(affine[:3, :3]).sum(axis=1)
    measures = {"centre": points.mean(axis=0), "extent": np.ptp(points, axis=0) + one_voxel}
    return {
        f"{name}_{axis}_mm": round(float(value), 3) + 0.0  # not -0.0
        for name, values in measures.items()
        for axis, value in zip("ras", values, strict=True)
    }


def _inert(value: Any) -> Any:
    """Return a cell that no spreadsheet computes."""
    is_formula = isinstance(value, str) and value.lstrip().startswith(_FORMULA_SIGNS)
    return f"'{value}" if is_formula else value
