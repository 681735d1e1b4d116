"""Which prediction belongs to which case: the choice of cases, and the files in a folder.

By `os.path`, because `Path.exists` and the like raise where a folder cannot be entered.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.data.datalist import Case, DataList
from pipeline.data.prediction_files import (
    MASK_SUFFIX,
    OTHER_MASK_SUFFIX,
    PROBABILITIES,
    map_path,
    record_path,
)
from pipeline.data.selection import chosen_cases
from pipeline.errors import DataError, Problem, SettingsError

CHOICE_REMEDY = "--fold N evaluates one fold's cases only, --cases ID ... those that are named."


@dataclass(frozen=True)
class Pair:
    """A case, its reference and the files of its prediction; `provenance` need not exist."""

    case: Case
    reference: Path
    mask: Path
    probabilities: Path | None
    provenance: Path


@dataclass(frozen=True)
class Selection:
    """The cases to be evaluated, and in words which ones they are."""

    cases: tuple[Case, ...]
    description: str


def select_cases(
    datalist: DataList, *, fold: int | None = None, ids: Sequence[str] = ()
) -> Selection:
    """Return the validation cases of `fold`, else those named by `ids`, else every labelled case.

    Raises:
        SettingsError: An id is not in the list, or is given twice.
        DataError: There is no labelled case, or `split` refuses the fold.
    """
    cases = chosen_cases(datalist, fold=fold, ids=ids)
    if fold is not None:
        return Selection(cases, f"the validation cases of fold {fold}")
    if ids:
        return Selection(cases, "the cases that were named")
    labelled = tuple(case for case in cases if case.label is not None)
    if not labelled:
        raise DataError(
            f"{datalist.path.name}: expected labelled cases; found none. "
            "Without references there is nothing to compare predictions with."
        )
    return Selection(labelled, "every labelled case of the data list")


def find_pairs(folder: Path, cases: Sequence[Case]) -> list[Pair]:
    """Return the files of each case's prediction in `folder`, in the order of the cases.

    Raises:
        SettingsError: `folder` is not a folder, or cannot be entered.
        DataError: Cases have no reference, no prediction, or two; it lists all of them.
    """
    if not os.path.isdir(folder):  # noqa: PTH112
        raise SettingsError(f"{folder}: expected a folder of predictions; found no such folder.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise SettingsError(f"{folder}: cannot be entered. Check its permissions.")
    folder = folder.resolve()  # so that messages can name it even if it is given as "."
    found = [_pair_of(case, folder) for case in cases]
    problems = [item for item in found if isinstance(item, Problem)]
    if problems:
        raise DataError.of(*problems)
    return [item for item in found if isinstance(item, Pair)]


def _pair_of(case: Case, folder: Path) -> Pair | Problem:
    """Return the pair of `case`, or what is wrong: exactly one mask is right."""
    names = [f"{case.id}{suffix}" for suffix in (MASK_SUFFIX, OTHER_MASK_SUFFIX)]
    masks = [folder / name for name in names if os.path.isfile(folder / name)]  # noqa: PTH113
    fault = partial(Problem, case=case.id, file="")
    if case.label is None:
        return fault(
            kind="missing-label",
            expected="a label file to compare the prediction with",
            found="none in the data list",
            remedy="Add the label, or leave the case out.",
        )
    if len(masks) != 1:
        return fault(
            kind="two-predictions" if masks else "missing-prediction",
            expected=f"{' or '.join(names)} in {folder.name}",
            found="both" if masks else "neither",
            remedy="Remove the one that is not to be evaluated."
            if masks
            else f"Predict the case; none is left out silently. {CHOICE_REMEDY}",
        )
    if os.path.exists(case.label) and masks[0].samefile(case.label):  # noqa: PTH110
        return fault(
            kind="prediction-is-reference",
            expected=f"a prediction in {folder.name}",
            found=f"{masks[0].name}, the reference itself",
            remedy="Name the folder of the predictions.",
        )
    probabilities = map_path(folder, case.id, PROBABILITIES)
    return Pair(
        case=case,
        reference=case.label,
        mask=masks[0],
        probabilities=probabilities if os.path.isfile(probabilities) else None,  # noqa: PTH113
        provenance=record_path(folder, case.id),
    )
