"""What a cross-validation says in the end: per fold and over all cases, for people and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.crossvalidation.plan import MASKS, REPORT, SCORES, Plan
from pipeline.crossvalidation.thresholds import VOLUMES_ML, Choice
from pipeline.data.json_files import json_bytes
from pipeline.evaluation.case_scores import CaseResult
from pipeline.evaluation.definitions import COMPARED_MEASURES, STATED_RULE
from pipeline.evaluation.overlap import BACKGROUND
from pipeline.evaluation.report import Report, definitions, origin_document, warnings_of
from pipeline.evaluation.statistics import NUM_RESAMPLES, Score, Summary, summarise
from pipeline.evaluation.tables import CALIBRATION_COLUMNS, NOTHING, Grid, result_grids, worst_grid
from pipeline.model.checkpoint import ENSEMBLE
from pipeline.versions import versions_of

SUMMARY, MARKDOWN = "summary.json", "summary.md"
PACKAGES = ("torch", "monai", "numpy", "scipy", "nibabel")
HEADINGS = {"min_et_volume_ml": "ET\nmL", "min_component_ml": "component\nmL"}
CHOSEN_ON = {
    "folds": "the masks of the other folds, by mean region Dice",
    "ensemble": "the masks of all folds, by mean region Dice",
}


@dataclass(frozen=True)
class Findings:
    """What was found out: the scores of all cases, and the thresholds of each fold and of all."""

    report: Report
    of_folds: Mapping[int, Choice]
    of_all: Choice


def fold_of_case(plan: Plan) -> dict[str, int]:
    """Return the fold of each case."""
    return {case.id: fold for fold, cases in plan.cases.items() for case in cases}


def results_of(plan: Plan, report: Report) -> dict[int, list[CaseResult]]:
    """Return the results of each fold, worst first."""
    fold_of = fold_of_case(plan)
    return {
        fold: [result for result in report.results if fold_of[result.case] == fold]
        for fold in plan.folds
    }


def columns_of(report: Report) -> list[str]:
    """Return the scores that are summarised: those of the regions, the background's, calibration.

    The background has neither distances nor lesions.
    """
    regions = report.regions
    dices = ["dice_mean", *(f"dice_{region}" for region in regions)]
    others = [f"{name}_{region}" for name in COMPARED_MEASURES[1:] for region in regions]
    return [*dices, *others, *(f"{BACKGROUND}{name}" for name in dices), *CALIBRATION_COLUMNS]


def summary_document(plan: Plan, findings: Findings) -> dict[str, Any]:
    """Return everything as plain JSON: no times, and no paths but those within the folder."""
    report, columns = findings.report, columns_of(findings.report)
    fold_of = fold_of_case(plan)
    of_folds = results_of(plan, report)
    described = definitions()
    return {
        "software": versions_of(PACKAGES),
        **plan.statement(),
        **origin_document(report),
        "empty_region_rule": STATED_RULE,
        "definitions": {
            name: text
            for name, text in described.items()
            if name.removesuffix("_<R>") in (*COMPARED_MEASURES, "dice_mean", *CALIBRATION_COLUMNS)
        },
        "bootstrap": {
            "what": "95 % percentile interval of the mean, cases drawn with replacement",
            "resamples": NUM_RESAMPLES,
            "seed": report.seed,
        },
        "all": {
            "num_cases": len(report.results),
            "scores": {name: asdict(report.summaries[name]) for name in columns},
        },
        "of_folds": {
            str(fold): {
                "num_cases": len(results),
                "scores": {name: asdict(_summary(report, results, name)) for name in columns},
            }
            for fold, results in of_folds.items()
        },
        "thresholds": {
            "chosen_on": CHOSEN_ON,
            "candidates": {name: list(volumes) for name, volumes in VOLUMES_ML.items()},
            "folds": {str(fold): asdict(choice) for fold, choice in findings.of_folds.items()},
            "ensemble": asdict(findings.of_all),
        },
        "cases": [
            {
                "case": result.case,
                "fold": fold_of[result.case],
                **{name: result.scores[name] for name in columns},
            }
            for result in report.results
        ],
        "files": {
            "models": [str(path.relative_to(plan.folder)) for path in plan.checkpoints],
            "ensemble": ENSEMBLE,
            "masks": MASKS,
            "scores": SCORES,
        },
    }


def grids_of(plan: Plan, findings: Findings) -> list[Grid]:
    """Return the tables that are printed: all cases, each fold, thresholds, the worst cases."""
    report = findings.report
    return [
        *result_grids(report),
        _folds(plan, report),
        _thresholds(findings),
        worst_grid(report),
    ]


def summary_files(plan: Plan, findings: Findings) -> dict[str, bytes]:
    """Return the content of the summary's files by their names."""
    report = findings.report
    grids = [*grids_of(plan, findings)[:-1], _cases(plan, report)]
    notes = [*warnings_of(report.results), STATED_RULE, *places(plan)]
    parts = [*(grid.to_markdown() for grid in grids), *(f"{text}\n" for text in notes)]
    return {
        MARKDOWN: "\n".join(parts).encode(),
        SUMMARY: json_bytes(summary_document(plan, findings)),
    }


def places(plan: Plan) -> list[str]:
    """Return where everything is, within the folder."""
    return [
        f"Models:   fold_<fold>/best.pt, and {ENSEMBLE} of all {len(plan.folds)}",
        f"Masks:    {MASKS}/<case>_seg.nii.gz, each by the one model that has not seen its case",
        f"Scores:   {SUMMARY}, {MARKDOWN}; all scores of all cases in {SCORES}/",
        f"Pictures: {REPORT}, unless it was left out",
    ]


def _summary(report: Report, results: Sequence[CaseResult], name: str) -> Summary:
    return summarise([result.scores[name] for result in results], seed=report.seed)


def _folds(plan: Plan, report: Report) -> Grid:
    names = ["dice_mean", *(f"dice_{region}" for region in report.regions)]
    distances = [f"hd95_mm_{region}" for region in report.regions]
    headings = (
        "fold",
        "cases",
        "mean\nDice",
        "95 % interval",
        *(f"Dice\n{region}" for region in report.regions),
        *(f"HD95\n{region}\nmm" for region in report.regions),
    )
    grid = Grid("The folds, each predicted by the model that was trained on the others", headings)
    parts = {str(fold): results for fold, results in results_of(plan, report).items()}
    for title, results in {**parts, "all": list(report.results)}.items():
        mean, *means = (_summary(report, results, name) for name in (*names, *distances))
        cells = [_shown(one.mean, 2 if i + 1 >= len(names) else 3) for i, one in enumerate(means)]
        # A single case has none.
        interval = " to ".join(_shown(end, 3) for end in mean.interval_95 or ()) or NOTHING
        grid.rows.append((title, str(len(results)), _shown(mean.mean, 3), interval, *cells))
    return grid


def _thresholds(findings: Findings) -> Grid:
    headings = (
        "for the masks of",
        "chosen\non cases",
        *(HEADINGS[name] for name in VOLUMES_ML),
        "mean Dice\nthere",
        "without\ncleaning",
    )
    grid = Grid("Smallest volumes that are believed", headings)
    choices = {f"fold {fold}": choice for fold, choice in findings.of_folds.items()}
    for title, choice in {**choices, "new cases": findings.of_all}.items():
        volumes = [NOTHING if ml is None else f"{ml:g}" for ml in choice.thresholds.values()]
        dices = (_shown(choice.dice_mean, 4), _shown(choice.dice_mean_uncleaned, 4))
        grid.rows.append((title, str(choice.num_cases), *volumes, *dices))
    return grid


def _cases(plan: Plan, report: Report) -> Grid:
    """All cases, for the file."""
    names = [name for name in columns_of(report) if not name.startswith(BACKGROUND)]
    grid = Grid("All cases, worst first", ("case", "fold", *names))
    fold_of = fold_of_case(plan)
    for result in report.results:
        cells = [_shown(result.scores[name], 2 if "_mm" in name else 3) for name in names]
        grid.rows.append((result.case, str(fold_of[result.case]), *cells))
    return grid


def _shown(value: Score, decimals: int) -> str:
    return NOTHING if value is None else f"{value:.{decimals}f}"
