"""python -m pipeline.evaluate PREDICTIONS LIST -o OUT [--against OTHER] [--fold N] ...

Score a folder of predicted masks (<case>_seg.nii.gz or <case>.nii.gz, of any software) against the
references of a data list: per case and region, with means and their 95 % intervals, beside what
"everything is background" gets. All files are checked first; a case without a prediction is an
error. OUT then holds cases.csv (worst first), summary.json and summary.md, and with --against
comparison.csv and comparison.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli import add_list_argument, console, main_of, new_parser

if TYPE_CHECKING:
    from pipeline.data.datalist import DataList
    from pipeline.evaluation.pairs import Pair, Selection
    from pipeline.evaluation.report import Report


def build_parser() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = new_parser("evaluate", __doc__)
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="folder of masks")
    add_list_argument(parser)
    parser.add_argument(
        "-o", "--output-dir", type=Path, required=True, metavar="OUT", help="folder for the results"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="OTHER",
        help="another folder of masks of the same cases, to compare with",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--fold", type=int, metavar="N", help="only this fold's validation cases")
    chosen.add_argument("--cases", nargs="+", default=[], metavar="ID", help="only these cases")
    parser.add_argument(
        "--empty-rules",
        action="store_true",
        help="show the means under the two other rules for empty regions too",
    )
    parser.add_argument("--seed", type=_natural, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--workers", type=_positive, metavar="N", help="cases scored at a time")
    return parser


def work(arguments: argparse.Namespace) -> None:
    """Find, check and score the predictions, write the results and print them."""
    from pipeline.data.datalist import read_datalist
    from pipeline.data.files import require_writable
    from pipeline.evaluation.pairs import find_pairs, select_cases
    from pipeline.evaluation.result_files import (
        make_folder,
        require_folder_name,
        require_own_folder,
        write_report,
    )
    from pipeline.evaluation.scoring import check_pairs, default_num_workers

    out = arguments.output_dir
    require_folder_name(out)
    require_writable(out)
    require_own_folder(out)
    datalist = read_datalist(arguments.list, allow_outside_root=arguments.allow_outside_root)
    selection = select_cases(datalist, fold=arguments.fold, ids=arguments.cases)
    folders = [folder for folder in (arguments.predictions, arguments.against) if folder]
    sets = [find_pairs(folder, selection.cases) for folder in folders]
    num_workers = min(arguments.workers or default_num_workers(), len(selection.cases))
    every_pair = [pair for pairs in sets for pair in pairs]
    _announce(selection, every_pair, num_workers=num_workers)
    with _bar("Checking", every_pair) as on_case:
        check_pairs(every_pair, labels=datalist.labels, num_workers=num_workers, on_case=on_case)
    make_folder(out)
    reports = [
        _report(pairs, name, datalist, selection, arguments, num_workers=num_workers)
        for pairs, name in zip(sets, _names(folders), strict=True)
    ]
    paths = write_report(out, reports[0])
    _print_report(reports[0])
    if len(reports) > 1:
        paths += _compare(out, *reports)
    console().print("Files: " + ", ".join(map(str, paths)), markup=False)


def _announce(selection: Selection, pairs: Sequence[Pair], *, num_workers: int) -> None:
    from pipeline.evaluation.scoring import memory_bytes

    gigabytes = memory_bytes(pairs, num_workers=num_workers) / 1e9
    console().print(
        f"{len(selection.cases)} cases ({selection.description}), {num_workers} at a time: "
        f"about {gigabytes:.1f} GB of memory",
        markup=False,
    )


@contextmanager
def _bar(title: str, pairs: Sequence[Pair]) -> Iterator[Callable[[], object]]:
    """Show a progress bar, on a terminal; what it gives is to be called after each case."""
    from tqdm import tqdm

    with tqdm(total=len(pairs), desc=title, unit="case", disable=None) as bar:
        yield bar.update


def _report(
    pairs: Sequence[Pair],
    name: str,
    datalist: DataList,
    selection: Selection,
    arguments: argparse.Namespace,
    *,
    num_workers: int,
) -> Report:
    from pipeline.evaluation.report import make_report
    from pipeline.evaluation.scoring import score_pairs

    with _bar(f"Scoring {name}", pairs) as on_case:
        results = score_pairs(
            pairs,
            labels=datalist.labels,
            regions=datalist.region_classes(),
            num_workers=num_workers,
            on_case=on_case,
        )
    return make_report(
        results,
        predictions=name,
        datalist=datalist,
        selection=selection,
        seed=arguments.seed,
        empty_rules=arguments.empty_rules,
    )


def _print_report(report: Report) -> None:
    from pipeline.evaluation.definitions import STATED_RULE
    from pipeline.evaluation.report import warnings_of
    from pipeline.evaluation.tables import result_grids, worst_grid

    screen = console()
    for grid in result_grids(report):
        screen.print(grid.to_rich())
    screen.print(STATED_RULE, markup=False)
    _print_warnings(warnings_of(report.results))
    screen.print(worst_grid(report).to_rich())


def _compare(out: Path, report: Report, other: Report) -> list[Path]:
    """Compare the two reports, print the table and return the files that were written."""
    from pipeline.evaluation.comparison import compare_reports
    from pipeline.evaluation.report import warnings_of
    from pipeline.evaluation.result_files import write_comparison
    from pipeline.evaluation.tables import comparison_grid, comparison_notes

    comparisons = compare_reports(report, other)
    names = {"predictions": report.predictions, "other": other.predictions}
    screen = console()
    screen.print(comparison_grid(comparisons, **names).to_rich())
    screen.print("\n".join(comparison_notes(comparisons)), markup=False)
    _print_warnings(f"{other.predictions}: {text}" for text in warnings_of(other.results))
    return write_comparison(out, report, other, comparisons)


def _print_warnings(texts: Iterable[str]) -> None:
    for text in texts:
        console().print(f"Warning: {text}", style="bold", markup=False)


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' names, with their parents' where both would be called the same."""
    paths = [folder.resolve() for folder in folders]
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    return [f"{path.parent.name}/{path.name}" for path in paths]


def _positive(text: str) -> int:
    return _at_least(1, text)


def _natural(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"expected at least {least}, found {number}")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    return main_of(build_parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
