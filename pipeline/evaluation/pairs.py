"""Which prediction belongs to which case: the choice of cases, and the files in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.data.datalist import Case, DataList
from pipeline.errors import DataError, Problem, SettingsError

MASK_NAMES = ("{case}_seg.nii.gz", "{case}.nii.gz")
PROBABILITIES_NAME = "{case}_probabilities.nii.gz"
PROVENANCE_NAME = "{case}.json"
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
    if fold is not None:
        return Selection(datalist.split(fold)[1], f"the validation cases of fold {fold}")
    every = (*datalist.training, *datalist.validation, *datalist.testing)
    if ids:
        return Selection(_named(every, ids, datalist), "the cases that were named")
    labelled = tuple(case for case in every if case.label is not None)
    if not labelled:
        raise DataError(
            f"{datalist.path.name}: expected labelled cases; found none. "
            "Without references there is nothing to compare predictions with."
        )
    return Selection(labelled, "every labelled case of the data list")


def find_pairs(folder: Path, cases: Sequence[Case]) -> list[Pair]:
    """Return the files of each case's prediction in `folder`, in the order of the cases.

    Raises:
        SettingsError: `folder` is not a folder.
        DataError: Cases have no reference, no prediction, or two; it lists all of them.
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder}: expected a folder of predictions; found no such folder.")
    folder = folder.resolve()  # so that messages can name it even if it is given as "."
    found = [_pair_of(case, folder) for case in cases]
    problems = [item for item in found if isinstance(item, Problem)]
    if problems:
        raise DataError.of(*problems)
    return [item for item in found if isinstance(item, Pair)]


def _named(every: Sequence[Case], ids: Sequence[str], datalist: DataList) -> tuple[Case, ...]:
    by_id = {case.id: case for case in every}
    unknown = sorted(set(ids) - set(by_id))
    if unknown:
        raise SettingsError(
            f"--cases: expected ids of {datalist.path.name}; found also {', '.join(unknown)}."
        )
    repeated = sorted(case for case, count in Counter(ids).items() if count > 1)
    if repeated:
        raise SettingsError(f"--cases: expected each id once; found again {', '.join(repeated)}.")
    return tuple(by_id[name] for name in ids)


def _pair_of(case: Case, folder: Path) -> Pair | Problem:
    """Return the pair of `case`, or what is wrong: exactly one mask is right."""
    names = [name.format(case=case.id) for name in MASK_NAMES]
    masks = [folder / name for name in names if (folder / name).is_file()]
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
    if case.label.exists() and masks[0].samefile(case.label):
        return fault(
            kind="prediction-is-reference",
            expected=f"a prediction in {folder.name}",
            found=f"{masks[0].name}, the reference itself",
            remedy="Name the folder of the predictions.",
        )
    probabilities = folder / PROBABILITIES_NAME.format(case=case.id)
    return Pair(
        case=case,
        reference=case.label,
        mask=masks[0],
        probabilities=probabilities if probabilities.is_file() else None,
        provenance=folder / PROVENANCE_NAME.format(case=case.id),
    )
