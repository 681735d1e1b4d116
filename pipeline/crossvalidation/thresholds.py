"""From which volumes on a finding is believed: chosen on out-of-fold masks, never on one's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import fsum
from typing import Any, TypeAlias

import numpy as np
import torch
from tqdm import tqdm

from pipeline.crossvalidation.plan import Plan
from pipeline.data.boxes import bounding_box
from pipeline.errors import DataError, Problem
from pipeline.evaluation.case_scores import Regions
from pipeline.evaluation.overlap import named_dice, region_dice
from pipeline.evaluation.pair_content import PairContent, read_pair
from pipeline.evaluation.pairs import Pair, find_pairs
from pipeline.evaluation.scoring import default_num_workers
from pipeline.inference.cleaning import clean_classes

LOG = logging.getLogger(__name__)
Thresholds: TypeAlias = Mapping[str, float | None]

# Smallest volumes of `clean_classes`, the weakest cleaning first. To replace an enhancing tumour of
# some hundred voxels of 1 mm3 goes back to Isensee et al. (2018, arXiv:1809.10483), who chose the
# volume by cross-validation as well.
VOLUMES_ML: dict[str, tuple[float | None, ...]] = {
    "min_et_volume_ml": (None, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    "min_component_ml": (None, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
}
# Sums in another order must not break a tie.
DECIMALS = 12


@dataclass(frozen=True)
class Choice:
    """Thresholds, the mean region Dice of the cases they were chosen on, and without cleaning."""

    thresholds: dict[str, float | None]
    num_cases: int
    dice_mean: float
    dice_mean_uncleaned: float


def candidates(regions: Regions) -> tuple[dict[str, float | None], ...]:
    """Return all that can be chosen, the weakest cleaning first: it changes nothing.

    A threshold that the regions give no meaning to, as that of ET where there is no ET, stays off.
    """
    numbered = product(*(list(enumerate(_usable(name, regions))) for name in VOLUMES_ML))
    by_strength = sorted(
        numbered, key=lambda each: (sum(step for step, _ in each), [step for step, _ in each])
    )
    names = tuple(VOLUMES_ML)
    return tuple(
        dict(zip(names, (volume for _, volume in each), strict=True)) for each in by_strength
    )


def _usable(name: str, regions: Regions) -> tuple[float | None, ...]:
    nothing = np.zeros((1, 1, 1), dtype=np.uint8)
    arguments: dict[str, Any] = {name: VOLUMES_ML[name][-1]}
    try:
        clean_classes(nothing, regions=regions, spacing_mm=(1.0, 1.0, 1.0), **arguments)
    except ValueError:
        return (None,)
    return VOLUMES_ML[name]


def candidate_dices(
    content: PairContent, *, regions: Regions, each: Sequence[Thresholds]
) -> list[float]:
    """Return the mean region Dice of a case under each of the thresholds.

    Only the box around prediction and reference is looked at: outside of it nothing is cleaned and
    nothing counts.
    """
    box = bounding_box((content.prediction > 0) | (content.reference > 0))
    prediction, reference = content.prediction[box], content.reference[box]
    dices: list[float] = []
    for thresholds in each:
        arguments: dict[str, Any] = dict(thresholds)
        cleaned, changes = clean_classes(
            prediction, regions=regions, spacing_mm=content.spacing_mm, **arguments
        )
        # The first one cleans nothing.
        unchanged = bool(dices) and not changes
        dices.append(dices[0] if unchanged else _mean_dice(cleaned, reference, regions))
    return dices


def _mean_dice(prediction: np.ndarray, reference: np.ndarray, regions: Regions) -> float:
    reference = np.ascontiguousarray(reference)
    dices = region_dice(torch.from_numpy(prediction), torch.from_numpy(reference), regions=regions)
    return named_dice(dices)["dice_mean"]


def dice_table(plan: Plan, each: Sequence[Thresholds]) -> dict[int, list[list[float]]]:
    """Return for each fold the `candidate_dices` of its cases, from its masks before cleaning.

    Raises:
        DataError: A mask or a reference cannot be used; all that is wrong is named.
    """
    pairs = [
        (fold, replace(pair, probabilities=None))
        for fold, cases in plan.cases.items()
        for pair in find_pairs(plan.raw_masks(fold), cases)
    ]
    table: dict[int, list[list[float]]] = {fold: [] for fold in plan.folds}
    of_pair = partial(
        _dices_or_problems,
        labels=plan.datalist.labels,
        regions=plan.datalist.region_classes(),
        each=each,
    )
    problems: list[Problem] = []
    executor = ThreadPoolExecutor(default_num_workers())
    try:
        found = executor.map(of_pair, [pair for _, pair in pairs])
        bar = tqdm(found, desc="Thresholds", total=len(pairs), unit="case", disable=None)
        for (fold, _), result in zip(pairs, bar, strict=True):
            if isinstance(result, DataError):
                problems += result.problems
            else:
                table[fold].append(result)
    finally:
        executor.shutdown(cancel_futures=True)  # an interruption does not wait for all cases
    if problems:
        raise DataError.of(*problems)
    return table


def _dices_or_problems(
    pair: Pair, *, labels: Mapping[str, int], regions: Regions, each: Sequence[Thresholds]
) -> list[float] | DataError:
    try:
        content = read_pair(pair, labels=labels)
    except DataError as error:
        return error
    return candidate_dices(content, regions=regions, each=each)


def choose(rows: Sequence[Sequence[float]], each: Sequence[Thresholds]) -> Choice:
    """Return the thresholds with the best mean over the cases; of equal ones the weakest.

    Args:
        rows: Of each case, at least one, its mean region Dice under each of the thresholds.
        each: The thresholds, the weakest cleaning first.
    """
    means = [round(fsum(column) / len(rows), DECIMALS) for column in zip(*rows, strict=True)]
    best = means.index(max(means))
    return Choice(dict(each[best]), len(rows), means[best], means[0])


def choose_all(
    table: Mapping[int, Sequence[Sequence[float]]], each: Sequence[Thresholds]
) -> tuple[dict[int, Choice], Choice]:
    """Return each fold's choice, made on the cases of the other folds; and that on all cases.

    The first is for the masks of this fold, whose references it has not seen; the second is for new
    cases, and so for the ensemble.
    """
    of_folds = {
        fold: choose([row for other in table if other != fold for row in table[other]], each)
        for fold in table
    }
    return of_folds, choose([row for rows in table.values() for row in rows], each)
