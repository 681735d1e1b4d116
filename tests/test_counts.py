"""Scores from counts: by hand, every empty combination, and MONAI's metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import (
    ConfusionMatrixMetric,
    CumulativeIterationMetric,
    DiceMetric,
    MeanIoU,
)

from pipeline.evaluation.counts import ConfusionCounts, confusion_scores
from pipeline.evaluation.overlap import dice

# MONAI divides in float32.
FLOAT32 = 1e-6


def mask(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


def random_mask(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.random((7, 6, 5)) < random.uniform(0.1, 0.9)


def monai_score(metric: CumulativeIterationMetric, *masks: np.ndarray) -> float:
    metric(*(torch.from_numpy(each)[None, None].float() for each in masks))
    score = metric.aggregate()
    return float(score[0] if isinstance(score, list) else score)


def test_counts_by_hand() -> None:
    counts = ConfusionCounts.of_masks(mask(1, 1, 1, 0, 0, 0, 0), mask(1, 1, 0, 1, 0, 0, 0))
    assert counts == ConfusionCounts(
        num_true_positive=2, num_false_positive=1, num_false_negative=1, num_true_negative=3
    )


def test_scores_by_hand() -> None:
    # Two of five predicted voxels are right, one of the reference's three is missed.
    scores = confusion_scores(mask(1, 1, 1, 1, 1, 0, 0, 0, 0), mask(1, 1, 0, 0, 0, 1, 0, 0, 0))
    assert scores == {
        "iou": 2 / 6,
        "precision": 2 / 5,
        "sensitivity": 2 / 3,
        "specificity": 3 / 6,
    }


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        pytest.param(mask(0, 0), mask(0, 0), (1.0, 1.0, 1.0, 1.0), id="both empty"),
        pytest.param(mask(0, 0), mask(1, 0), (0.0, 0.0, 0.0, 1.0), id="prediction empty"),
        pytest.param(mask(1, 0), mask(0, 0), (0.0, 0.0, 0.0, 0.5), id="reference empty"),
        pytest.param(mask(1, 1), mask(1, 1), (1.0, 1.0, 1.0, 1.0), id="both full"),
        pytest.param(mask(1, 0), mask(1, 1), (0.5, 1.0, 0.5, 0.0), id="reference full"),
        pytest.param(mask(0, 0), mask(1, 1), (0.0, 0.0, 0.0, 0.0), id="empty against full"),
        pytest.param(mask(1, 1), mask(0, 0), (0.0, 0.0, 0.0, 0.0), id="full against empty"),
    ],
)
def test_the_empty_region_rule(
    prediction: np.ndarray, reference: np.ndarray, expected: tuple[float, ...]
) -> None:
    scores = confusion_scores(prediction, reference)
    assert (tuple(scores), tuple(scores.values())) == (
        ("iou", "precision", "sensitivity", "specificity"),
        expected,
    )


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_monai(seed: int) -> None:
    pair = random_mask(seed), random_mask(seed + 100)
    scores = confusion_scores(*pair)
    expected = {"iou": monai_score(MeanIoU(), *pair)}
    for name in ("precision", "sensitivity", "specificity"):
        expected[name] = monai_score(ConfusionMatrixMetric(metric_name=name), *pair)
    assert scores == pytest.approx(expected, abs=FLOAT32)


@pytest.mark.parametrize("seed", range(5))
def test_iou_agrees_with_the_dice_of_this_project_and_of_monai(seed: int) -> None:
    pair = random_mask(seed), random_mask(seed + 100)
    iou = confusion_scores(*pair)["iou"]
    ours = dice(*(torch.from_numpy(each) for each in pair))
    # The last bits of two quotients in float64.
    assert 2 * iou / (1 + iou) == pytest.approx(ours, abs=1e-12)
    assert ours == pytest.approx(monai_score(DiceMetric(), *pair), abs=FLOAT32)


def test_scores_are_plain_floats_and_counts_plain_integers() -> None:
    pair = random_mask(0), random_mask(1)
    assert {type(value) for value in confusion_scores(*pair).values()} == {float}
    assert {type(value) for value in vars(ConfusionCounts.of_masks(*pair)).values()} == {int}


def test_refuses_class_indices() -> None:
    with pytest.raises(ValueError, match="prediction must be a boolean mask, not uint8"):
        confusion_scores(np.zeros(3, dtype=np.uint8), mask(0, 0, 1))
