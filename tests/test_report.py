"""What the scores of all cases amount to, and what is said beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CohortFactory

from pipeline.data.datalist import DataList, read_datalist
from pipeline.evaluation.case_scores import CaseResult
from pipeline.evaluation.definitions import REGION_MEASURES, STATED_RULE
from pipeline.evaluation.pairs import Selection
from pipeline.evaluation.provenance import ModelOrigin, Provenance
from pipeline.evaluation.report import (
    Report,
    case_row,
    definitions,
    make_report,
    report_document,
    seen_counts,
    warnings_of,
    worst_first,
)
from pipeline.evaluation.statistics import RuleMean

UNSEEN = Provenance((ModelOrigin("m", "d"),), False)


@pytest.fixture
def datalist(cohort_factory: CohortFactory) -> DataList:
    return read_datalist(cohort_factory(num_cases=2))


def result(
    case: str,
    dice: float = 1.0,
    *,
    seen: bool | None = False,
    subject: str = "",
    reference_ml: float = 1.0,
) -> CaseResult:
    """Return a case whose scores are all `dice`."""
    scores: dict[str, float | None] = {"dice_mean": dice}
    for region in ("WT", "TC", "ET"):
        scores |= {f"{name}_{region}": dice for name in REGION_MEASURES}
        scores[f"reference_volume_ml_{region}"] = reference_ml
    scores["ece"] = None
    provenance = replace(UNSEEN, seen_in_training=seen)
    return CaseResult(case, subject or case, scores, "mask", provenance)


def report_of(datalist: DataList, *results: CaseResult, empty_rules: bool = False) -> Report:
    return make_report(
        results,
        predictions="out",
        datalist=datalist,
        selection=Selection(datalist.training, "all"),
        seed=0,
        empty_rules=empty_rules,
    )


def test_worst_first_and_equal_ones_by_id() -> None:
    ordered = worst_first([result("b", 0.5), result("c", 0.2), result("a", 0.5)])
    assert [one.case for one in ordered] == ["c", "a", "b"]


def test_a_missed_tumour_is_in_every_mean(datalist: DataList) -> None:
    report = report_of(datalist, result("a", 1.0), result("b", 0.0))
    means = {name: report.summaries[name].mean for name in ("dice_WT", "lesion_f1_ET")}
    assert means == {"dice_WT": 0.5, "lesion_f1_ET": 0.5}
    assert report.summaries["ece"].num_cases == 0


def test_empty_rules_only_where_asked_for(datalist: DataList) -> None:
    cases = (result("a", 0.5), result("b", 1.0, reference_ml=0.0))
    assert report_of(datalist, *cases).rule_means == {}
    means = report_of(datalist, *cases, empty_rules=True).rule_means
    assert means["dice_ET"] == {
        "stated": RuleMean(0.75, 2),
        "skip": RuleMean(0.5, 1),
        "worst_case": RuleMean(0.25, 2),
    }
    assert means["hd95_mm_ET"]["worst_case"] == RuleMean((0.5 + 373.13) / 2, 2)
    assert means["lesion_hd95_mm_ET"]["worst_case"] == RuleMean((0.5 + 374) / 2, 2)
    assert "volume_ml_ET" not in means


def test_seen_counts() -> None:
    results = [result("a", seen=True), result("b", seen=None), result("c"), result("d")]
    assert seen_counts(results) == {"seen": 1, "unseen": 2, "unknown": 1}


def test_nothing_to_warn_of() -> None:
    assert warnings_of([result("a"), result("b")]) == []


@pytest.mark.parametrize(
    ("results", "words"),
    [
        (
            [result("a", seen=True), result("b")],
            "1 of 2 cases were seen in training by a model that predicted them: scores on cases "
            "that were trained on say nothing about new ones.",
        ),
        (
            [result("a", seen=None), result("b", seen=None)],
            "Whether 2 of 2 cases were seen in training is unknown: nothing beside their "
            "predictions says so.",
        ),
        (
            [result("a", subject="s"), result("b", subject="s")],
            "The 2 cases are of 1 subjects: the intervals take cases to be independent, and are "
            "too narrow.",
        ),
        ([result("a")], "One case has no interval, and says little about others."),
    ],
)
def test_what_to_warn_of(results: list[CaseResult], words: str) -> None:
    assert warnings_of(results) == [words]


def test_the_row_of_a_case() -> None:
    row = case_row(result("a", 0.5))
    assert list(row)[:2] == ["case", "dice_mean"]
    assert list(row)[-2:] == ["article_metrics_from", "seen_in_training"]
    assert (row["case"], row["seen_in_training"]) == ("a", False)


def test_the_document_is_plain_json_without_paths(datalist: DataList, tmp_path: Path) -> None:
    report = report_of(datalist, result("a", 0.5), result("b", 1.0), empty_rules=True)
    document = report_document(report)
    text = json.dumps(document, allow_nan=False)
    assert str(tmp_path) not in text
    assert document["empty_region_rule"] == STATED_RULE
    assert document["models"] == [{"name": "m", "digest": "d"}]
    assert document["summary"]["dice_WT"]["mean"] == 0.75
    assert document["empty_rules"]["means"]["dice_WT"]["skip"] == {"mean": 0.75, "num_cases": 2}
    assert [row["case"] for row in document["cases"]] == ["a", "b"]


def test_every_column_has_a_definition(datalist: DataList) -> None:
    names = definitions()
    for column in report_of(datalist, result("a")).summaries:
        stem = column.rsplit("_", 1)[0]
        assert column in names or f"{stem}_<R>" in names
