"""Thresholds are chosen where they matter, and never on the cases that they are applied to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import AFFINE, LABELS, make_cohort, save_nifti

from pipeline.config import build_settings
from pipeline.crossvalidation import thresholds
from pipeline.crossvalidation.plan import Plan
from pipeline.crossvalidation.thresholds import (
    VOLUMES_ML,
    candidate_dices,
    candidates,
    choose,
    choose_all,
    dice_table,
)
from pipeline.data.datalist import Case, read_datalist
from pipeline.errors import DataError
from pipeline.evaluation.pair_content import PairContent
from pipeline.evaluation.pairs import Pair
from pipeline.evaluation.provenance import Provenance
from pipeline.inference.cleaning import clean_classes

REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
VALUES = np.array(list(LABELS.values()), dtype=np.uint8)
SHAPE = (30, 20, 20)
OFF = {"min_et_volume_ml": None, "min_component_ml": None}


def random_classes(seed: int) -> np.ndarray:
    """Return class indices (X, Y, Z): boxes of all sizes, so that every threshold matters."""
    random = np.random.default_rng(seed)
    classes = np.zeros(SHAPE, dtype=np.uint8)
    for _ in range(25):
        start, size = random.integers(1, [28, 18, 18]), random.integers(1, 6, 3)
        box = tuple(slice(a, a + b) for a, b in zip(start, size, strict=True))
        classes[box] = random.integers(0, 4)
    return classes


def content_of(prediction: np.ndarray, reference: np.ndarray) -> PairContent:
    return PairContent(
        case=Case("a", "a", (), None, None, (0, 1, 2, 4)),
        prediction=prediction,
        reference=reference,
        num_classes=4,
        probabilities=None,
        spacing_mm=(1.2, 0.9, 2.5),
        voxel_ml=0.0027,
        provenance=Provenance(),
    )


def naive_dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    dices = []
    for classes in REGIONS.values():
        p, r = np.isin(prediction, classes), np.isin(reference, classes)
        dices.append(2 * (p & r).sum() / (p.sum() + r.sum()) if p.any() or r.any() else 1.0)
    return float(sum(dices) / len(dices))


# ---- Candidates ---------------------------------------------------------------------------------


def test_the_first_candidate_cleans_nothing_and_the_last_the_most() -> None:
    each = candidates(REGIONS)
    assert each[0] == OFF
    assert each[-1] == {name: volumes[-1] for name, volumes in VOLUMES_ML.items()}
    assert len(each) == len(VOLUMES_ML["min_et_volume_ml"]) * len(VOLUMES_ML["min_component_ml"])


def test_no_candidate_comes_before_one_that_is_weaker_in_everything() -> None:
    steps = [
        tuple(VOLUMES_ML[name].index(volume) for name, volume in each.items())
        for each in candidates(REGIONS)
    ]
    for position, later in enumerate(steps):
        for earlier in steps[:position]:
            assert not all(a >= b for a, b in zip(earlier, later, strict=True)), (earlier, later)


def test_without_an_enhancing_tumour_its_threshold_stays_off() -> None:
    each = candidates({"WT": (1,)})
    assert {one["min_et_volume_ml"] for one in each} == {None}
    assert len(each) == len(VOLUMES_ML["min_component_ml"])


@pytest.mark.parametrize("seed", range(4))
def test_the_dices_are_those_of_the_whole_volumes(seed: int) -> None:
    prediction, reference = random_classes(seed), random_classes(seed + 100)
    each = candidates(REGIONS)
    before = prediction.copy(), reference.copy()
    content = content_of(prediction, reference)
    dices = candidate_dices(content, regions=REGIONS, each=each)
    naive = []
    for one in each:
        arguments: dict[str, Any] = dict(one)
        cleaned, _ = clean_classes(
            prediction, regions=REGIONS, spacing_mm=content.spacing_mm, **arguments
        )
        naive.append(naive_dice(cleaned, reference))
    assert dices == naive
    assert len(set(dices)) > 1  # else nothing was compared
    assert np.array_equal(prediction, before[0])
    assert np.array_equal(reference, before[1])


def test_an_empty_case_is_right_under_every_candidate() -> None:
    nothing = np.zeros(SHAPE, dtype=np.uint8)
    each = candidates(REGIONS)
    assert candidate_dices(content_of(nothing, nothing), regions=REGIONS, each=each) == [1.0] * 49


# ---- The choice ---------------------------------------------------------------------------------


EACH: list[dict[str, float | None]] = [
    {"min_et_volume_ml": None},
    {"min_et_volume_ml": 0.1},
    {"min_et_volume_ml": 1.0},
]


def test_the_best_mean_wins() -> None:
    choice = choose([[0.5, 0.9, 0.4], [0.5, 0.3, 0.7]], EACH)
    assert choice.thresholds == {"min_et_volume_ml": 0.1}
    assert (choice.num_cases, choice.dice_mean, choice.dice_mean_uncleaned) == (2, 0.6, 0.5)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0.5, 0.5, 0.5]], None),
        ([[0.4, 0.5, 0.5]], 0.1),
        # What rounding makes of a sum is no difference: 0.1 + 0.2 is not 0.3.
        ([[0.3, 0.1, 0.0], [0.0, 0.2, 0.0]], None),
        ([[0.5, 0.5 + 1e-15, 0.5]], None),
    ],
    ids=["all equal", "two equal", "another order", "a last bit"],
)
def test_of_equal_ones_the_weakest_wins(rows: list[list[float]], expected: float | None) -> None:
    assert choose(rows, EACH).thresholds == {"min_et_volume_ml": expected}


def test_a_fold_has_no_part_in_its_own_choice() -> None:
    # In fold 0 the strong cleaning is far the best, in the others the worst.
    table = {0: [[0.1, 0.2, 1.0]], 1: [[0.5, 0.6, 0.3]], 2: [[0.5, 0.6, 0.3]]}
    of_folds, of_all = choose_all(table, EACH)
    assert of_folds[0].thresholds == {"min_et_volume_ml": 0.1}
    assert of_folds[1].thresholds == of_folds[2].thresholds == {"min_et_volume_ml": 1.0}
    assert of_all.thresholds == {"min_et_volume_ml": 1.0}
    assert (of_folds[0].num_cases, of_all.num_cases) == (2, 3)


# ---- On files: nothing of a fold's own masks and references reaches its thresholds --------------


SPECK = (slice(2, 4),) * 3  # 8 voxels of 2.7 mm3: 0.022 mL


def write(path: Path, classes: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_nifti(path, VALUES[classes], AFFINE)


def bulk() -> np.ndarray:
    classes = np.zeros(SHAPE, dtype=np.uint8)
    classes[8:26, 6:16, 6:16] = 2
    return classes


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Six cases in three folds; the masks have a speck beside the tumour.

    It is true in the cases of fold 0, where cleaning harms, and false in those of the others.
    """
    (tmp_path / "data").mkdir()
    path = make_cohort(tmp_path / "data", num_cases=6, num_folds=3, shape=SHAPE)
    plan = Plan(tmp_path / "cv", read_datalist(path), (0, 1, 2), build_settings())
    for fold, cases in plan.cases.items():
        for case in cases:
            with_speck = bulk()
            with_speck[SPECK] = 2
            assert case.label is not None
            write(case.label, with_speck if fold == 0 else bulk())
            write(plan.raw_masks(fold) / f"{case.id}_seg.nii.gz", with_speck)
    return plan


def chosen(plan: Plan) -> tuple[dict[int, dict[str, float | None]], dict[str, float | None]]:
    each = candidates(plan.datalist.region_classes())
    of_folds, of_all = choose_all(dice_table(plan, each), each)
    return {fold: choice.thresholds for fold, choice in of_folds.items()}, of_all.thresholds


def test_what_is_best_on_a_fold_but_worst_on_the_others_is_not_chosen_for_it(plan: Plan) -> None:
    of_folds, of_all = chosen(plan)
    # The others say that specks are false, though in fold 0 they are true. A leak would be OFF.
    assert of_folds[0] == {**OFF, "min_component_ml": 0.05}
    # For fold 1, one of the other folds gains what the other one loses: a tie, so the weaker.
    assert of_folds[1] == of_folds[2] == OFF
    assert of_all == {**OFF, "min_component_ml": 0.05}


@pytest.mark.parametrize("fold", [0, 1, 2])
@pytest.mark.parametrize("what", ["references", "masks"])
def test_a_folds_thresholds_do_not_move_with_its_own_files(
    plan: Plan, fold: int, what: str
) -> None:
    before, of_all = chosen(plan)
    for case in plan.cases[fold]:
        # In fold 0 the speck comes to be false, in the others true: the worst for what was chosen.
        changed = bulk()
        if fold != 0 or what == "masks":
            changed[SPECK] = 3
        if what == "references":
            assert case.label is not None
            write(case.label, changed)
        else:
            write(plan.raw_masks(fold) / f"{case.id}_seg.nii.gz", np.roll(changed, 3, axis=0))
    after, of_all_after = chosen(plan)
    assert after[fold] == before[fold]
    # They do move those of the others, or of all: else nothing was tried.
    assert (after, of_all_after) != (before, of_all)


def test_all_masks_that_cannot_be_used_are_named(plan: Plan) -> None:
    for fold in (0, 2):
        path = plan.raw_masks(fold) / f"{plan.cases[fold][0].id}_seg.nii.gz"
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"case_000.*\n.*case_002"):
        chosen(plan)


def test_probabilities_are_not_read(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    read = thresholds.read_pair

    def remember(pair: Pair, **more: Any) -> PairContent:
        seen.append(pair)
        return read(pair, **more)

    monkeypatch.setattr(thresholds, "read_pair", remember)
    for fold, cases in plan.cases.items():
        (plan.raw_masks(fold) / f"{cases[0].id}_probabilities.nii.gz").write_bytes(b"not read")
    chosen(plan)
    assert len(seen) == 6
    assert all(replace(pair, probabilities=None) == pair for pair in seen)
