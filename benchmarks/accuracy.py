"""python -m benchmarks.accuracy LIST -o OUT --methods NAME... [--minutes M] [--spacing-mm S] ...

Cross-validate this project, nnU-Net v2 and MONAI's BraTS recipe on the same cases, folds and grid,
with the same minutes of training for each fold, and score all masks alike, on the cases' own grids.
A NAME is a preset (strong, quick, original), a variant of one (NAME=PRESET:setting=value,...),
nnunet or segresnet. What is finished is not done again: a run that was stopped is simply repeated,
and methods can be added later. OUT then holds accuracy.json, accuracy.md and the scores of
each case in accuracy_cases.csv, of all methods that are finished there, whichever are named; the
first one of ours in OUT is compared with all others. It also holds each method's masks and scores.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy_peers.claims import claim, claimed, task_document
from benchmarks.accuracy_peers.costs import Costs
from benchmarks.accuracy_peers.machines import Machine, machines_of, note_machine
from benchmarks.accuracy_peers.methods import SCORES, Method, parse_methods
from benchmarks.accuracy_peers.nnunet import NAME as NNUNET
from benchmarks.accuracy_peers.nnunet import NnUNet, require_nnunet
from benchmarks.accuracy_peers.ours import Ours
from benchmarks.accuracy_peers.peer import Peer
from benchmarks.accuracy_peers.regions import nested_regions
from benchmarks.accuracy_peers.scoring import (
    case_scores,
    comparison_document,
    score,
    summary_document,
)
from benchmarks.accuracy_peers.segresnet import ZooSegResNet
from benchmarks.accuracy_peers.task import Task
from benchmarks.accuracy_table import markdown
from benchmarks.machine import describe_machine
from pipeline.cli import add_list_argument, main_of
from pipeline.data.datalist import DataList, read_datalist
from pipeline.data.files import replace_files, require_writable
from pipeline.data.json_files import json_bytes
from pipeline.data.lock import locked_folder
from pipeline.errors import SettingsError
from pipeline.evaluation.report import Report
from pipeline.versions import versions_of

MINUTES, SPACING_MM = 20.0, 2.0
NAME = "accuracy"
TITLE = "Accuracy, side by side"

Pair = tuple[str, str]
Pairing = Callable[[Sequence[Method]], Sequence[Pair]]


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_list_argument(parser)
    parser.add_argument("--methods", nargs="+", required=True, metavar="NAME")
    parser.add_argument(
        "--nnunet-python", type=Path, metavar="PATH", help="a Python that nnU-Net is installed for"
    )
    add_task_arguments(parser)
    return parser


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is the same for all methods; `task_of` reads it."""
    parser.add_argument("-o", "--output-dir", type=Path, required=True, metavar="OUT")
    parser.add_argument("--folds", nargs="+", type=int, metavar="N", help="default: all")
    parser.add_argument(
        "--minutes",
        type=_positive,
        default=MINUTES,
        help=f"of training for each fold (default: {MINUTES:g})",
    )
    parser.add_argument(
        "--spacing-mm",
        type=_positive,
        default=SPACING_MM,
        metavar="S",
        help=f"the grid that all work on (default: {SPACING_MM:g})",
    )
    parser.add_argument(
        "--threads", type=_natural, default=os.cpu_count(), help="default: as many as cores"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")


def task_of(arguments: argparse.Namespace) -> Task:
    """Return the task that the command line describes.

    Raises:
        DataError, SettingsError: The list or the folds cannot be used.
    """
    datalist = read_datalist(arguments.list, allow_outside_root=arguments.allow_outside_root)
    return Task(
        datalist=datalist,
        folds=chosen_folds(datalist, arguments.folds),
        folder=arguments.output_dir.absolute(),
        minutes=arguments.minutes,
        spacing_mm=arguments.spacing_mm,
        threads=arguments.threads,
        device=arguments.device,
        allow_outside_root=arguments.allow_outside_root,
    )


def work(arguments: argparse.Namespace) -> None:
    """Run what is not finished, score all, write the table."""
    methods = parse_methods(arguments.methods)
    task = task_of(arguments)
    if not all(method.is_ours for method in methods):
        nested_regions(task.datalist)
    # Not resolved: the Python of a virtual environment is a link, and knows by its place where.
    python = arguments.nnunet_python and arguments.nnunet_python.absolute()
    if any(method.name == NNUNET for method in methods):
        python = require_nnunet(python)
    print(run(task, methods, pairing=against_the_first, title=TITLE, stem=NAME, python=python))


def against_the_first(methods: Sequence[Method]) -> list[Pair]:
    """Return the first method of ours with each of the others."""
    first = next(method.name for method in methods if method.is_ours)
    return [(first, method.name) for method in methods if method.name != first]


def run(
    task: Task,
    wanted: Sequence[Method],
    *,
    known: Sequence[Method] = (),
    pairing: Pairing,
    title: str,
    stem: str,
    python: Path | None = None,
) -> str:
    """Run what is wanted and not finished, score all, write the three files; return the Markdown.

    The files are of all methods that are finished in the folder, so that they never lose a row.

    Args:
        task: What all methods do.
        wanted: Which methods are run.
        known: Those that come first in the tables where they are there, in this order.
        pairing: Which of the finished ones are compared: the second is subtracted from the first.
        title: Of the Markdown.
        stem: Of the names of the files in the task's folder: JSON, Markdown, CSV by case.
        python: Has nnU-Net, if that is wanted.
    """
    require_writable(task.folder)
    with locked_folder(task.folder):
        methods = methods_of(task, wanted, known=known)
        claim(task, methods)
        for method in wanted:
            go_on(task, method, python=python)
        finished = finished_of(task, methods)
        costs = {method.name: side_of(task, method).run() for method in finished}
        reports = scored(task, finished)
        content = compared(task, costs, reports, pairs=pairing(finished))
        text = markdown(content, title=title)
        files = {
            f"{stem}.json": json_bytes(content),
            f"{stem}.md": text.encode(),
            f"{stem}_cases.csv": case_scores(reports),
        }
        replace_files(task.folder, files)
    return text


def chosen_folds(datalist: DataList, wanted: Sequence[int] | None) -> tuple[int, ...]:
    """Return the folds to cross-validate over, in ascending order.

    Raises:
        SettingsError: A fold is not in the list, or there are fewer than two.
    """
    there = {case.fold for case in datalist.training if case.fold is not None}
    folds = tuple(sorted(set(wanted) if wanted else there))
    if len(folds) < 2 or not there.issuperset(folds):
        raise SettingsError(
            f"--folds: expected at least two of the folds of {datalist.path.name} "
            f"({', '.join(map(str, sorted(there))) or 'it has none'}); found "
            f"{', '.join(map(str, folds)) or 'none'}. Make folds with make_datalist --folds."
        )
    return folds


def methods_of(
    task: Task, wanted: Sequence[Method], *, known: Sequence[Method]
) -> tuple[Method, ...]:
    """Return the methods of the folder and the wanted ones, in the order of the tables.

    That is the order of `known`, then that in which they were claimed.
    """
    there = {method.name: method for method in (*claimed(task), *wanted)}
    first = {method.name: method for method in known if method.name in there}
    return tuple((first | there | first).values())


def side_of(task: Task, method: Method, *, python: Path | None = None) -> Ours | Peer:
    """Return what trains and predicts; `python` may be None where that is finished."""
    if method.is_ours:
        return Ours(task, method)
    return NnUNet(task, python=python) if method.name == NNUNET else ZooSegResNet(task)


def go_on(task: Task, method: Method, *, python: Path | None) -> None:
    """Train and predict with one method, from where it stopped, and note on which machine."""
    side = side_of(task, method, python=python)
    if not side.is_finished():
        note_machine(task, method.name, machine_here(task))
        side.run()


def machine_here(task: Task) -> Machine:
    """Return what is to be known of this machine, and the versions of all software."""
    machine = describe_machine()
    gpu = torch.cuda.get_device_name() if task.device == "cuda" else None
    return {**machine, "gpu": gpu, "versions": {**versions_of(()), **machine["versions"]}}


def finished_of(task: Task, methods: Sequence[Method]) -> list[Method]:
    """Return the methods whose masks are all there; name the others on the console."""
    finished = [method for method in methods if side_of(task, method).is_finished()]
    for method in methods:
        if method not in finished:
            print(f"{method.name}: begun, not finished, and so in no table. Name it to go on.")
    return finished


def scored(task: Task, methods: Sequence[Method]) -> dict[str, Report]:
    """Score the masks of all methods, and return the reports by name."""
    reports = {}
    for method in methods:
        print(f"{method.name}: scoring ...", flush=True)
        reports[method.name] = score(task, method.name)
    return reports


def compared(
    task: Task,
    costs: Mapping[str, Costs],
    reports: Mapping[str, Report],
    *,
    pairs: Sequence[Pair],
) -> dict[str, Any]:
    """Return everything as plain JSON values, but the scores of single cases."""
    folder = task.folder / SCORES
    return {
        "task": task_document(task),
        "regions": list(task.datalist.regions),
        "methods": {
            name: {
                "machines": machines_of(task, name),
                "costs": costs[name].to_dict(),
                "scores": summary_document(report),
            }
            for name, report in reports.items()
        },
        "comparisons": [
            {
                "of": one,
                "minus": other,
                "differences": comparison_document(
                    reports[one], reports[other], folder=folder / f"{one}_against_{other}"
                ),
            }
            for one, other in pairs
        ],
    }


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return number


def _natural(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {text}")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison and return its exit code."""
    return main_of(build_parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
