"""One case -> all its scores, as one flat row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch

from pipeline.evaluation.calibration import expected_calibration_error
from pipeline.evaluation.counts import confusion_scores
from pipeline.evaluation.lesions import lesion_scores
from pipeline.evaluation.overlap import (
    BACKGROUND,
    article_metrics,
    article_metrics_of_mask,
    background_scores,
    named_dice,
    region_dice,
)
from pipeline.evaluation.pair_content import PairContent
from pipeline.evaluation.provenance import Provenance
from pipeline.evaluation.surface import surface_scores

Regions = Mapping[str, Sequence[int]]

PROBABILITIES, MASK = "probabilities", "mask"


@dataclass(frozen=True)
class CaseResult:
    """The scores of one case by column (None where a score does not exist), and their origin.

    `article_metrics_from` says what the article's soft metrics were computed from:
    ``probabilities``, or the ``mask`` as certain ones.
    """

    case: str
    subject: str
    scores: dict[str, float | None]
    article_metrics_from: str
    provenance: Provenance

    def value(self, column: str) -> float:
        """Return a score that every case has."""
        return cast("float", self.scores[column])


def score_case(content: PairContent, *, regions: Regions) -> CaseResult:
    """Return all scores of one case; `pipeline.evaluation.definitions` says what they are.

    `regions` gives the class indices that each region unites.
    """
    prediction, reference = content.prediction, content.reference
    dices = region_dice(_tensor(prediction), _tensor(reference), regions=regions)
    scores: dict[str, float | None] = {"dice_mean": named_dice(dices)["dice_mean"]}
    for region, classes in regions.items():
        of_region = {"dice": dices[region]} | _region_scores(content, classes)
        scores |= {f"{name}_{region}": value for name, value in of_region.items()}
    scores |= _article_metrics(content)
    scores |= _calibration(content)
    background = background_scores(
        _tensor(reference),
        _tensor(reference)[None],
        regions=regions,
        num_classes=content.num_classes,
    )
    scores |= {f"{BACKGROUND}{name}": value for name, value in background.items()}
    return CaseResult(
        case=content.case.id,
        subject=content.case.subject,
        scores=scores,
        article_metrics_from=MASK if content.probabilities is None else PROBABILITIES,
        provenance=content.provenance,
    )


def _region_scores(content: PairContent, classes: Sequence[int]) -> dict[str, float]:
    """Return the scores of one region but its Dice, in the order of `REGION_MEASURES`."""
    prediction, reference = (
        np.isin(volume, np.asarray(classes, dtype=volume.dtype))
        for volume in (content.prediction, content.reference)
    )
    lesions = lesion_scores(prediction, reference, spacing_mm=content.spacing_mm)
    surfaces = surface_scores(prediction, reference, spacing_mm=content.spacing_mm)
    return confusion_scores(prediction, reference) | {
        "hd95_mm": surfaces.hd95_mm,
        "asd_mm": surfaces.average_surface_distance_mm,
        "volume_ml": int(np.count_nonzero(prediction)) * content.voxel_ml,
        "reference_volume_ml": int(np.count_nonzero(reference)) * content.voxel_ml,
        "lesion_dice": lesions.dice,
        "lesion_hd95_mm": lesions.hd95_mm,
        "lesion_f1": lesions.f1,
        "lesions_found": lesions.num_found,
        "lesions_missed": lesions.num_missed,
        "lesions_false": lesions.num_false,
    }


def _article_metrics(content: PairContent) -> dict[str, float]:
    """Return the article's metrics of the probabilities, or of the mask as certain ones."""
    reference = _tensor(content.reference)[None]
    if content.probabilities is not None:
        return article_metrics(torch.from_numpy(content.probabilities), reference)
    mask = _tensor(content.prediction)[None]
    return article_metrics_of_mask(mask, reference, num_classes=content.num_classes)


def _calibration(content: PairContent) -> dict[str, float | None]:
    """Return the calibration errors, None without probabilities or without tumour."""
    if content.probabilities is None:
        return {"ece": None, "ece_tumour": None}
    tumour = (content.prediction > 0) | (content.reference > 0)
    error = partial(expected_calibration_error, content.probabilities, content.reference)
    return {"ece": error(), "ece_tumour": error(mask=tumour) if tumour.any() else None}


def _tensor(volume: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(volume)
