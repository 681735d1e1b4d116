"""The row of one case, worked out by hand on boxes of voxels."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import AFFINE, SHAPE, nested_label
from prediction_files import classes_of, probabilities_of

from pipeline.data.datalist import Case
from pipeline.evaluation.case_scores import CaseResult, score_case
from pipeline.evaluation.definitions import CASE_MEASURES, REGION_MEASURES
from pipeline.evaluation.overlap import BACKGROUND
from pipeline.evaluation.pair_content import PairContent
from pipeline.evaluation.provenance import Provenance

REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
VOXEL_ML = 1.2 * 0.9 * 2.5 / 1000
# The nested boxes of 8 x 10 x 6, 6 x 8 x 4 and 4 x 6 x 2 voxels.
NUM_VOXELS = {"WT": 480, "TC": 192, "ET": 192 - 48}
NUM_ALL = 12 * 14 * 10
# The last bits of a quotient in float64.
FLOAT64 = 1e-12
# The article's guard against a division by zero moves its quotients by less than this.
GUARD = 1e-6


def score(
    prediction: np.ndarray,
    *,
    reference: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
) -> CaseResult:
    content = PairContent(
        case=Case("case_000", "patient", (), None, None, (0, 1, 2, 4)),
        prediction=prediction,
        reference=nested_label(SHAPE) if reference is None else reference,
        num_classes=4,
        probabilities=probabilities,
        spacing_mm=(1.2, 0.9, 2.5),
        voxel_ml=abs(float(np.linalg.det(AFFINE[:3, :3]))) / 1000,
        provenance=Provenance(),
    )
    return score_case(content, regions=REGIONS)


def test_the_columns() -> None:
    result = score(classes_of("shifted"))
    of_regions = [f"{name}_{region}" for region in REGIONS for name in REGION_MEASURES]
    mean, *rest = CASE_MEASURES
    background = [f"{BACKGROUND}{name}" for name in ("dice_mean", "dice_WT", "dice_TC", "dice_ET")]
    article = ["article_dice", "article_iou", "mean_iou", "accuracy"]
    background += [f"{BACKGROUND}{name}" for name in article]
    assert list(result.scores) == [mean, *of_regions, *rest, *background]
    assert (result.case, result.subject) == ("case_000", "patient")


def test_a_perfect_prediction() -> None:
    result = score(classes_of("perfect"))
    for region, num_voxels in NUM_VOXELS.items():
        of_region = {name: result.scores[f"{name}_{region}"] for name in REGION_MEASURES}
        volume_ml = pytest.approx(num_voxels * VOXEL_ML, abs=FLOAT64)
        assert of_region == {
            "dice": 1.0,
            "iou": 1.0,
            "precision": 1.0,
            "sensitivity": 1.0,
            "specificity": 1.0,
            "hd95_mm": 0.0,
            "asd_mm": 0.0,
            "volume_ml": volume_ml,
            "reference_volume_ml": volume_ml,
            "lesion_dice": 1.0,
            "lesion_hd95_mm": 0.0,
            "lesion_f1": 1.0,
            "lesions_found": 1,
            "lesions_missed": 0,
            "lesions_false": 0,
        }
    assert result.scores["dice_mean"] == result.scores["accuracy"] == 1.0


def test_a_missed_tumour() -> None:
    result = score(classes_of("empty"))
    for region, num_voxels in NUM_VOXELS.items():
        of_region = {name: result.scores[f"{name}_{region}"] for name in REGION_MEASURES}
        assert of_region == {
            "dice": 0.0,
            "iou": 0.0,
            "precision": 0.0,
            "sensitivity": 0.0,
            "specificity": 1.0,
            "hd95_mm": 373.13,
            "asd_mm": 373.13,
            "volume_ml": 0.0,
            "reference_volume_ml": pytest.approx(num_voxels * VOXEL_ML, abs=FLOAT64),
            "lesion_dice": 0.0,
            "lesion_hd95_mm": 374.0,
            "lesion_f1": 0.0,
            "lesions_found": 0,
            "lesions_missed": 1,
            "lesions_false": 0,
        }
    # To predict nothing is to predict the background.
    for name in ("dice_mean", "dice_WT", "article_dice", "article_iou", "mean_iou", "accuracy"):
        assert result.scores[name] == result.scores[f"{BACKGROUND}{name}"]


def test_a_prediction_moved_by_one_voxel() -> None:
    scores = score(classes_of("shifted")).scores
    # 7 of 8 planes along X of the whole tumour still lie on it.
    assert scores["dice_WT"] == scores["precision_WT"] == scores["sensitivity_WT"] == 7 / 8
    assert scores["iou_WT"] == 420 / 540
    assert scores["specificity_WT"] == (NUM_ALL - 540) / (NUM_ALL - 480)
    assert scores["dice_TC"] == pytest.approx(5 / 6, abs=FLOAT64)
    # More than 5 % of the surface faces X, and is 1.2 mm off: the voxel's size along X.
    assert scores["hd95_mm_WT"] == pytest.approx(1.2, abs=FLOAT64)
    assert scores["lesion_dice_WT"] == scores["dice_WT"]


def test_without_probabilities_the_mask_counts_as_certain() -> None:
    result = score(classes_of("shifted"))
    share = float((classes_of("shifted") == nested_label(SHAPE)).mean())
    assert result.article_metrics_from == "mask"
    assert result.scores["article_dice"] == pytest.approx(share, abs=GUARD)
    assert result.scores["article_iou"] == pytest.approx(share / (2 - share), abs=GUARD)
    assert result.scores["accuracy"] == share
    assert result.scores["ece"] is None
    assert result.scores["ece_tumour"] is None


def test_with_probabilities_they_count() -> None:
    reference = nested_label(SHAPE)
    certainty = probabilities_of(reference, certainty=0.75)
    result = score(classes_of("perfect"), probabilities=certainty)
    assert result.article_metrics_from == "probabilities"
    # float32 holds 0.75 exactly, and a third of the rest to 1e-8.
    assert result.scores["article_dice"] == pytest.approx(0.75, abs=GUARD)
    # Right everywhere, and 0.75 sure.
    assert result.scores["ece"] == pytest.approx(0.25, abs=FLOAT64)
    assert result.scores["ece_tumour"] == pytest.approx(0.25, abs=FLOAT64)


def test_calibration_of_the_tumour_leaves_the_background_out() -> None:
    """0.75 sure of the moved tumour: outside it is right, within it some of the time."""
    moved, reference = classes_of("shifted"), nested_label(SHAPE)
    result = score(moved, probabilities=probabilities_of(moved, certainty=0.75))
    tumour = (moved > 0) | (reference > 0)
    is_right = moved == reference
    assert result.scores["ece"] == pytest.approx(abs(is_right.mean() - 0.75), abs=FLOAT64)
    expected = abs(is_right[tumour].mean() - 0.75)
    assert result.scores["ece_tumour"] == pytest.approx(expected, abs=FLOAT64)


def test_no_tumour_at_all() -> None:
    """A phantom patient without tumour, predicted as such: agreement, and nothing to calibrate."""
    nothing = np.zeros(SHAPE, dtype=np.uint8)
    probabilities = probabilities_of(nothing, certainty=0.75)
    scores = score(nothing, reference=nothing, probabilities=probabilities).scores
    assert scores["dice_mean"] == scores["lesion_f1_ET"] == scores["background_dice_mean"] == 1.0
    assert scores["hd95_mm_WT"] == scores["asd_mm_ET"] == 0.0
    assert scores["ece"] == pytest.approx(0.25, abs=FLOAT64)
    assert scores["ece_tumour"] is None


def test_a_false_tumour_costs_as_much_as_a_missed_one() -> None:
    nothing = np.zeros(SHAPE, dtype=np.uint8)
    scores = score(classes_of("perfect"), reference=nothing).scores
    assert (scores["dice_WT"], scores["hd95_mm_WT"], scores["lesions_false_WT"]) == (0.0, 373.13, 1)
    assert scores["background_dice_WT"] == 1.0


def test_scores_are_plain_numbers() -> None:
    """NumPy's would break the JSON."""
    reference = nested_label(SHAPE)
    scores = score(reference, probabilities=probabilities_of(reference, certainty=0.75)).scores
    assert {type(value) for value in scores.values()} <= {float, int}
