"""A cross-validation from its plan to its summary; what is finished is not done again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from tqdm import tqdm

from pipeline.cli import LOG_NAME
from pipeline.crossvalidation.masks import write_masks
from pipeline.crossvalidation.plan import DIGESTS, REPORT, SCORES, Plan
from pipeline.crossvalidation.processes import Command, run_jobs
from pipeline.crossvalidation.summary import SUMMARY, Findings, summary_files
from pipeline.crossvalidation.thresholds import candidates, choose_all, dice_table
from pipeline.data.files import replace_files, sweep_temporaries
from pipeline.evaluation.pairs import Selection, find_pairs
from pipeline.evaluation.report import Report, make_report
from pipeline.evaluation.result_files import make_folder, write_report
from pipeline.evaluation.scoring import default_num_workers, score_pairs
from pipeline.model.checkpoint import ENSEMBLE
from pipeline.model.ensemble import save_ensemble
from pipeline.training.start import SETTINGS

LOG = logging.getLogger(__name__)
SEED = 0  # of the bootstrap, as in `pipeline.evaluate`


def crossvalidate(plan: Plan, *, devices: Sequence[str], with_report: bool) -> Findings:
    """Train, predict, clean, score and sum up; the folder is claimed and locked already.

    Args:
        plan: Its list is checked already.
        devices: As many folds are trained at a time.
        with_report: Whether the report with its pictures is made.

    Raises:
        RunStopped, DataError, ResourceError, NumericalError: Of a process (`run_jobs`) or of the
            steps in this one; the same plan then goes on where it stopped.
    """
    sweep_temporaries(plan.folder)
    commands = partial(fold_commands, plan, num_at_a_time=min(len(devices), len(plan.folds)))
    run_jobs([partial(commands, fold) for fold in plan.folds], devices=devices)
    each = candidates(plan.datalist.region_classes())
    LOG.info("Thresholds: %d candidates on the masks of %d cases", len(each), len(plan.all_cases))
    of_folds, of_all = choose_all(dice_table(plan, each), each)
    LOG.info("Masks: cleaned into %s", plan.masks.name)
    write_masks(plan, {fold: choice.thresholds for fold, choice in of_folds.items()})
    findings = Findings(_scored(plan), of_folds, of_all)
    files = summary_files(plan, findings)
    stored = plan.folder / SUMMARY
    # The summary is written last: where it says the same, what comes before it is of the same.
    is_finished = stored.is_file() and stored.read_bytes() == files[SUMMARY]
    if not (is_finished and (plan.folder / ENSEMBLE).is_file()):
        _save_ensemble(plan, findings)
    if with_report and not (is_finished and (plan.folder / REPORT).is_file()):
        run_jobs([lambda _: [report_command(plan)]], devices=[""])
    replace_files(plan.folder, files)
    return findings


def fold_commands(plan: Plan, fold: int, device: str, *, num_at_a_time: int = 1) -> list[Command]:
    """Return what makes the masks of a fold: a training on the others, and an inference.

    As many trainings as there are at a time share the memory in which cases are cached.
    """
    run, cases = plan.run_folder(fold), plan.cases[fold]
    num_others = len(plan.datalist.split(fold)[0])
    shared = ["--fold", str(fold), "--device", device]
    if plan.settings.loading.mask_nonfinite:
        shared.append("--mask-nonfinite")
    cache = [] if plan.cache_dir is None else ["--cache-dir", str(plan.cache_dir)]
    share = plan.settings.loading.cache_memory_fraction / num_at_a_time
    return [
        Command(
            "train",
            (
                *_list_arguments(plan),
                *shared,
                *cache,
                *("--config", str(plan.folder / SETTINGS)),
                *("--set", f"loading.cache_memory_fraction={share}"),
                *("--digests", str(plan.folder / DIGESTS)),
                *("--output-dir", str(run)),
                "--resume",
            ),
            f"Fold {fold}: training on the {num_others} cases of the other folds",
            str(run / LOG_NAME),
        ),
        Command(
            "infer",
            (
                *_list_arguments(plan),
                *shared,
                *(["--probabilities"] if plan.probabilities else []),
                *("--model", str(run)),
                *("--output-dir", str(plan.raw_masks(fold))),
            ),
            f"Fold {fold}: predicting its {len(cases)} cases, which this model has not seen",
            str(plan.raw_masks(fold) / LOG_NAME),
        ),
    ]


def report_command(plan: Plan) -> Command:
    """Return what shows all cases: a cross-validation's folder looks like that of a run."""
    arguments = (
        str(plan.folder),
        *_list_arguments(plan),
        *("--output", str(plan.folder / REPORT)),
        *("--cases", *(case.id for case in plan.all_cases)),
    )
    return Command("report", arguments, f"Report: {REPORT}")


def _list_arguments(plan: Plan) -> list[str]:
    outside = ["--allow-outside-root"] if plan.allow_outside_root else []
    return [str(plan.datalist.path), *outside]


def _scored(plan: Plan) -> Report:
    """Score all masks, as `pipeline.evaluate` does, and write its files.

    The check of the pairs is left out: reference, mask and probabilities were read and judged when
    the masks were made.
    """
    cases = plan.all_cases
    pairs = find_pairs(plan.masks, cases)
    num_workers = min(default_num_workers(), len(pairs))
    LOG.info("Scores: of %d cases into %s", len(pairs), SCORES)
    with tqdm(total=len(pairs), desc="Scoring", unit="case", disable=None) as bar:
        results = score_pairs(
            pairs,
            labels=plan.datalist.labels,
            regions=plan.datalist.region_classes(),
            num_workers=num_workers,
            on_case=bar.update,
        )
    names = ", ".join(map(str, plan.folds))
    report = make_report(
        results,
        predictions=plan.masks.name,
        datalist=plan.datalist,
        selection=Selection(cases, f"out of fold, folds {names}"),
        seed=SEED,
        empty_rules=False,
    )
    folder = plan.folder / SCORES
    make_folder(folder)
    sweep_temporaries(folder)
    write_report(folder, report)
    return report


def _save_ensemble(plan: Plan, findings: Findings) -> None:
    LOG.info("Ensemble: %d models into %s", len(plan.folds), ENSEMBLE)
    means = {name: summary.mean for name, summary in findings.report.summaries.items()}
    save_ensemble(
        plan.checkpoints,
        plan.folder / ENSEMBLE,
        postprocessing=findings.of_all.thresholds,
        # Of its members, each on the cases that it has not seen.
        scores={name: mean for name, mean in means.items() if "dice" in name and mean is not None},
    )
