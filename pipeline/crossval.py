"""python -m pipeline.crossval LIST -o DIR [--preset strong] [--folds N ...] [--device D ...] ...

Cross-validate: for each fold of a data list, train on all others, and predict the fold's cases with
that model alone, which has never read them. What is too small to be believed is chosen on other
folds than those it is applied to. DIR then holds the out-of-fold masks with their scores, a report,
summary.json and summary.md, and ensemble.pt, all models as one for new cases. With several devices,
as many folds are trained at a time. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli import (
    add_list_argument,
    add_training_arguments,
    console,
    main_of,
    new_parser,
    open_log,
)

if TYPE_CHECKING:
    from pipeline.config import Settings
    from pipeline.crossvalidation.plan import Plan
    from pipeline.crossvalidation.summary import Findings

LOG = logging.getLogger("pipeline.crossval")  # also where this module is __main__
DEFAULT_PRESET = "original"


def build_parser() -> argparse.ArgumentParser:
    """Return the verb's parser."""
    parser = new_parser("crossval", __doc__)
    add_list_argument(parser)
    parser.add_argument("-o", "--output-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--preset", default=DEFAULT_PRESET, help="as of train (default: original)")
    add_training_arguments(parser)
    parser.add_argument(
        "--folds", type=int, nargs="+", metavar="N", help="at least two (default: all of the list)"
    )
    parser.add_argument(
        "--device",
        nargs="+",
        default=["auto"],
        metavar="D",
        help="auto, cpu, cuda:0 cuda:1 ...: a fold on each at a time (default: auto)",
    )
    parser.add_argument("--no-report", action="store_true", help="leave out report.html")
    parser.add_argument(
        "--no-probabilities",
        action="store_true",
        help="write masks only: less disk, but nothing about calibration",
    )
    return parser


def work(arguments: argparse.Namespace) -> None:
    """Cross-validate as the command line says, and print what came out."""
    from pipeline.data.files import require_writable

    require_writable(arguments.output_dir)  # before the seconds that importing torch takes
    from pipeline.crossvalidation.plan import DIGESTS, Plan, claim_folder, folds_of
    from pipeline.crossvalidation.run import crossvalidate
    from pipeline.data.checking import check_visibly, raise_if_errors
    from pipeline.data.datalist import read_datalist
    from pipeline.data.lock import locked_folder

    datalist = read_datalist(arguments.list, allow_outside_root=arguments.allow_outside_root)
    plan = Plan(
        arguments.output_dir,
        datalist,
        folds_of(datalist, arguments.folds),
        _settings(arguments),
        probabilities=not arguments.no_probabilities,
        allow_outside_root=arguments.allow_outside_root,
        cache_dir=arguments.cache_dir,
    )
    with locked_folder(plan.folder), open_log(plan.folder):
        problems = check_visibly(
            datalist,
            border_crop=plan.settings.preprocessing.border_crop,
            mask_nonfinite=plan.settings.loading.mask_nonfinite,
            digests=plan.folder / DIGESTS,
        )
        LOG.info(raise_if_errors(datalist, problems))
        claim_folder(plan)
        LOG.info(_announcement(plan, devices=arguments.device))
        findings = crossvalidate(
            plan, devices=arguments.device, with_report=not arguments.no_report
        )
    _print(plan, findings)


def _settings(arguments: argparse.Namespace) -> Settings:
    from pipeline.config import build_settings, parse_assignments, preset, read_config
    from pipeline.crossvalidation.plan import FORCED, require_free

    assigned = parse_assignments(arguments.assignments)
    require_free(assigned)
    layers: list[dict[str, Any]] = [
        preset(arguments.preset),
        read_config(arguments.config) if arguments.config else {},
        assigned,
        {} if arguments.seed is None else {"seed": arguments.seed},
        {"loading": {"mask_nonfinite": True}} if arguments.mask_nonfinite else {},
        FORCED,
    ]
    return build_settings(*layers)


def _announcement(plan: Plan, *, devices: Sequence[str]) -> str:
    """Say what is going to be done, and what it takes as far as that can be told beforehand."""
    from pipeline.crossvalidation.needs import needs_in_words

    epochs = plan.settings.training.max_epochs
    return (
        f"{len(plan.folds)} folds ({', '.join(map(str, plan.folds))}) with {len(plan.all_cases)} "
        f"cases: for each, {epochs} epochs on the cases of the others; {len(devices)} at a time. "
        f"{needs_in_words(plan)}"
    )


def _print(plan: Plan, findings: Findings) -> None:
    from pipeline.crossvalidation.summary import grids_of, places
    from pipeline.evaluation.definitions import STATED_RULE
    from pipeline.evaluation.report import warnings_of

    screen = console()
    for grid in grids_of(plan, findings):
        screen.print(grid.to_rich())
    screen.print(STATED_RULE, markup=False)
    for text in warnings_of(findings.report.results):
        screen.print(f"Warning: {text}", style="bold", markup=False)
    screen.print("\n".join((f"In {plan.folder}:", *places(plan))), markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    return main_of(build_parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
