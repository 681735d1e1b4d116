"""What a report shows of one case: images and masks on its own grid, what they amount to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.datalist import Case
from pipeline.data.images import read_image
from pipeline.data.loading import LoadCase, class_indices
from pipeline.data.prediction_files import map_path
from pipeline.data.voxel_volume import voxel_volume_ml
from pipeline.errors import DataError, Problem
from pipeline.evaluation.case_scores import CaseResult
from pipeline.evaluation.tables import NOTHING, Grid
from pipeline.reporting.sources import Masked

ENTROPY = "entropy"


@dataclass(frozen=True, eq=False)
class CaseContent:
    """Volumes of a case, each (X, Y, Z) on its own grid.

    Attributes:
        case: the case.
        affine: (4, 4), voxel indices to RAS+ mm.
        images: modality -> float32.
        masks: "prediction", and "truth" where there is one -> class indices, uint8.
        maps: "uncertainty" -> float32, the entropy as a share of the highest possible one, where it
            was written.
        result: the scores, where there is a truth.
    """

    case: Case
    affine: np.ndarray
    images: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]
    result: CaseResult | None

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return voxel_volume_ml(self.affine)


def read_case(
    masked: Masked,
    *,
    modalities: Sequence[str],
    label_values: Sequence[int],
    result: CaseResult | None,
) -> CaseContent:
    """Read the images of a case, its mask, and its truth if it has one.

    Args:
        masked: the case.
        modalities: names of its images, in their order.
        label_values: of the classes in masks, the background's first.
        result: its scores, if it has some.

    Raises:
        DataError: A file cannot be used, or is on another grid than the images.
    """
    case, path = masked.case, masked.mask
    loaded = LoadCase(labels=case.label is not None, mask_nonfinite=True)(case)
    image = loaded["image"]
    affine = np.asarray(image.affine, dtype=np.float64)
    volume, mask_affine = read_image(path, dtype=np.int32)
    if volume.shape != tuple(image.shape[1:]) or not np.allclose(mask_affine, affine, atol=1e-3):
        raise DataError.of(
            Problem(
                case=case.id,
                kind="grid",
                file=path.name,
                expected=f"the grid of the images, {tuple(image.shape[1:])}",
                found=f"{volume.shape}, or another affine",
                remedy="Segment the case again, or give the data list that the mask was made of.",
            )
        )
    found = {"prediction": class_indices(volume, values=tuple(label_values))}
    if case.label is not None:
        found["truth"] = loaded["label"][0].as_tensor().numpy()
    voxels = image.as_tensor().numpy()
    return CaseContent(
        case=case,
        affine=affine,
        images=dict(zip(modalities, voxels, strict=True)),
        masks=found,
        maps=_maps(path.parent, case, num_classes=len(label_values)),
        result=result,
    )


def facts_of(content: CaseContent, regions: Mapping[str, tuple[int, ...]]) -> Grid:
    """Return volumes, and scores where there is a truth, one row a region."""
    headings = ["region", "volume\nmL"]
    if content.result is not None:
        headings += ["truth\nmL", "Dice", "HD95\nmm", "lesion\nDice", "found", "missed", "false"]
    rows = []
    for region, classes in regions.items():
        inside = np.isin(content.masks["prediction"], classes)
        cells = [region, f"{np.count_nonzero(inside) * content.voxel_ml:.1f}"]
        if content.result is not None:
            scores = content.result.scores
            cells += [
                _number(scores[f"reference_volume_ml_{region}"], digits=1),
                _number(scores[f"dice_{region}"], digits=3),
                _number(scores[f"hd95_mm_{region}"], digits=1),
                _number(scores[f"lesion_dice_{region}"], digits=3),
                *(
                    _number(scores[f"lesions_{kind}_{region}"], digits=0)
                    for kind in ("found", "missed", "false")
                ),
            ]
        rows.append(tuple(cells))
    return Grid("Volumes and scores", tuple(headings), rows)


def _maps(masks: Path, case: Case, *, num_classes: int) -> dict[str, np.ndarray]:
    path = map_path(masks, case.id, ENTROPY)
    if not path.is_file():
        return {}
    volumes, _ = read_image(path, dtype=np.float32, channels=True)
    return {"uncertainty": volumes[0] / math.log(num_classes)}


def _number(value: float | None, *, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"
