"""The masks of all methods under `pipeline.evaluation`, and each compared with ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.accuracy_peers.methods import SCORES
from benchmarks.accuracy_peers.task import Task
from pipeline.evaluation.comparison import compare_reports, note_of
from pipeline.evaluation.definitions import COMPARED_MEASURES
from pipeline.evaluation.pairs import Selection, find_pairs
from pipeline.evaluation.report import Report, make_report
from pipeline.evaluation.result_files import csv_bytes, make_folder, write_comparison, write_report
from pipeline.evaluation.scoring import check_pairs, default_num_workers, score_pairs
from pipeline.evaluation.statistics import Comparison, compare

SEED = 0
MEAN = "dice_mean"


def score(task: Task, name: str) -> Report:
    """Score `<name>/masks`, write the evaluation's files to `scores/<name>`, return the report."""
    cases = task.cases()
    pairs = find_pairs(task.folder / name / "masks", cases)
    num_workers = min(default_num_workers(), task.threads, len(pairs))
    labels = task.datalist.labels
    check_pairs(pairs, labels=labels, num_workers=num_workers)
    report = make_report(
        score_pairs(
            pairs,
            labels=labels,
            regions=task.datalist.region_classes(),
            num_workers=num_workers,
        ),
        predictions=name,
        datalist=task.datalist,
        selection=Selection(cases, f"the cases of the folds {', '.join(map(str, task.folds))}"),
        seed=SEED,
        empty_rules=False,
    )
    folder = task.folder / SCORES / name
    make_folder(folder)
    write_report(folder, report)
    return report


def shown_columns(report: Report) -> list[str]:
    """Return the columns that the table shows: mean region Dice first."""
    return [MEAN, *(f"{name}_{region}" for name in COMPARED_MEASURES for region in report.regions)]


def case_scores(reports: Mapping[str, Report]) -> bytes:
    """Return the shown columns of each case under each method, as CSV: what all else is made of."""
    return csv_bytes(
        [
            {
                "method": name,
                "case": result.case,
                **{column: round(result.value(column), 6) for column in shown_columns(report)},
            }
            for name, report in reports.items()
            for result in report.results
        ]
    )


def summary_document(report: Report) -> dict[str, Any]:
    """Return mean and interval of each shown column, and the background's, as plain values."""
    columns = shown_columns(report)
    background = [f"background_{column}" for column in columns]
    found = [name for name in (*columns, *background) if name in report.summaries]
    return {
        name: {
            "mean": report.summaries[name].mean,
            "interval_95": report.summaries[name].interval_95,
            "num_cases": report.summaries[name].num_cases,
        }
        for name in found
    }


def comparison_document(report: Report, other: Report, *, folder: Path) -> dict[str, Any]:
    """Return `report` (ours) minus `other` in each column, and write the files of `--against`."""
    comparisons = compare_reports(report, other)
    make_folder(folder)
    write_comparison(folder, report, other, comparisons)
    every = {MEAN: _compared_means(report, other), **comparisons}
    return {
        column: {**asdict(comparison), "note": note_of(comparison)}
        for column, comparison in every.items()
    }


def _compared_means(report: Report, other: Report) -> Comparison:
    of_case = {result.case: result.value(MEAN) for result in other.results}
    return compare(
        [result.value(MEAN) for result in report.results],
        [of_case[result.case] for result in report.results],
        higher_is_better=True,
        seed=report.seed,
    )
