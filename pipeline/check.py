"""python -m pipeline.check LIST [--json FILE] [--workers N] ...

Read every file of a data list to its end and report everything that is wrong, in one table, before
any computing time is spent. Exit code 0 if there is no error (warnings alone are none), else 3.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import console, main_of, new_parser

if TYPE_CHECKING:
    from pipeline.data.datalist import Case, DataList
    from pipeline.errors import Problem

DEFAULT_PRESET = "original"


def build_parser() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = new_parser("check", __doc__)
    parser.add_argument("list", type=Path, metavar="LIST", help="the data list, a JSON file")
    crop = parser.add_mutually_exclusive_group()
    crop.add_argument(
        "--preset",
        default=DEFAULT_PRESET,
        help="whose border crop is held against the tumours (default: original)",
    )
    crop.add_argument(
        "--border-crop",
        type=int,
        nargs=6,
        metavar=("X0", "X1", "Y0", "Y1", "Z0", "Z1"),
        help="voxels to be removed at the ends of X, Y and Z instead; the article's: 8 8 8 8 6 5",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the problems as JSON too")
    parser.add_argument("--workers", type=_positive, metavar="N", help="cases checked at a time")
    parser.add_argument(
        "--allow-outside-root",
        action="store_true",
        help="accept files outside the folder of the list",
    )
    return parser


def work(arguments: argparse.Namespace) -> None:
    """Check the data list and print the table; DataError if there is an error."""
    from pipeline.data.datalist import read_datalist
    from pipeline.data.files import replace_file
    from pipeline.data.json_files import json_bytes
    from pipeline.errors import DataError

    margins = _margins(arguments)
    datalist = read_datalist(arguments.list, allow_outside_root=arguments.allow_outside_root)
    problems = _check(datalist, margins=margins, num_workers=arguments.workers)
    summary = _summary(datalist, problems)
    if arguments.json is not None:
        listed = [problem.to_dict() for problem in problems]
        replace_file(arguments.json, json_bytes({"summary": summary, "problems": listed}))
    if problems:
        _print_table(problems)
    verdict = (
        f"{summary['cases']} cases: {summary['errors']} errors, {summary['warnings']} warnings"
    )
    if summary["errors"]:
        raise DataError(f"{arguments.list.name}: {verdict}.", problems)
    console().print(verdict)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    return main_of(build_parser(), work, argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number


def _margins(arguments: argparse.Namespace) -> Any:
    """Return ((start, end), ...) for X, Y, Z, or None where the preset crops nothing."""
    from pipeline.config import build_settings, preset
    from pipeline.errors import SettingsError

    if arguments.border_crop is None:
        return build_settings(preset(arguments.preset)).preprocessing.border_crop
    numbers = arguments.border_crop
    if min(numbers) < 0:
        raise SettingsError(f"--border-crop: expected voxels from 0 up; found {numbers}")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _files(datalist: DataList) -> list[Path]:
    cases = (*datalist.training, *datalist.validation, *datalist.testing)
    return [path for case in cases for path in (*case.images, case.label) if path is not None]


def _check(datalist: DataList, *, margins: Any, num_workers: int | None) -> list[Problem]:
    """Say what is going to be read, then check it behind a progress bar."""
    from rich.progress import Progress

    from pipeline.data.integrity import check_datalist

    output = console()
    files = _files(datalist)
    num_bytes = sum(path.stat().st_size for path in files if path.is_file())
    num_cases = len(datalist.training) + len(datalist.validation) + len(datalist.testing)
    size = f"{num_cases} cases, {len(files)} files, {num_bytes / 1e6:.1f} MB"
    output.print(f"{datalist.name}: {size}", markup=False)
    with Progress(console=console(stderr=True)) as progress:
        task = progress.add_task("checking", total=num_cases)

        def advance(case: Case) -> None:
            progress.advance(task)

        return check_datalist(
            datalist, border_crop=margins, num_workers=num_workers, on_progress=advance
        )


def _summary(datalist: DataList, problems: Sequence[Problem]) -> dict[str, Any]:
    errors = [problem for problem in problems if problem.severity == "error"]
    return {
        "list": datalist.name,
        "cases": len(datalist.training) + len(datalist.validation) + len(datalist.testing),
        "files": len(_files(datalist)),
        "errors": len(errors),
        "warnings": len(problems) - len(errors),
        "cases_with_errors": len({problem.case for problem in errors}),
    }


def _print_table(problems: Sequence[Problem]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True)
    for heading in ("severity", "case and file", "what is wrong"):
        table.add_column(heading, overflow="fold")
    for problem in problems:
        wrong = f"{problem.kind}: expected {problem.expected}; found {problem.found}"
        place = f"{problem.case}\n{problem.file}".rstrip()
        # Text, not str: a file name may hold what rich would take for markup.
        cells = (problem.severity, place, f"{wrong}\n{problem.remedy}")
        table.add_row(*map(Text, cells))
    console().print(table)


if __name__ == "__main__":
    sys.exit(main())
