"""python -m pipeline.make_datalist ROOT -o ROOT/datalist.json [--folds 5] [--seed 0]

Find the cases of BraTS 2018 to 2023 in the folder ROOT and write the data list that the other
verbs take. Labelled cases are dealt into folds by subject, unlabelled ones become the testing
section. Each mask is read, to see whether it calls the enhancing tumour 4 or 3. The same folder
and seed give the same file, byte for byte.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import console, main_of, new_parser
from pipeline.errors import DataError, Problem, SettingsError

if TYPE_CHECKING:
    from pipeline.data.codings import Codings
    from pipeline.data.discovery import Discovery

SKIPPABLE = "incomplete-case"
MAX_IGNORED_SHOWN = 5


def build_parser() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = new_parser("make_datalist", __doc__)
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder with the cases")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", required=True, help="the list to write"
    )
    parser.add_argument("--folds", type=int, default=5, help="number of folds (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the folds (default: 0)")
    parser.add_argument("--name", help="name of the dataset (default: the name of ROOT)")
    parser.add_argument(
        "--skip-incomplete",
        action="store_true",
        help="leave out cases with a modality missing, instead of stopping",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace FILE where it holds something else"
    )
    return parser


def work(arguments: argparse.Namespace) -> None:
    """Find the cases, read their masks, write the list, and say what it holds."""
    from pipeline.data.codings import find_codings
    from pipeline.data.datalist_building import build_document, stays_inside, write_document
    from pipeline.data.discovery import find_cases
    from pipeline.data.folds import assign_folds

    if not arguments.root.is_dir():
        raise SettingsError(f"{arguments.root}: there is no such folder.")
    root = Path(os.path.realpath(arguments.root))
    discovery = find_cases(root)
    _judge(discovery, arguments)
    folds = assign_folds(
        {case.id: case.subject for case in discovery.cases if case.label},
        num_folds=arguments.folds,
        seed=arguments.seed,
    )
    codings = find_codings(discovery.cases, progress=True)
    document = build_document(
        discovery.cases,
        codings=codings,
        folds=folds,
        name=arguments.name or root.name,
        folder=arguments.output.parent,
    )
    inside = stays_inside(document, path=arguments.output)
    written = write_document(document, arguments.output, force=arguments.force)
    _print_summary(document, discovery, codings)
    state = "The list is in" if written else "Nothing to do: the same list is already in"
    print(f"{state} {arguments.output}")
    _print_next(arguments.output, inside=inside)


def _judge(discovery: Discovery, arguments: argparse.Namespace) -> None:
    """Show the problems, and raise `DataError` where they stop the work."""
    if discovery.problems:
        _print_problems(discovery.problems)
    stopping = [
        problem
        for problem in discovery.problems
        if not (arguments.skip_incomplete and problem.kind == SKIPPABLE)
    ]
    if stopping:
        remedy = (
            "Add the missing files, or leave these cases out with --skip-incomplete."
            if all(problem.kind == SKIPPABLE for problem in stopping)
            else "Correct the folders as the table says."
        )
        raise DataError(
            f"{arguments.root}: problems: {len(stopping)}; nothing was written. {remedy}", stopping
        )
    if not discovery.cases:
        raise DataError(
            f"{arguments.root}: no complete case found; expected files named like "
            "X_flair.nii.gz, X_t1.nii.gz, X_t1ce.nii.gz and X_t2.nii.gz "
            "(or -t2f, -t1n, -t1c and -t2w) in the same folder."
        )


def _print_problems(problems: Sequence[Problem]) -> None:
    from rich.table import Table

    table = Table(title="Problems", title_justify="left", show_lines=True)
    for heading in ("case", "problem", "found", "folder"):
        table.add_column(heading, overflow="fold")  # a name that is cut is of no use
    for problem in problems:
        table.add_row(problem.case, problem.kind, problem.found, problem.file)
    console(stderr=True).print(table)


def _print_summary(document: dict[str, Any], discovery: Discovery, codings: Codings) -> None:
    from rich.table import Table

    training = document["training"]
    table = Table(title=f"Data list {document['name']}", title_justify="left", show_header=False)
    table.add_row("cases", str(len(discovery.cases)))
    table.add_row("labelled (training)", str(len(training)))
    table.add_row("unlabelled (testing)", str(len(document["testing"])))
    table.add_row("subjects", str(len({case.subject for case in discovery.cases})))
    table.add_row("left out", str(len(discovery.problems)))
    for values, count in Counter(codings.of_case.values()).most_common():
        if values is None:
            kind = f"masks that fit any numbering, taken as {_numbers(codings.majority)}"
        else:
            kind = f"masks with the label values {_numbers(values)}"
        table.add_row(kind, str(count))
    for fold, count in sorted(Counter(entry["fold"] for entry in training).items()):
        table.add_row(f"cases in fold {fold}", str(count))
    table.add_row("other NIfTI files, not used", str(len(discovery.ignored)))
    console().print(table)
    for path in discovery.ignored[:MAX_IGNORED_SHOWN]:
        print(f"not used: {path}")


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _print_next(path: Path, *, inside: bool) -> None:
    option = "" if inside else " --allow-outside-root"
    if not inside:
        print(
            "Some of its files lie outside its folder, so each verb needs --allow-outside-root; "
            "with the list in the folder of the cases, none does."
        )
    print(f"Next: python -m pipeline.check {shlex.quote(str(path))}{option}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; return its exit code."""
    return main_of(build_parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
