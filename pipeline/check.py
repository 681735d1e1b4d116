"""python -m pipeline.check LIST [--json FILE] [--workers N] ...

Read every file of a data list to its end and report everything that is wrong, in one table, before
any computing time is spent. Exit code 0 if there is no error (warnings alone are none), else 3.
With --digests FILE, cases that were read and found good are not read again until they change.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import add_list_argument, main_of, new_parser

if TYPE_CHECKING:
    from pipeline.errors import Problem

DEFAULT_PRESET = "original"


def build_parser() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = new_parser("check", __doc__)
    add_list_argument(parser)
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
    parser.add_argument(
        "--mask-nonfinite",
        action="store_true",
        help="accept voxels that are NaN or infinite, as 0, with a warning",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the problems as JSON too")
    parser.add_argument(
        "--digests", type=Path, metavar="FILE", help="remember here what was read and found good"
    )
    parser.add_argument(
        "--recheck", action="store_true", help="read everything, whatever --digests remembers"
    )
    parser.add_argument("--workers", type=_positive, metavar="N", help="cases checked at a time")
    return parser


def work(arguments: argparse.Namespace) -> None:
    """Check the data list and print the table; DataError if there is an error."""
    from pipeline.data.checking import check_visibly, raise_if_errors, summary_of
    from pipeline.data.datalist import read_datalist
    from pipeline.errors import DataError

    _refuse_contradictions(arguments)
    margins = _margins(arguments)
    try:
        datalist = read_datalist(arguments.list, allow_outside_root=arguments.allow_outside_root)
    except DataError as error:
        # Nothing can be said about the cases of a list that cannot be read.
        summary = {"list": arguments.list.name, "cases": None, "files": None}
        errors = {"errors": len(error.problems), "warnings": 0, "cases_with_errors": None}
        _write_json(arguments.json, summary | errors, error.problems)
        raise
    problems = check_visibly(
        datalist,
        border_crop=margins,
        mask_nonfinite=arguments.mask_nonfinite,
        num_workers=arguments.workers,
        digests=arguments.digests,
        recheck=arguments.recheck,
    )
    _write_json(arguments.json, summary_of(datalist, problems), problems)
    print(raise_if_errors(datalist, problems))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    return main_of(build_parser(), work, argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number


def _refuse_contradictions(arguments: argparse.Namespace) -> None:
    """Raise SettingsError for options that make no sense together, before anything is read."""
    from pipeline.errors import SettingsError

    if arguments.recheck and arguments.digests is None:
        raise SettingsError("--recheck: expected --digests FILE too; found nothing to write anew.")
    files = {"LIST": arguments.list, "--json": arguments.json, "--digests": arguments.digests}
    option_of: dict[Path, str] = {}
    for option, path in files.items():
        if path is not None:
            other = option_of.setdefault(path.resolve(), option)
            if other != option:
                raise SettingsError(f"{option}: expected a file of its own; found that of {other}.")


def _write_json(path: Path | None, summary: dict[str, Any], problems: Iterable[Problem]) -> None:
    from pipeline.data.files import replace_file
    from pipeline.data.json_files import json_bytes

    if path is not None:
        listed = [problem.to_dict() for problem in problems]
        replace_file(path, json_bytes({"summary": summary, "problems": listed}))


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


if __name__ == "__main__":
    sys.exit(main())
