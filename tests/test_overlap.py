"""Overlap scores against sums done by hand, and the empty-region rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.evaluation.overlap import (
    article_metrics,
    article_metrics_of_mask,
    background_scores,
    dice,
    named_dice,
    region_dice,
)

REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
EMPTY = torch.zeros(4, dtype=torch.bool)
# The last bits of a quotient in float64.
FLOAT64 = 1e-12


def mask(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


def volume(*values: int) -> torch.Tensor:
    """Return class indices (1, X, 1, 1)."""
    return torch.tensor(values, dtype=torch.uint8).reshape(1, -1, 1, 1)


def one_hot(*values: int, num_classes: int = 4) -> torch.Tensor:
    """Return certain probabilities (C, X, 1, 1)."""
    return torch.eye(num_classes)[list(values)].T.reshape(num_classes, -1, 1, 1)


# ---- Region Dice --------------------------------------------------------------------------------


def test_dice() -> None:
    assert dice(mask(1, 1, 1, 0), mask(0, 1, 1, 1)) == 4 / 6


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [(EMPTY, EMPTY, 1.0), (mask(1, 0, 0, 0), EMPTY, 0.0), (EMPTY, mask(1, 0, 0, 0), 0.0)],
)
def test_the_empty_region_rule(
    prediction: torch.Tensor, reference: torch.Tensor, expected: float
) -> None:
    assert dice(prediction, reference) == expected


def test_dice_counts_exactly_in_large_masks() -> None:
    # float32 cannot tell 2^24 + 1 from 2^24.
    whole = torch.ones(2**24 + 1, dtype=torch.bool)
    part = whole.clone()
    part[0] = False
    assert dice(part, whole) == 2 * 2**24 / (2**25 + 1)


def test_region_dice_unites_the_classes() -> None:
    prediction, reference = volume(0, 1, 2, 3, 3), volume(0, 3, 2, 3, 1)
    # TC holds 1 and 3: the same three voxels. ET: one of two and two.
    assert region_dice(prediction, reference, regions=REGIONS) == {"WT": 1.0, "TC": 1.0, "ET": 0.5}


def test_region_dice_of_both_empty_is_1_and_of_one_empty_0() -> None:
    scores = region_dice(volume(0, 2), volume(1, 2), regions=REGIONS)
    assert scores == {"WT": 2 / 3, "TC": 0.0, "ET": 1.0}


def test_region_dice_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(1, 2, 1, 1\) and reference \(1, 3, 1, 1\) must have"):
        region_dice(volume(0, 1), volume(0, 1, 2), regions=REGIONS)


def test_named_dice_puts_the_mean_first() -> None:
    named = named_dice({"WT": 0.5, "TC": 0.25, "ET": 0.0})
    assert list(named.items()) == [
        ("dice_mean", 0.25),
        ("dice_WT", 0.5),
        ("dice_TC", 0.25),
        ("dice_ET", 0.0),
    ]


# ---- The article's metrics ----------------------------------------------------------------------


def naive_dice_coeff(y_true: np.ndarray, y_pred: np.ndarray, epsilon: float = 1e-6) -> float:
    """The article's function, in NumPy and float64."""
    y_true, y_pred = y_true.reshape(-1), y_pred.reshape(-1)
    intersection = np.sum(y_true * y_pred)
    union = np.sum(y_true) + np.sum(y_pred)
    return float((2.0 * intersection + epsilon) / (union + epsilon))


def test_article_dice_is_the_article_function() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(torch.randn(4, 5, 6, 7, generator=generator), dim=0)
    reference = torch.randint(0, 4, (1, 5, 6, 7), generator=generator, dtype=torch.uint8)
    truth = np.eye(4)[reference[0].numpy()].transpose(3, 0, 1, 2)
    expected = naive_dice_coeff(truth, probabilities.double().numpy())
    found = article_metrics(probabilities, reference)["article_dice"]
    # Ours takes the reference's sum to be the number of voxels, the naive one adds it up.
    assert found == pytest.approx(expected, abs=FLOAT64)


def test_article_metrics_by_hand() -> None:
    # Voxel 1 is right with 0.75, voxel 2 wrong with 0.5 for the truth's class (ties go to class 0).
    probabilities = torch.tensor([[0.25, 0.5], [0.75, 0.5]]).reshape(2, 2, 1, 1)
    scores = article_metrics(probabilities, volume(1, 1), epsilon=0.0)
    assert scores == {
        "article_dice": 2 * 1.25 / 4,
        "article_iou": 1.25 / 2.75,
        "mean_iou": (0.0 + 0.5) / 2,  # class 0: predicted once, never true; class 1: one of two
        "accuracy": 0.5,
    }


def test_a_perfect_prediction_scores_1() -> None:
    # Classes 2 and 3 are in neither, and count 1 in the mean IoU.
    assert article_metrics(one_hot(0, 1, 0), volume(0, 1, 0)) == {
        "article_dice": 1.0,
        "article_iou": 1.0,
        "mean_iou": 1.0,
        "accuracy": 1.0,
    }


def test_article_metrics_refuse_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 1, 1\) and reference \(1, 2, 1, 1\) must have"):
        article_metrics(one_hot(0, 1, 0), volume(0, 1))


def test_metrics_are_plain_floats() -> None:
    scores = article_metrics(one_hot(0, 1), volume(0, 1)) | region_dice(
        volume(0, 1), volume(0, 1), regions=REGIONS
    )
    assert {type(value) for value in scores.values()} == {float}


# ---- Everything is background -------------------------------------------------------------------


def test_background_scores() -> None:
    # On its own grid the case has tumour (no ET) in two of five voxels; the crop left one of four.
    scores = background_scores(
        volume(0, 0, 0, 1, 2), volume(0, 0, 0, 1), regions=REGIONS, num_classes=4
    )
    assert scores == {
        "dice_mean": pytest.approx(1 / 3, abs=FLOAT64),
        "dice_WT": 0.0,
        "dice_TC": 0.0,
        "dice_ET": 1.0,
        # Three of four voxels agree; the guard of 1e-6 moves the quotient by less than that.
        "article_dice": pytest.approx(6 / 8, abs=1e-6),
        "article_iou": pytest.approx(3 / 5, abs=1e-6),
        "mean_iou": (3 / 4 + 0 + 1 + 1) / 4,
        "accuracy": 0.75,
    }


# ---- Fast ways against slow ones ----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_mask_scores_as_certain_probabilities(seed: int) -> None:
    random = np.random.default_rng(seed)
    classes, reference = (volume(*random.integers(0, 3, 200).tolist()) for _ in range(2))
    certain = one_hot(*classes.flatten().tolist())
    found = article_metrics_of_mask(classes, reference, num_classes=4)
    assert found == article_metrics(certain, reference)


def test_of_equal_probabilities_the_first_counts() -> None:
    probabilities = torch.tensor([[0.2, 0.4, 0.25], [0.4, 0.4, 0.25], [0.4, 0.2, 0.5]])
    found = article_metrics(probabilities.reshape(3, 3, 1, 1), volume(1, 0, 2))
    assert found["accuracy"] == 1.0


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the same shape"):
        article_metrics_of_mask(volume(0, 1), volume(0, 1, 2), num_classes=3)
