"""One set of predictions, evaluated: its cases worst first, its summary, and what to warn of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.data.datalist import DataList
from pipeline.evaluation.case_scores import MASK, PROBABILITIES, CaseResult
from pipeline.evaluation.definitions import CASE_MEASURES, REGION_MEASURES, RULES, STATED_RULE
from pipeline.evaluation.overlap import BACKGROUND
from pipeline.evaluation.pairs import Selection
from pipeline.evaluation.statistics import (
    NUM_RESAMPLES,
    RuleMean,
    Summary,
    means_by_rule,
    summarise,
)
from pipeline.versions import versions_of

SEEN_WORDS = {True: "seen", False: "unseen", None: "unknown"}


@dataclass(frozen=True)
class Report:
    """The scores of one folder of predictions.

    `results` are worst first; `summaries` has one entry a column of scores; `rule_means` is
    column -> rule -> mean, empty unless asked for.
    """

    predictions: str
    datalist: DataList
    selection: Selection
    seed: int
    results: tuple[CaseResult, ...]
    summaries: dict[str, Summary]
    rule_means: dict[str, dict[str, RuleMean]]

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions' names, in the data list's order."""
        return tuple(self.datalist.regions)


def make_report(
    results: Iterable[CaseResult],
    *,
    predictions: str,
    datalist: DataList,
    selection: Selection,
    seed: int,
    empty_rules: bool,
) -> Report:
    """Order and summarise `results`, at least one; `predictions` names their folder."""
    ordered = worst_first(results)
    columns = {name: [result.scores[name] for result in ordered] for name in ordered[0].scores}
    return Report(
        predictions=predictions,
        datalist=datalist,
        selection=selection,
        seed=seed,
        results=ordered,
        summaries={name: summarise(values, seed=seed) for name, values in columns.items()},
        rule_means=_rule_means(ordered, tuple(datalist.regions)) if empty_rules else {},
    )


def worst_first(results: Iterable[CaseResult]) -> tuple[CaseResult, ...]:
    """Return the results by ascending mean region Dice; equal ones by the case's id."""
    return tuple(sorted(results, key=lambda result: (result.value("dice_mean"), result.case)))


def seen_counts(results: Iterable[CaseResult]) -> dict[str, int]:
    """Return how many cases the models trained on, did not, and of how many it is not known."""
    counts = Counter(SEEN_WORDS[result.provenance.seen_in_training] for result in results)
    return {word: counts[word] for word in SEEN_WORDS.values()}


def warnings_of(results: Sequence[CaseResult]) -> list[str]:
    """Return in words what keeps these scores from being taken at face value."""
    num_cases, counts = len(results), seen_counts(results)
    num_subjects = len({result.subject for result in results})
    warnings = []
    if counts["seen"]:
        warnings.append(
            f"{counts['seen']} of {num_cases} cases were seen in training by a model that "
            "predicted them: scores on cases that were trained on say nothing about new ones."
        )
    if counts["unknown"]:
        warnings.append(
            f"Whether {counts['unknown']} of {num_cases} cases were seen in training is unknown: "
            "nothing beside their predictions says so."
        )
    if num_subjects < num_cases:
        warnings.append(
            f"The {num_cases} cases are of {num_subjects} subjects: the intervals take cases to "
            "be independent, and are too narrow."
        )
    if num_cases == 1:
        warnings.append("One case has no interval, and says little about others.")
    return warnings


def report_document(report: Report) -> dict[str, Any]:
    """Return everything as plain JSON values, without paths of this machine."""
    results = report.results
    return {
        "software": versions_of(("numpy", "scipy")),
        "predictions": report.predictions,
        "data_list": {"file": report.datalist.path.name, **report.datalist.header()},
        "selection": report.selection.description,
        "num_cases": len(results),
        "num_subjects": len({result.subject for result in results}),
        **origin_document(report),
        "article_metrics_from": {
            source: sum(result.article_metrics_from == source for result in results)
            for source in (PROBABILITIES, MASK)
        },
        "empty_region_rule": STATED_RULE,
        "definitions": definitions(),
        "bootstrap": {
            "what": "95 % percentile interval of the mean, cases drawn with replacement",
            "resamples": NUM_RESAMPLES,
            "seed": report.seed,
        },
        "summary": {name: asdict(summary) for name, summary in report.summaries.items()},
        **_rules_document(report),
        "columns": list(results[0].scores),
        "cases": [case_row(result) for result in results],
    }


def origin_document(report: Report) -> dict[str, Any]:
    """Return where the predictions come from, and what to warn of."""
    results = report.results
    models = sorted({model for result in results for model in result.provenance.models})
    return {
        "models": [asdict(model) for model in models],
        "seen_in_training": seen_counts(results),
        "warnings": warnings_of(results),
    }


def definitions() -> dict[str, str]:
    """Return what each score is; <R> stands for a region."""
    of_regions = {f"{name}_<R>": measure.definition for name, measure in REGION_MEASURES.items()}
    background = {f"{BACKGROUND}<score>": 'the score of "everything is background"'}
    return of_regions | CASE_MEASURES | background


def case_row(result: CaseResult) -> dict[str, Any]:
    """Return the flat row of one case: its id, its scores, and where they come from."""
    return {
        "case": result.case,
        **result.scores,
        "article_metrics_from": result.article_metrics_from,
        "seen_in_training": result.provenance.seen_in_training,
    }


def _rule_means(
    results: Sequence[CaseResult], regions: Sequence[str]
) -> dict[str, dict[str, RuleMean]]:
    means = {}
    for region in regions:
        is_empty = [result.value(f"reference_volume_ml_{region}") == 0 for result in results]
        for name, measure in REGION_MEASURES.items():
            if measure.worst is not None:
                column = f"{name}_{region}"
                means[column] = means_by_rule(
                    [result.value(column) for result in results],
                    reference_is_empty=is_empty,
                    worst=measure.worst,
                )
    return means


def _rules_document(report: Report) -> dict[str, Any]:
    if not report.rule_means:
        return {}
    means = {
        column: {rule: asdict(mean) for rule, mean in of_column.items()}
        for column, of_column in report.rule_means.items()
    }
    return {"empty_rules": {"rules": RULES, "means": means}}
