"""Lesion-wise scores: small volumes by hand, and a naive twin written from the definition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import ndimage
from surface_distance.metrics import compute_robust_hausdorff, compute_surface_distances

from pipeline.evaluation.lesions import MISSED_LESION_MM, LesionScores, lesion_scores

CUBIC = (1.0, 1.0, 1.0)
SHAPE = (40, 20, 20)
# Sums and quotients of a few float64 values in another order.
FLOAT64 = 1e-9
ALL_26 = np.ones((3, 3, 3), dtype=bool)


def boxes(*corners: Sequence[int], shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Return a mask of boxes, each given by the start and the size along X, Y, Z."""
    mask = np.zeros(shape, dtype=bool)
    for x, y, z, size_x, size_y, size_z in corners:
        mask[x : x + size_x, y : y + size_y, z : z + size_z] = True
    return mask


# Two lesions of 64 voxels, 26 voxels apart.
FIRST, SECOND = (4, 8, 8, 4, 4, 4), (34, 8, 8, 4, 4, 4)
NOTHING = boxes()


# ---- By hand ------------------------------------------------------------------------------------


def test_one_of_two_lesions_found() -> None:
    # The prediction is the first lesion less one of its four layers: Dice 96 / 112.
    found = lesion_scores(boxes((4, 8, 8, 3, 4, 4)), boxes(FIRST, SECOND), spacing_mm=CUBIC)
    assert found == LesionScores(
        dice=96 / 112 / 2,
        hd95_mm=(1.0 + 374.0) / 2,
        f1=2 / 3,
        num_found=1,
        num_missed=1,
        num_false=0,
    )


def test_all_found_exactly() -> None:
    mask = boxes(FIRST, SECOND)
    assert lesion_scores(mask, mask, spacing_mm=CUBIC) == LesionScores(1.0, 0.0, 1.0, 2, 0, 0)


def test_a_bridge_belongs_to_both_lesions_whole() -> None:
    bridge = (4, 8, 8, 34, 4, 4)
    found = lesion_scores(boxes(bridge), boxes(FIRST, SECOND), spacing_mm=CUBIC)
    # Each lesion is compared with all of the bridge: 34 layers of 16 voxels, of which 4 are right.
    assert found.dice == pytest.approx(2 * 64 / (64 + 34 * 16), abs=FLOAT64)
    assert (found.num_found, found.num_missed, found.num_false, found.f1) == (2, 0, 0, 1.0)
    # Of the 30 layers beyond a lesion, 95 % of the surface lie within 28 to 30 mm.
    assert 28 < found.hd95_mm < 30


def test_all_components_that_touch_a_lesion_are_compared_with_it_together() -> None:
    # Two layers of 16 voxels inside, apart from each other, and one beside the lesion.
    parts = boxes((4, 8, 8, 1, 4, 4), (7, 8, 8, 1, 4, 4), (9, 8, 8, 1, 4, 4))
    found = lesion_scores(parts, boxes(FIRST), spacing_mm=CUBIC)
    assert (found.dice, found.num_found, found.num_false) == (2 * 32 / (64 + 48), 1, 0)


def test_a_false_component_within_the_box_of_a_matched_one_moves_no_distance() -> None:
    # The matched component is an L around the other, which lies 8 voxels from the lesion.
    lesion, angle = boxes(FIRST), boxes((4, 8, 8, 16, 1, 1), (19, 8, 8, 1, 11, 1))
    alone = lesion_scores(angle, lesion, spacing_mm=CUBIC)
    joined = lesion_scores(angle | boxes((15, 11, 8, 2, 8, 1)), lesion, spacing_mm=CUBIC)
    assert (joined.num_found, joined.num_false) == (1, 1)
    assert joined.hd95_mm == (alone.hd95_mm + 374.0) / 2


@pytest.mark.parametrize(("gap", "num_lesions"), [(6, 1), (7, 2)])
def test_lesions_whose_dilations_touch_are_one(gap: int, num_lesions: int) -> None:
    # Three voxels on either side: with a gap of six they are neighbours, with seven one is free.
    reference = boxes(FIRST, (8 + gap, 8, 8, 4, 4, 4))
    found = lesion_scores(boxes(FIRST), reference, spacing_mm=CUBIC)
    assert (found.num_found, found.num_missed) == (1, num_lesions - 1)
    # One lesion of 128 voxels, half of it predicted; or one of two lesions, exactly.
    assert found.dice == pytest.approx(2 * 64 / 192 if num_lesions == 1 else 0.5, abs=FLOAT64)


@pytest.mark.parametrize(("gap", "num_false"), [(2, 0), (3, 1)])
def test_a_component_belongs_to_a_lesion_up_to_the_end_of_its_dilation(
    gap: int, num_false: int
) -> None:
    found = lesion_scores(boxes((8 + gap, 8, 8, 1, 1, 1)), boxes(FIRST), spacing_mm=CUBIC)
    # A false one leaves the lesion missed; a match without overlap is found, with Dice 0.
    assert (found.num_found, found.num_missed, found.num_false) == (
        1 - num_false,
        num_false,
        num_false,
    )
    assert found.dice == 0.0
    assert (found.hd95_mm == 374.0) is bool(num_false)


def test_the_dilation_has_no_corners() -> None:
    # Nearest at (+1, +1, +1): the element of faces and edges does not hold it, a cube would.
    lesion, corner = boxes((4, 8, 8, 4, 4, 4)), boxes((8, 12, 12, 1, 1, 1))
    scores = [
        lesion_scores(corner, lesion, spacing_mm=CUBIC, dilation_voxels=steps) for steps in (1, 2)
    ]
    assert [found.num_false for found in scores] == [1, 0]


def test_voxels_that_share_a_corner_are_one_component() -> None:
    prediction = boxes((20, 5, 5, 1, 1, 1), (21, 6, 6, 1, 1, 1), (23, 6, 6, 1, 1, 1))
    assert lesion_scores(prediction, NOTHING, spacing_mm=CUBIC).num_false == 2


def test_a_false_lesion_counts_whatever_its_size() -> None:
    prediction = boxes(FIRST, (20, 8, 8, 1, 1, 1))
    found = lesion_scores(prediction, boxes(FIRST), spacing_mm=CUBIC)
    assert found == LesionScores(
        dice=0.5, hd95_mm=187.0, f1=2 / 3, num_found=1, num_missed=0, num_false=1
    )


@pytest.mark.parametrize("prediction", [boxes(FIRST, (34, 8, 8, 2, 2, 2)), boxes(FIRST)])
def test_a_tiny_lesion_is_left_out_found_or_missed(prediction: np.ndarray) -> None:
    reference = boxes(FIRST, (35, 8, 8, 2, 2, 2))
    found = lesion_scores(prediction, reference, spacing_mm=CUBIC)
    # Found, it absorbs the component, which is no false lesion.
    assert found == LesionScores(1.0, 0.0, 1.0, 1, 0, 0)


@pytest.mark.parametrize(
    ("spacing_mm", "num_missed"),
    [
        ((1.0, 1.0, 1.0), 0),
        ((1.0, 1.0, 1.0000001), 0),  # 1 mm as a header may state it
        ((1.0, 1.0, 1.01), 1),
        ((0.5, 1.0, 2.5), 1),
    ],
)
def test_a_lesion_of_exactly_the_smallest_volume_is_left_out(
    spacing_mm: tuple[float, float, float], num_missed: int
) -> None:
    fifty = boxes((4, 4, 4, 5, 5, 2))
    found = lesion_scores(NOTHING, fifty, spacing_mm=spacing_mm)
    assert found.num_missed == num_missed


def test_the_smallest_volume_and_the_dilation_are_parameters() -> None:
    reference = boxes((4, 8, 8, 1, 1, 1), (8, 8, 8, 1, 1, 1))
    counts = {}
    for steps in (0, 1, 2):
        found = lesion_scores(
            NOTHING, reference, spacing_mm=CUBIC, dilation_voxels=steps, min_volume_mm3=0.0
        )
        counts[steps] = found.num_missed
    # A gap of three voxels: two steps from either side overlap, one leaves a voxel free.
    assert counts == {0: 2, 1: 2, 2: 1}


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        pytest.param(NOTHING, NOTHING, LesionScores(1.0, 0.0, 1.0, 0, 0, 0), id="both"),
        pytest.param(
            NOTHING, boxes(FIRST), LesionScores(0.0, 374.0, 0.0, 0, 1, 0), id="prediction"
        ),
        pytest.param(boxes(FIRST), NOTHING, LesionScores(0.0, 374.0, 0.0, 0, 0, 1), id="reference"),
        pytest.param(
            NOTHING,
            boxes((4, 4, 4, 2, 2, 2)),
            LesionScores(1.0, 0.0, 1.0, 0, 0, 0),
            id="prediction, and all lesions left out",
        ),
        pytest.param(
            boxes(FIRST),
            boxes((34, 4, 4, 2, 2, 2)),
            LesionScores(0.0, 374.0, 0.0, 0, 0, 1),
            id="nothing kept and a false lesion",
        ),
    ],
)
def test_empty(prediction: np.ndarray, reference: np.ndarray, expected: LesionScores) -> None:
    assert lesion_scores(prediction, reference, spacing_mm=CUBIC) == expected


def test_lesions_at_the_border_of_the_volume() -> None:
    corner, opposite = (0, 0, 0, 4, 4, 4), (36, 16, 16, 4, 4, 4)
    found = lesion_scores(boxes(corner), boxes(corner, opposite), spacing_mm=CUBIC)
    assert (found.num_found, found.num_missed, found.dice) == (1, 1, 0.5)


def test_scores_are_plain_numbers() -> None:
    found = lesion_scores(boxes(FIRST), boxes(FIRST, SECOND), spacing_mm=np.ones(3))
    assert [type(value) for value in vars(found).values()] == [float] * 3 + [int] * 3


@pytest.mark.parametrize(
    ("prediction", "reference", "dilation_voxels", "message"),
    [
        (NOTHING.astype(np.uint8), NOTHING, 3, "prediction must be a boolean mask, not uint8"),
        (NOTHING[:1], NOTHING, 3, r"prediction \(1, 20, 20\) and reference \(40, 20, 20\) must"),
        (NOTHING[None], NOTHING[None], 3, r"volumes \(X, Y, Z\), not \(1, 40, 20, 20\)"),
        (NOTHING[:0], NOTHING[:0], 3, r"volumes \(X, Y, Z\), not \(0, 20, 20\)"),
        (NOTHING, NOTHING, -1, "dilation_voxels must be 0 or more, not -1"),
    ],
)
def test_what_does_not_fit_is_refused(
    prediction: np.ndarray, reference: np.ndarray, dilation_voxels: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        lesion_scores(prediction, reference, spacing_mm=CUBIC, dilation_voxels=dilation_voxels)


# ---- Against the definition ---------------------------------------------------------------------


def dilated(mask: np.ndarray, steps: int) -> np.ndarray:
    element = ndimage.generate_binary_structure(3, 2)
    for _ in range(steps):
        mask = ndimage.binary_dilation(mask, element)
    return mask


def naive_scores(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    dilation_voxels: int,
    min_volume_mm3: float,
) -> LesionScores:
    """Whole volumes, one lesion after the other, each dilated anew."""
    grown, num_lesions = ndimage.label(dilated(reference, dilation_voxels), ALL_26)
    components, num_components = ndimage.label(prediction, ALL_26)
    dices, distances_mm, used = [], [], set()
    num_missed = 0
    for number in range(1, num_lesions + 1):
        lesion = reference & (grown == number)
        touched = set(components[dilated(lesion, dilation_voxels)].tolist()) - {0}
        used |= touched
        if lesion.sum() * math.prod(spacing_mm) <= min_volume_mm3:
            continue
        matched = np.isin(components, list(touched))
        if not touched:
            num_missed += 1
            dices.append(0.0)
            distances_mm.append(374.0)
            continue
        dices.append(2 * (matched & lesion).sum() / (matched.sum() + lesion.sum()))
        surfaces = compute_surface_distances(lesion, matched, spacing_mm)
        # A hair below 95: an exact tie must not fall by the rounding of the package's sums.
        distances_mm.append(compute_robust_hausdorff(surfaces, 95 - 1e-7))
    num_false = num_components - len(used)
    num_found = len(dices) - num_missed
    if not dices and not num_false:
        return LesionScores(1.0, 0.0, 1.0, 0, 0, 0)
    return LesionScores(
        dice=sum(dices) / (len(dices) + num_false),
        hd95_mm=(sum(distances_mm) + 374.0 * num_false) / (len(dices) + num_false),
        f1=2 * num_found / (2 * num_found + num_false + num_missed),
        num_found=num_found,
        num_missed=num_missed,
        num_false=num_false,
    )


def random_pair(seed: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return prediction and reference: ellipsoids, of which some move, grow, vanish or appear."""
    random = np.random.default_rng(seed)
    grid = np.indices(shape)
    prediction, reference = np.zeros((2, *shape), dtype=bool)
    for _ in range(14):
        centre = np.array([random.integers(0, size) for size in shape])
        radii = random.uniform(0.6, 4.0, 3)
        shift = random.normal(0, 1.0, 3)
        for mask, probability, place in (
            (reference, 0.8, centre),
            (prediction, 0.7, centre + shift),
        ):
            if random.random() < probability:
                scaled = (grid - place.reshape(3, 1, 1, 1)) / radii.reshape(3, 1, 1, 1)
                mask |= (scaled**2).sum(axis=0) <= 1
    prediction[tuple(random.integers(0, size, 3) for size in shape)] = True  # specks
    bridge = random.integers(0, shape[0], 2)
    prediction[min(bridge) : max(bridge), shape[1] // 2, shape[2] // 2] = True
    return prediction, reference


# surface-distance still uses namespaces that SciPy gives up.
@pytest.mark.filterwarnings("ignore:Please import .* from the .scipy.ndimage. namespace")
@pytest.mark.parametrize(
    ("spacing_mm", "dilation_voxels", "min_volume_mm3"),
    [
        ((1.0, 1.0, 1.0), 3, 50.0),
        ((1.2, 0.9, 2.5), 3, 50.0),
        ((0.7, 3.0, 1.1), 1, 2.0),
        ((1.2, 0.9, 2.5), 0, 0.0),
        ((2.0, 0.5, 0.5), 2, 10.0),
    ],
)
def test_agrees_with_the_naive_twin(
    spacing_mm: tuple[float, float, float], dilation_voxels: int, min_volume_mm3: float
) -> None:
    totals = np.zeros(3, dtype=int)
    for seed in range(6):
        prediction, reference = random_pair(seed, (64, 54, 40))
        parameters = {"dilation_voxels": dilation_voxels, "min_volume_mm3": min_volume_mm3}
        found = lesion_scores(
            prediction, np.asfortranarray(reference), spacing_mm=spacing_mm, **parameters
        )
        twin = naive_scores(prediction, reference, spacing_mm, dilation_voxels, min_volume_mm3)
        assert vars(found) == pytest.approx(vars(twin), abs=FLOAT64)
        totals += (found.num_found, found.num_missed, found.num_false)
    # The volumes hold lesions of every fate, many of them found.
    assert (totals >= (8, 1, 4)).all()


def test_the_masks_are_not_changed() -> None:
    pair = random_pair(1, (30, 30, 20))
    copies = [mask.copy() for mask in pair]
    lesion_scores(*pair, spacing_mm=CUBIC)
    assert all(np.array_equal(mask, copy) for mask, copy in zip(pair, copies, strict=True))


def test_the_penalty_is_the_published_one() -> None:
    assert MISSED_LESION_MM == 374.0
