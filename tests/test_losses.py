"""The losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.training.losses import build_loss

# A few operations in float32.
FLOAT32 = 1e-6
# Two voxels, two classes: probabilities of class 1 are 0.8 and 0.1.
LOGITS = torch.log(torch.tensor([[0.2, 0.9], [0.8, 0.1]])).reshape(1, 2, 2, 1, 1)
LABEL = torch.tensor([1, 0], dtype=torch.uint8).reshape(1, 1, 2, 1, 1)
CROSS_ENTROPY = -(math.log(0.8) + math.log(0.9)) / 2
# Of class 1 alone: 2 * 0.8 over (0.8 + 0.1) + 1.
DICE = 1 - 2 * 0.8 / 1.9
# MONAI adds 1e-5 to numerator and denominator: at most that much beside the value.
SMOOTHED = 1e-5


def test_cross_entropy_is_the_mean_over_all_voxels() -> None:
    assert float(build_loss("cross_entropy")(LOGITS, LABEL)) == pytest.approx(
        CROSS_ENTROPY, abs=FLOAT32
    )


def test_dice_leaves_the_background_out() -> None:
    assert float(build_loss("dice")(LOGITS, LABEL)) == pytest.approx(DICE, abs=SMOOTHED)


def test_dice_ce_is_the_sum_of_both() -> None:
    expected = DICE + CROSS_ENTROPY
    assert float(build_loss("dice_ce")(LOGITS, LABEL)) == pytest.approx(expected, abs=SMOOTHED)


def test_dice_is_that_of_the_whole_batch() -> None:
    # One sample has class 1 and the other has none, which on its own would score about 1.
    logits = torch.cat([LOGITS, LOGITS])
    label = torch.cat([LABEL, torch.zeros_like(LABEL)])
    expected = 1 - 2 * 0.8 / (0.9 + 0.9 + 1)
    assert float(build_loss("dice")(logits, label)) == pytest.approx(expected, abs=SMOOTHED)


def test_smoothing_speaks_against_finding_what_is_absent() -> None:
    # No voxel has class 1, and 0.8 + 0.1 of it is found: 1 - s / (0.9 + s).
    nothing = torch.zeros_like(LABEL)
    smoothed = build_loss("dice", dice_smoothing=2.0)(LOGITS, nothing)
    assert float(smoothed) == pytest.approx(1 - 2.0 / 2.9, abs=FLOAT32)


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "dice_ce"])
def test_the_gradient_points_towards_the_label(name: str) -> None:
    logits = LOGITS.clone().requires_grad_()
    build_loss(name)(logits, LABEL).backward()
    assert logits.grad is not None
    # Less loss where the tumour's logit rises in its voxel and falls in the other.
    assert logits.grad[0, 1, 0] < 0 < logits.grad[0, 1, 1]


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(ValueError, match="expected one of cross_entropy, dice, dice_ce; found 'l'"):
        build_loss("l")


# Regions of three classes, as in BraTS; of the two voxels one is class 3 and one class 2.
REGIONS = [[1, 2, 3], [1, 3], [3]]
REGION_LABEL = torch.tensor([3, 2], dtype=torch.uint8).reshape(1, 1, 2, 1, 1)
# Probabilities of WT, TC and ET in the two voxels; WT is true in both, TC and ET in the first.
INSIDE = torch.tensor([[0.9, 0.8], [0.7, 0.2], [0.6, 0.1]])
REGION_LOGITS = INSIDE.logit().reshape(1, 3, 2, 1, 1)
BINARY = -sum(map(math.log, (0.9, 0.8, 0.7, 0.8, 0.6, 0.9))) / 6
REGION_DICE = 1 - (2 * 1.7 / 3.7 + 2 * 0.7 / 1.9 + 2 * 0.6 / 1.7) / 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cross_entropy", BINARY), ("dice", REGION_DICE), ("dice_ce", BINARY + REGION_DICE)],
)
def test_with_region_outputs_each_region_is_a_mask_of_its_own(name: str, expected: float) -> None:
    loss = build_loss(name, regions=REGIONS)(REGION_LOGITS, REGION_LABEL)
    assert float(loss) == pytest.approx(expected, abs=SMOOTHED)


@pytest.mark.parametrize("regions", [None, REGIONS], ids=["classes", "regions"])
def test_each_coarser_level_counts_half_as_much(regions: list[list[int]] | None) -> None:
    loss = build_loss("dice_ce", regions=regions)
    generator = torch.Generator().manual_seed(0)
    num_channels = 4 if regions is None else 3
    label = torch.randint(0, 4, (1, 1, 4, 4, 4), generator=generator, dtype=torch.uint8)
    fine, coarse = (
        torch.randn(1, num_channels, size, size, size, generator=generator) for size in (4, 2)
    )
    # Of each 2 x 2 x 2 voxels the last one is the nearest to the middle, as torch rounds it.
    parts = loss(fine, label), loss(coarse, label[..., 1::2, 1::2, 1::2])
    expected = (parts[0] + 0.5 * parts[1]) / 1.5
    torch.testing.assert_close(loss([fine, coarse], label), expected)  # type: ignore[arg-type]
