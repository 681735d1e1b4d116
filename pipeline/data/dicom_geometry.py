"""From the slices of one DICOM series to a grid: their order, its affine, and what makes it none.

DICOM PS3.3 C.7.6.2.1.1 gives the position of a pixel: the first one's, plus column index x column
spacing along the row's direction, plus row index x row spacing along the column's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.data.dicom_headers import SliceHeader
from pipeline.data.reading import fault, judge_affine

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Decimal strings of six digits are usual, and some writers keep fewer.
DIRECTION_TOLERANCE = 1e-3  # of a unit vector's length and angle; they are then normalised
SAME_TOLERANCE = 1e-4  # between slices: 0.02 mm over a head for directions, and for spacing in mm
GAP_TOLERANCE_MM = 0.02  # scanners round positions to 0.01 mm
MAX_TILT_DEGREES = 0.2
GEOMETRY_REMEDY = "Export the whole series again from its source."


def order_slices(slices: Sequence[SliceHeader], *, name: str) -> list[SliceHeader]:
    """Return the slices in the order of the volume's Z axis.

    Z grows along the cross product of the directions of a row and of a column. Raises DataError for
    the folder `name`, of kind ``affine`` (a position, orientation or spacing that is missing or no
    number, or that differs between slices; a gantry tilt), ``dimensions`` (one slice; several
    images at one place) or ``missing-slices``.
    """
    for header in slices:
        _require_position(header, name)
    _require_same([header.orientation for header in slices], "orientation", name)
    _require_same([header.spacing_mm for header in slices], "pixel spacing", name)
    normal = np.cross(*_directions(slices[0], name))
    depths = np.array([normal @ header.position for header in slices])
    order = np.argsort(depths, kind="stable")
    ordered = [slices[index] for index in order]
    _judge_gaps(ordered, np.diff(depths[order]), name)
    _judge_tilt(ordered, normal, name)
    return ordered


def affine_of(ordered: Sequence[SliceHeader], *, name: str) -> np.ndarray:
    """Return the affine (4, 4) in RAS mm of the voxels (column, row, slice) of ordered slices."""
    first, last = ordered[0], ordered[-1]
    row, column = _directions(first, name)
    affine = np.eye(4)
    affine[:3, 0] = row * first.spacing_mm[0]
    affine[:3, 1] = column * first.spacing_mm[1]
    affine[:3, 2] = np.subtract(last.position, first.position) / (len(ordered) - 1)
    affine[:3, 3] = first.position
    affine = LPS_TO_RAS @ affine
    judge_affine(affine, name=name, remedy=GEOMETRY_REMEDY)
    return affine


def _require_position(header: SliceHeader, name: str) -> None:
    values = (*header.position, *header.orientation, *header.spacing_mm)
    lengths = tuple(map(len, (header.position, header.orientation, header.spacing_mm)))
    if lengths == (3, 6, 2) and np.all(np.isfinite(values)):
        return
    raise _affine_fault(
        name,
        expected="a position, an orientation and a pixel spacing in each slice",
        found=f"none, or no numbers, in the slice with instance number {header.instance}",
    )


def _require_same(values: Sequence[Sequence[float]], what: str, name: str) -> None:
    most = float(np.max(np.ptp(np.array(values), axis=0)))
    if most > SAME_TOLERANCE:
        raise _affine_fault(
            name,
            expected=f"one {what} in all slices",
            found=f"values that differ by up to {most:g} among {len(values)} slices",
        )


def _directions(header: SliceHeader, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit vectors (3) along a row and along a column."""
    row, column = np.array(header.orientation[:3]), np.array(header.orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    are_unit = np.allclose(lengths, 1, atol=DIRECTION_TOLERANCE)
    if are_unit and abs(row @ column) <= DIRECTION_TOLERANCE:
        return row / lengths[0], column / lengths[1]
    raise _affine_fault(
        name,
        expected="directions of row and column that are orthogonal unit vectors",
        found=f"({' '.join(f'{value:g}' for value in header.orientation)})",
    )


def _judge_gaps(ordered: Sequence[SliceHeader], gaps: np.ndarray, name: str) -> None:
    """Refuse slices unless the distances of neighbours, `gaps` in mm, are all the same."""
    if len(gaps) == 0:
        raise _dimensions_fault(name, "one slice")
    num_places = 1 + int(np.count_nonzero(gaps > GAP_TOLERANCE_MM))
    if num_places < len(ordered):
        raise _dimensions_fault(name, f"{len(ordered)} images at {num_places} places")
    usual = float(np.median(gaps))
    odd = np.flatnonzero(np.abs(gaps - usual) > GAP_TOLERANCE_MM)
    if len(odd) == 0:
        return
    shown = ", ".join(
        f"{gaps[index]:.2f} mm between the instance numbers {ordered[index].instance} and "
        f"{ordered[index + 1].instance}"
        for index in odd[:3]
    )
    raise fault(
        name,
        "missing-slices",
        expected=f"slices at equal distances, {usual:.2f} mm for most of the {len(ordered)}",
        found=f"{len(odd)} other distances: {shown}",
        remedy=GEOMETRY_REMEDY,
    )


def _judge_tilt(ordered: Sequence[SliceHeader], normal: np.ndarray, name: str) -> None:
    """Refuse slices that are stacked along another line than their normal."""
    way = np.subtract(ordered[-1].position, ordered[0].position)
    cosine = np.clip(normal @ way / np.linalg.norm(way), -1, 1)
    degrees = float(np.degrees(np.arccos(cosine)))
    if degrees > MAX_TILT_DEGREES:
        raise _affine_fault(
            name,
            expected="slices stacked at right angles to themselves",
            found=f"a tilt of {degrees:.1f} degrees (of the gantry)",
            remedy="Convert the series with a tool that corrects the tilt, such as dcm2niix.",
        )


def _affine_fault(
    name: str, *, expected: str, found: str, remedy: str = GEOMETRY_REMEDY
) -> Exception:
    return fault(name, "affine", expected=expected, found=found, remedy=remedy)


def _dimensions_fault(name: str, found: str) -> Exception:
    return fault(
        name,
        "dimensions",
        expected="one volume: two slices or more, each at a place of its own",
        found=found,
        remedy="Put the slices of one volume, and all of them, into a folder of their own.",
    )
