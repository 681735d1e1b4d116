"""Two sets of predictions of the same cases, compared case by case."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.evaluation.definitions import COMPARED_MEASURES, REGION_MEASURES
from pipeline.evaluation.report import Report, origin_document
from pipeline.evaluation.statistics import MIN_PAIRS, NUM_RESAMPLES, Comparison, compare

TEST = (
    "Wilcoxon's signed-rank test, two-sided, over the cases that differ (scipy.stats.wilcoxon); "
    "not corrected for the number of tests"
)
TOO_FEW = f"fewer than {MIN_PAIRS} cases differ: p cannot fall below 0.05"


def compare_reports(report: Report, other: Report) -> dict[str, Comparison]:
    """Compare the two reports, of the same cases, in each column of `COMPARED_MEASURES`."""
    return {
        f"{name}_{region}": compare(
            *_paired(report, other, f"{name}_{region}"),
            higher_is_better=REGION_MEASURES[name].higher_is_better,
            seed=report.seed,
        )
        for name in COMPARED_MEASURES
        for region in report.regions
    }


def comparison_document(
    report: Report, other: Report, comparisons: dict[str, Comparison]
) -> dict[str, Any]:
    """Return the comparison as plain JSON values, without paths of this machine."""
    return {
        "predictions": {"folder": report.predictions, **origin_document(report)},
        "other": {"folder": other.predictions, **origin_document(other)},
        "num_cases": len(report.results),
        "difference": "predictions - other; better and worse say what `predictions` is",
        "test": TEST,
        "num_tests": len(comparisons),
        "bootstrap": {
            "what": "95 % percentile interval of the mean difference, cases drawn with replacement",
            "resamples": NUM_RESAMPLES,
            "seed": report.seed,
        },
        "columns": {
            column: {**asdict(comparison), "note": note_of(comparison)}
            for column, comparison in comparisons.items()
        },
    }


def comparison_rows(report: Report, other: Report) -> list[dict[str, Any]]:
    """Return one row a case, in the order of `report`: both scores and their difference."""
    rows: list[dict[str, Any]] = [{"case": result.case} for result in report.results]
    for name in COMPARED_MEASURES:
        for region in report.regions:
            column = f"{name}_{region}"
            for row, first, second in zip(rows, *_paired(report, other, column), strict=True):
                row |= {
                    column: first,
                    f"other_{column}": second,
                    f"difference_{column}": first - second,
                }
    return rows


def note_of(comparison: Comparison) -> str:
    """Return what has to be said about the p value; nothing where it can be significant."""
    if not comparison.num_better + comparison.num_worse:
        return "no case differs: p is 1"
    return "" if comparison.can_be_significant else TOO_FEW


def _paired(report: Report, other: Report, column: str) -> tuple[list[float], list[float]]:
    """Return the column of both reports, in the order of `report`'s cases."""
    of_case = {result.case: result.value(column) for result in other.results}
    first = [result.value(column) for result in report.results]
    return first, [of_case[result.case] for result in report.results]
