"""Checking a whole data list before anything is computed: every case, every problem, at once."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from pipeline.data.case_checks import CHECKS, Expectations, Margins
from pipeline.data.case_report import CaseReport
from pipeline.data.content import read_content
from pipeline.data.datalist import Case, DataList
from pipeline.data.digest_file import DigestFile
from pipeline.errors import Problem

MAX_WORKERS = 8  # each holds one case: about 150 MB for 240 x 240 x 155 voxels


CohortCheck = Callable[[DataList, Sequence[CaseReport]], list[Problem]]


def check_case(case: Case, *, border_crop: Margins | None = None) -> list[Problem]:
    """Read all files of `case` and return everything that is wrong with them, errors first.

    `border_crop`: margins ((start, end) for X, Y, Z in LPS) in which tumour would be lost.
    """
    return examine_case(case, Expectations(border_crop=border_crop)).problems


def check_datalist(
    datalist: DataList,
    *,
    border_crop: Margins | None = None,
    mask_nonfinite: bool = False,
    known: DigestFile | None = None,
    num_workers: int | None = None,
    on_progress: Callable[[Case], None] | None = None,
) -> list[Problem]:
    """Check every case of all sections, then the cases against each other; errors come first.

    `mask_nonfinite` accepts NaN and infinite intensities, with a warning. What `known` remembers
    of cases that have not changed is taken for what reading them would give, and what is read is
    added to it; the result is the same. `num_workers` threads (None: one per processor, 8 at most)
    hold one case each; threads serve as well as processes because inflating, hashing and array
    arithmetic release the interpreter's lock. `on_progress` is called in this thread after each
    case, in the list's order.
    """
    expectations = Expectations(
        border_crop=border_crop,
        modalities=datalist.modalities,
        label_names=tuple(datalist.labels),
        mask_nonfinite=mask_nonfinite,
    )

    def examine(case: Case) -> CaseReport:
        if known is None:
            return examine_case(case, expectations)
        return examine_unless_known(case, expectations, known=known)

    reports = []
    executor = ThreadPoolExecutor(num_workers or min(os.cpu_count() or 1, MAX_WORKERS))
    try:
        for report in executor.map(examine, _cases(datalist)):
            reports.append(report)
            if on_progress is not None:
                on_progress(report.case)
    finally:
        executor.shutdown(cancel_futures=True)  # an interruption does not wait for all cases
    problems = [problem for report in reports for problem in report.problems]
    for check in COHORT_CHECKS:
        problems += check(datalist, reports)
    return errors_first(problems)


def examine_case(case: Case, expectations: Expectations) -> CaseReport:
    """Read `case` and run all `CHECKS`; a file that cannot be read is left out of them."""
    content, problems = read_content(
        case, labels=case.label is not None, mask_nonfinite=expectations.mask_nonfinite
    )
    for check in CHECKS:
        problems += check(content, expectations)
    digests = {image.name: image.digest for image in content.images if not image.is_constant}
    return CaseReport(case, errors_first(problems), digests)


def examine_unless_known(
    case: Case, expectations: Expectations, *, known: DigestFile
) -> CaseReport:
    """Return what `known` remembers of the case, or `examine_case` and have it remembered."""
    held_against = asdict(expectations)
    state = known.state_of(case, expectations=held_against)
    recalled = known.recall(case, state)
    if recalled is not None:
        return recalled
    report = examine_case(case, expectations)
    # What changed while it was read may have been read half old, half new.
    is_same = known.state_of(case, expectations=held_against) == state
    known.remember(report, state if is_same else None)
    return report


def errors_first(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems with the errors before the warnings, else in their order."""
    return sorted(problems, key=lambda problem: problem.severity != "error")


def check_subjects(datalist: DataList, reports: Sequence[CaseReport]) -> list[Problem]:
    """Report subjects in two folds, or both in training and in validation or testing."""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for section in ("training", "validation", "testing"):
        for case in getattr(datalist, section):
            has_fold = section == "training" and case.fold is not None
            places[case.subject][case.id] = f"fold {case.fold}" if has_fold else section
    return [
        Problem(
            case=", ".join(place_of),
            kind="subject-leak",
            file="",
            expected=f"all cases of subject {subject} in one fold or section",
            found=", ".join(f"{case} in {place}" for case, place in place_of.items()),
            remedy="Move them into one; scores on a subject that was trained on mean nothing.",
        )
        for subject, place_of in places.items()
        if len(set(place_of.values())) > 1
    ]


def check_duplicates(datalist: DataList, reports: Sequence[CaseReport]) -> list[Problem]:
    """Report cases that hold an image with the same voxels as an earlier case."""
    first_with: dict[str, tuple[str, str]] = {}
    problems = []
    for report in reports:
        same: dict[str, list[str]] = defaultdict(list)
        for file, digest in report.digests.items():
            case, first_file = first_with.setdefault(digest, (report.case.id, file))
            if case != report.case.id:
                same[case].append(f"{file} = {first_file}")
        problems += [
            Problem(
                case=report.case.id,
                kind="duplicate-case",
                file="",
                expected="images that no other case has",
                found=f"the same voxels as case {case}: {', '.join(files)}",
                remedy="Remove one of the two cases, or put the right files in its place.",
            )
            for case, files in same.items()
        ]
    return problems


COHORT_CHECKS: tuple[CohortCheck, ...] = (check_subjects, check_duplicates)


def _cases(datalist: DataList) -> tuple[Case, ...]:
    return datalist.training + datalist.validation + datalist.testing
