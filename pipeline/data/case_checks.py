"""What can be wrong with one case that could be read: one function per fault, listed in CHECKS."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    io_orientation,
    ornt_transform,
)

from pipeline.data.content import CaseContent, grid_problems, nonfinite_problems
from pipeline.data.contrast import MARGIN, tail_ratio
from pipeline.errors import Problem
from transforms.geometry import ORIENTATION, border_slices

MAX_HISTOGRAM_VALUES = 10

Margins = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Expectations:
    """What a case is held against, besides what its `Case` says.

    `border_crop` are the margins ((start, end) per axis, in `ORIENTATION`) that preprocessing will
    remove, or None; `modalities` and `label_names` are the data list's, empty if unknown;
    `mask_nonfinite` says that NaN and infinite intensities are taken for 0.
    """

    border_crop: Margins | None = None
    modalities: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    mask_nonfinite: bool = False


Check = Callable[[CaseContent, Expectations], list[Problem]]


def check_modalities(content: CaseContent, expectations: Expectations) -> list[Problem]:
    """Report a 4D file that does not hold one volume per modality."""
    names = expectations.modalities
    if not names or len(content.case.images) > 1 or len(content.images) in (0, len(names)):
        return []
    return [
        _problem(
            content,
            kind="modalities",
            file=content.case.images[0].name,
            expected=f"{len(names)} volumes ({', '.join(names)})",
            found=f"{len(content.images)}",
            remedy="Write all modalities into the file, in this order, or correct the data list.",
        )
    ]


def check_grid(content: CaseContent, expectations: Expectations) -> list[Problem]:
    """Report files that are not on one grid."""
    return grid_problems(content)


def check_finite(content: CaseContent, expectations: Expectations) -> list[Problem]:
    """Report NaN and infinite intensities: an error, a warning where they are taken for 0."""
    return nonfinite_problems(content)


def check_constant(content: CaseContent, expectations: Expectations) -> list[Problem]:
    """Report images with one intensity everywhere: a warning, an error if no image has contrast."""
    constant = [image for image in content.images if image.is_constant]
    is_hopeless = len(constant) == len(content.images)
    return [
        Problem(
            case=content.case.id,
            kind="constant-image",
            file=image.name,
            expected="more than one intensity",
            found=f"{image.volume.flat[0]:g} in every voxel"
            + (", as in all modalities" if is_hopeless else ""),
            remedy="Export the image again; as it is, it becomes all 0.",
            severity="error" if is_hopeless else "warning",
        )
        for image in constant
    ]


def check_label_values(content: CaseContent, expectations: Expectations) -> list[Problem]:
    """Report label values that the case's coding does not have, or that stand for another."""
    if content.label is None:
        return []
    label, values = content.label.volume, content.case.label_values
    known = np.zeros(label.shape, dtype=bool)
    for value in values:
        known |= label == value  # ten times faster than np.isin
    histogram = _histogram(label[~known])
    if not histogram:
        return []
    missing = [value for value in values[1:] if not np.any(label == value)]
    if len(histogram) == 1 and missing:
        (unknown,) = histogram
        instead = min(missing, key=lambda value: abs(value - unknown))
        return [_coding_problem(content, expectations, unknown=unknown, instead=instead)]
    return [
        _problem(
            content,
            kind="label-values",
            file=content.label.name,
            expected=f"the values {', '.join(map(str, values))}",
            found=_describe(histogram),
            remedy="Correct the mask, or `labels` in the data list.",
        )
    ]


def check_border_crop(content: CaseContent, expectations: Expectations) -> list[Problem]:
    """Warn of tumour voxels that the border crop removes, with the Dice that stays possible."""
    label, margins = content.label, expectations.border_crop
    if label is None or margins is None:
        return []
    to_ours = ornt_transform(io_orientation(label.affine), axcodes2ornt(tuple(ORIENTATION)))
    tumour = apply_orientation(label.volume != content.case.label_values[0], to_ours)
    try:
        kept = tumour[border_slices(tumour.shape, margins)]
    except ValueError as error:
        return [
            _problem(
                content,
                kind="border-crop",
                file=label.name,
                expected="a volume larger than the border crop",
                found=str(error),
                remedy="Choose smaller margins, or none, for this dataset.",
            )
        ]
    num_all, num_kept = int(np.count_nonzero(tumour)), int(np.count_nonzero(kept))
    if num_kept == num_all:
        return []
    # The best prediction is everything that is left: Dice = 2 |kept| / (|kept| + |all|).
    ceiling = 2 * num_kept / (num_kept + num_all)
    return [
        Problem(
            case=content.case.id,
            kind="tumour-cropped",
            file=label.name,
            expected="no tumour within the border crop's margins",
            found=f"{num_all - num_kept} of {num_all} tumour voxels are lost: "
            f"the whole tumour's Dice can reach {ceiling:.4f} at most",
            remedy="Choose smaller margins if this matters.",
            severity="warning",
        )
    ]


def check_same_content(content: CaseContent, expectations: Expectations) -> list[Problem]:
    """Report images of the case that hold the same voxels."""
    first_with: dict[str, str] = {}
    problems = []
    for image in content.images:
        first = first_with.setdefault(image.digest, image.name)
        if first != image.name and not image.is_constant:
            problems.append(
                _problem(
                    content,
                    kind="same-content",
                    file=image.name,
                    expected="a modality of its own",
                    found=f"the same voxels as {first}",
                    remedy="Put the right file in its place.",
                )
            )
    return problems


def check_swapped(content: CaseContent, expectations: Expectations) -> list[Problem]:
    """Warn of T1 and contrast-enhanced T1 that look exchanged (`pipeline.data.contrast`)."""
    by_name = dict(zip(expectations.modalities, content.images, strict=False))
    is_complete = len(expectations.modalities) == len(content.images)
    if not is_complete or "t1" not in by_name or "t1ce" not in by_name:
        return []
    t1, t1ce = by_name["t1"], by_name["t1ce"]
    ratio = tail_ratio(t1.volume, t1ce.volume) if t1.volume.shape == t1ce.volume.shape else None
    if ratio is None or ratio * MARGIN >= 1:
        return []
    return [
        Problem(
            case=content.case.id,
            kind="modalities-swapped",
            file=t1ce.name,
            expected=f"bright vessels or tumour in t1ce rather than in t1 ({t1.name})",
            found=f"a bright tail {1 / ratio:.1f} times as long in t1: the two may be exchanged",
            remedy="Look at both; exchange their names in the data list if they are.",
            severity="warning",
        )
    ]


# A new fault is one function here, and one line.
CHECKS: tuple[Check, ...] = (
    check_modalities,
    check_grid,
    check_finite,
    check_constant,
    check_label_values,
    check_border_crop,
    check_same_content,
    check_swapped,
)


def _problem(
    content: CaseContent, *, kind: str, file: str, expected: str, found: str, remedy: str
) -> Problem:
    return Problem(
        case=content.case.id,
        kind=kind,
        file=file,
        expected=expected,
        found=found,
        remedy=remedy,
    )


def _coding_problem(
    content: CaseContent, expectations: Expectations, *, unknown: int, instead: int
) -> Problem:
    """Name the label that has another value here than in the list, as in BraTS before 2023."""
    values, names = content.case.label_values, expectations.label_names
    label = names[values.index(instead)] if names else f"label {values.index(instead)}"
    file = content.label.name if content.label else ""
    return _problem(
        content,
        kind="label-coding",
        file=file,
        expected=f"{label} coded {instead}, as the data list says",
        found=f"no {instead}, but {unknown}: {label} seems to be coded {unknown}",
        remedy=f"State {label} = {unknown} in the `labels` of this case in the data list.",
    )


def _histogram(values: np.ndarray) -> dict[int, int]:
    """Return the number of voxels of each value, most frequent first."""
    found, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {int(found[index]): int(counts[index]) for index in order}


def _describe(histogram: Mapping[int, int]) -> str:
    shown = list(histogram.items())[:MAX_HISTOGRAM_VALUES]
    parts = [f"{value} in {count} voxels" for value, count in shown]
    if len(histogram) > MAX_HISTOGRAM_VALUES:
        parts.append(f"and {len(histogram) - MAX_HISTOGRAM_VALUES} other values")
    return "also " + ", ".join(parts)
