"""The scores in words: their definitions, units and sources, and the empty-region rules."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evaluation.lesions import MISSED_LESION_MM
from pipeline.evaluation.surface import MISSED_MM

STATED_RULE = (
    "Where a region is empty in prediction and reference, Dice, IoU, precision and sensitivity "
    "are 1 and distances 0 mm; where it is empty in only one of them, these are 0 and "
    f"{MISSED_MM} mm, the diagonal of the BraTS grid. No case is left out of a mean: "
    "a missed tumour must not improve a score."
)

RULES = {
    "stated": STATED_RULE,
    "skip": (
        "Cases whose reference region is empty are left out, as MONAI's DiceMetric does by "
        "default; a false region in them goes unpunished."
    ),
    "worst_case": (
        "A case whose reference region is empty counts as the worst (0; "
        f"{MISSED_MM} mm; lesion-wise {MISSED_LESION_MM:g} mm), whatever was predicted."
    ),
}
"""The rule of this project, and the two others in use."""


@dataclass(frozen=True)
class Measure:
    """One score of a region: what it is, and which way it points.

    `worst` is what the rule ``worst_case`` counts; None for scores on which that rule is not used.
    """

    definition: str
    higher_is_better: bool = True
    worst: float | None = None


REGION_MEASURES = {
    "dice": Measure("2 |P & R| / (|P| + |R|) of the voxels of prediction and reference", worst=0.0),
    "iou": Measure("|P & R| / |P | R| of the voxels", worst=0.0),
    "precision": Measure("the share of the predicted voxels that are right"),
    "sensitivity": Measure("the share of the reference's voxels that are predicted"),
    "specificity": Measure(
        "the share of the voxels outside the reference that are not predicted; air included, so "
        "near 1 for any small tumour"
    ),
    "hd95_mm": Measure(
        "95th percentile of the distances between the surfaces, the larger of both directions; "
        "surface elements weighted by their area, as in DeepMind's surface-distance; in mm, by "
        "the voxel size of each case",
        higher_is_better=False,
        worst=MISSED_MM,
    ),
    "asd_mm": Measure(
        "mean distance over both surfaces, elements weighted by their area; in mm",
        higher_is_better=False,
        worst=MISSED_MM,
    ),
    "volume_ml": Measure("predicted volume in mL"),
    "reference_volume_ml": Measure("volume of the reference in mL"),
    "lesion_dice": Measure(
        "lesion-wise Dice of BraTS 2023 (Saluja et al., BraTS-2023-Metrics): lesions of the "
        "reference dilated by 3 voxels, those of at most 50 mm3 left out; a missed or false "
        "lesion counts 0",
        worst=0.0,
    ),
    "lesion_hd95_mm": Measure(
        f"lesion-wise HD95 in mm, from the same matching; a missed or false lesion counts "
        f"{MISSED_LESION_MM:g} mm",
        higher_is_better=False,
        worst=MISSED_LESION_MM,
    ),
    "lesion_f1": Measure("2 found / (2 found + missed + false) lesions", worst=0.0),
    "lesions_found": Measure("lesions of the reference that the prediction touches"),
    "lesions_missed": Measure("lesions of the reference that it does not"),
    "lesions_false": Measure("predicted components that touch no lesion"),
}
"""The scores of one region, in the order of their columns: the column is ``<name>_<region>``."""

CASE_MEASURES = {
    "dice_mean": "mean of the regions' Dice",
    "article_dice": (
        "the article's dice_coeff: soft Dice over all voxels and classes at once, background "
        "included (Gafoor 2022), on the case's own grid; from the probabilities where there are "
        "any, else from the mask"
    ),
    "article_iou": "intersection over union of the same sums",
    "mean_iou": "mean over the classes of their IoU, background included",
    "accuracy": "the share of voxels with the right class, background included",
    "ece": (
        "expected calibration error of the largest probability, 15 bins, over all voxels "
        "(Guo et al. 2017); only where probabilities exist"
    ),
    "ece_tumour": "the same over the voxels that are tumour in prediction or reference",
}
"""The scores of a whole case. Those of "everything is background" stand under ``background_``."""

COMPARED_MEASURES = ("dice", "hd95_mm", "lesion_dice")
"""The region scores in which two sets of predictions are compared."""
