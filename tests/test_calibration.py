"""The expected calibration error: by hand, its extremes, and against a loop over the voxels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.evaluation import calibration
from pipeline.evaluation.calibration import expected_calibration_error

# Sums of some hundred float64 values in another order.
FLOAT64 = 1e-12


def binary(*confidences: float) -> np.ndarray:
    """Return probabilities (2, X, 1, 1) whose first class has the given ones."""
    first = np.array(confidences)
    return np.stack([first, 1 - first]).reshape(2, -1, 1, 1)


def volume(*classes: int) -> np.ndarray:
    return np.array(classes, dtype=np.uint8).reshape(-1, 1, 1)


def random_case(seed: int, shape: tuple[int, ...] = (9, 5, 4)) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (4, X, Y, Z) of all confidences, and classes that often follow them."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(4, *shape)) * random.uniform(0.1, 6, shape)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
    noise = random.integers(0, 4, shape)
    classes = np.where(random.random(shape) < 0.7, probabilities.argmax(axis=0), noise)
    return probabilities.astype(np.float32), classes.astype(np.uint8)


def naive_error(
    probabilities: np.ndarray, reference: np.ndarray, num_bins: int, mask: np.ndarray
) -> float:
    """Guo et al., equation 3: sort the voxels into bins one by one, then average over the bins."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(num_bins)]
    for voxel in np.argwhere(mask):
        scores = [float(probabilities[(index, *voxel)]) for index in range(len(probabilities))]
        confidence = max(scores)
        right = scores.index(confidence) == reference[tuple(voxel)]
        for number in range(num_bins):
            if number / num_bins < confidence <= (number + 1) / num_bins:
                bins[number].append((confidence, right))
    assert sum(map(len, bins)) == mask.sum()
    error = 0.0
    for members in filter(None, bins):
        confidence = sum(value for value, _ in members) / len(members)
        accuracy = sum(right for _, right in members) / len(members)
        error += len(members) / mask.sum() * abs(accuracy - confidence)
    return error


def test_by_hand() -> None:
    # Bin (0.6, 0.8]: 0.7 right, 0.75 wrong: |1/2 - 0.725|; bin (0.8, 1]: 0.9 and 1 right: 0.05.
    error = expected_calibration_error(binary(0.7, 0.75, 0.9, 1.0), volume(0, 1, 0, 0), num_bins=5)
    assert error == pytest.approx((2 * 0.225 + 2 * 0.05) / 4, abs=FLOAT64)


def test_gaps_cancel_within_a_bin_and_not_between_bins() -> None:
    # 0.75 right is 0.25 too low, 0.875 wrong 0.875 too high: one bin of two, or two of eight.
    case = binary(0.75, 0.875), volume(0, 1)
    assert expected_calibration_error(*case, num_bins=2) == (0.875 - 0.25) / 2
    assert expected_calibration_error(*case, num_bins=8) == (0.875 + 0.25) / 2


def test_an_edge_belongs_to_the_bin_below_it() -> None:
    # 0.75 lies in (0.5, 0.75], with 0.625 and not with 0.875.
    case = binary(0.625, 0.75, 0.875), volume(0, 1, 0)
    expected = (abs(1 - 0.625 - 0.75) + abs(1 - 0.875)) / 3
    assert expected_calibration_error(*case, num_bins=4) == pytest.approx(expected, abs=FLOAT64)


def test_the_edges_are_the_quotients_in_float64() -> None:
    # float32(0.6) is above 0.6 by 2e-8, and so in the upper bin, where float64(0.6) is not.
    lifted = binary(0.55, 0.6).astype(np.float32)
    expected = (0.45 + 0.6) / 2
    found = expected_calibration_error(lifted, volume(0, 1), num_bins=5)
    assert found == pytest.approx(expected, abs=1e-7)  # confidences of float32
    together = expected_calibration_error(binary(0.55, 0.6), volume(0, 1), num_bins=5)
    assert together == pytest.approx((0.6 - 0.45) / 2, abs=FLOAT64)


def test_a_tie_goes_to_the_first_class() -> None:
    assert expected_calibration_error(binary(0.5), volume(0), num_bins=1) == 0.5
    assert expected_calibration_error(binary(0.5), volume(1), num_bins=1) == 0.5
    case = np.array([0.25, 0.375, 0.375]).reshape(3, 1, 1, 1)
    assert expected_calibration_error(case, volume(1)) == 0.625
    assert expected_calibration_error(case, volume(2)) == 0.375


def test_perfectly_calibrated_is_0() -> None:
    # Of four voxels at 0.75 three are right, of two at 0.5 one, and the certain one is.
    probabilities = binary(0.75, 0.75, 0.75, 0.75, 0.5, 0.5, 1.0)
    assert expected_calibration_error(probabilities, volume(0, 0, 0, 1, 0, 1, 0)) == 0.0


def test_certain_and_always_wrong_is_1() -> None:
    assert expected_calibration_error(binary(1.0, 1.0, 0.0), volume(1, 1, 0)) == 1.0


def test_a_confidence_that_rounding_lifted_above_1_is_in_the_last_bin() -> None:
    lifted = np.nextafter(np.float32(1), np.float32(2))
    probabilities = np.array([lifted, 0], dtype=np.float32).reshape(2, 1, 1, 1)
    assert expected_calibration_error(probabilities, volume(0)) == float(lifted) - 1


@pytest.mark.parametrize("num_bins", [1, 7, 15])
@pytest.mark.parametrize("slab_voxels", [1, 50, 1000])
def test_agrees_with_a_loop_over_the_voxels(
    num_bins: int, slab_voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1 voxel: slice by slice; 50: two slices of 20 at a time and an odd one; 1000: all at once.
    monkeypatch.setattr(calibration, "_SLAB_VOXELS", slab_voxels)
    probabilities, classes = random_case(num_bins)
    mask = np.random.default_rng(num_bins).random(classes.shape) < 0.6
    mask[4:6] = False  # slabs without a voxel
    found = expected_calibration_error(probabilities, classes, num_bins=num_bins, mask=mask)
    expected = naive_error(probabilities, classes, num_bins, mask)
    assert found == pytest.approx(expected, abs=FLOAT64)
    everywhere = expected_calibration_error(probabilities, classes, num_bins=num_bins)
    expected = naive_error(probabilities, classes, num_bins, np.ones_like(mask))
    assert everywhere == pytest.approx(expected, abs=FLOAT64)


def test_the_memory_order_does_not_matter() -> None:
    # As a file with the classes on its last axis gives it.
    probabilities, classes = random_case(3)
    moved = np.moveaxis(np.moveaxis(probabilities, 0, -1).copy(order="F"), -1, 0)
    expected = expected_calibration_error(probabilities, classes)
    assert expected_calibration_error(moved, np.asfortranarray(classes)) == expected


def test_what_lies_outside_the_mask_is_not_looked_at() -> None:
    probabilities, classes = binary(0.75, np.nan), volume(0, 9)
    mask = volume(1, 0).astype(bool)
    assert expected_calibration_error(probabilities, classes, mask=mask) == 0.25


CASE = random_case(0, shape=(3, 2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.zeros((3, 2, 2), dtype=bool)}, "no voxel .*: the mask is empty"),
        ({"mask": np.ones((3, 2, 2))}, r"mask must be boolean .* not float64 and \(3, 2, 2\)"),
        ({"mask": np.ones((3, 2, 1), dtype=bool)}, r"like the reference, not bool and \(3, 2, 1\)"),
        ({"num_bins": 0}, "num_bins must be at least 1, not 0"),
        ({"reference": CASE[1][None]}, r"found \(4, 3, 2, 2\) and \(1, 3, 2, 2\)"),
        ({"probabilities": CASE[0][0]}, r"found \(3, 2, 2\) and \(3, 2, 2\)"),
        ({"reference": np.full((3, 2, 2), 4)}, "must lie in 0 to 3, .* found 4 to 4"),
        ({"reference": np.full((3, 2, 2), -1)}, "must lie in 0 to 3, .* found -1 to -1"),
        ({"probabilities": CASE[0] * 5}, "the largest of 4 .*: apply softmax first"),
        ({"probabilities": CASE[0] / 5}, "the largest of 4 .*: apply softmax first"),
        ({"probabilities": CASE[0] * np.nan}, "found nan to nan: apply softmax first"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"probabilities": CASE[0], "reference": CASE[1], **change}
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(**arguments)
