"""The integrity check as users see it: what it will read, a progress bar, one table of problems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from pipeline.cli import console
from pipeline.data.datalist import Case, DataList
from pipeline.data.digest_file import DigestFile
from pipeline.data.integrity import check_datalist
from pipeline.errors import DataError, Problem
from transforms.geometry import Margins


def check_visibly(
    datalist: DataList,
    *,
    border_crop: Margins | None,
    mask_nonfinite: bool = False,
    num_workers: int | None = None,
    digests: Path | None = None,
    recheck: bool = False,
) -> list[Problem]:
    """Say what is going to be read, check it behind a progress bar, and print all problems.

    Args:
        datalist: What to check.
        border_crop: See `check_datalist`, as for the next two.
        mask_nonfinite: Whether NaN and infinite intensities are accepted.
        num_workers: Cases at a time.
        digests: File that remembers what was read and found good, between one check and the next.
        recheck: Read everything, whatever that file says, and write it anew.

    Raises:
        SettingsError, ResourceError: The file of digests has no folder, or cannot be written.
    """
    known = None if digests is None else DigestFile(digests, recheck=recheck)
    cases = all_cases(datalist)
    files = all_files(datalist)
    num_bytes = sum(map(_num_bytes, files))
    size = f"{len(cases)} cases, {len(files)} files, {num_bytes / 1e6:.1f} MB"
    _say(f"{datalist.name}: {size}")
    if known is not None and known.complaint:
        _say(known.complaint)
    with Progress(console=console(stderr=True)) as progress:
        task = progress.add_task("Checking", total=len(cases))

        def advance(_: Case) -> None:
            progress.advance(task)

        try:
            problems = check_datalist(
                datalist,
                border_crop=border_crop,
                mask_nonfinite=mask_nonfinite,
                known=known,
                num_workers=num_workers,
                on_progress=advance,
            )
        finally:
            if known is not None:
                known.save()  # an interruption does not lose what was read
    if known is not None:
        _say(f"{known.num_recalled} of {len(cases)} cases are as they were when they were read")
    if problems:
        console().print(_table(problems))
    return problems


def raise_if_errors(datalist: DataList, problems: Sequence[Problem]) -> str:
    """Return the verdict in words.

    Raises:
        DataError: One of the problems is an error; it carries all of them.
    """
    summary = summary_of(datalist, problems)
    verdict = (
        f"{summary['cases']} cases: {summary['errors']} errors, {summary['warnings']} warnings"
    )
    if summary["errors"]:
        raise DataError(f"{datalist.path.name}: {verdict}.", problems)
    return verdict


def summary_of(datalist: DataList, problems: Sequence[Problem]) -> dict[str, Any]:
    """Return the numbers of cases, files and problems, as plain JSON."""
    errors = [problem for problem in problems if problem.severity == "error"]
    return {
        "list": datalist.name,
        "cases": len(all_cases(datalist)),
        "files": len(all_files(datalist)),
        "errors": len(errors),
        "warnings": len(problems) - len(errors),
        "cases_with_errors": len({problem.case for problem in errors}),
    }


def all_cases(datalist: DataList) -> tuple[Case, ...]:
    """Return the cases of all sections."""
    return (*datalist.training, *datalist.validation, *datalist.testing)


def all_files(datalist: DataList) -> list[Path]:
    """Return the files of all cases, labels included."""
    return [
        path
        for case in all_cases(datalist)
        for path in (*case.images, case.label)
        if path is not None
    ]


def _say(text: str) -> None:
    console().print(text, markup=False)


def _num_bytes(path: Path) -> int:
    """Return the size of an image file, or of a folder with a DICOM series; 0 if it is not there.

    So it is where it cannot be entered: what is wrong, the check tells.
    """
    try:
        files = path.iterdir() if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files if file.is_file())
    except OSError:
        return 0


def _table(problems: Sequence[Problem]) -> Table:
    table = Table(show_lines=True)
    for heading in ("severity", "case and file", "what is wrong"):
        table.add_column(heading, overflow="fold")
    for problem in problems:
        wrong = f"{problem.kind}: expected {problem.expected}; found {problem.found}"
        place = f"{problem.case}\n{problem.file}".rstrip()
        # Text, not str: a file name may hold what rich would take for markup.
        cells = (problem.severity, place, f"{wrong}\n{problem.remedy}")
        table.add_row(*map(Text, cells))
    return table
