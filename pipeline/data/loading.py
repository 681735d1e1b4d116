"""From a case of the data list to tensors: `LoadCase`, the first transform of every chain."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import SpaceKeys

from pipeline.data.boxes import bounding_box
from pipeline.data.case_checks import Expectations, check_constant
from pipeline.data.content import (
    CaseContent,
    ImageFile,
    bring_to_grid,
    grid_problems,
    in_threads,
    nonfinite_problems,
    read_content,
)
from pipeline.data.datalist import Case
from pipeline.data.reading import copy_into_zeros
from pipeline.errors import DataError, Problem
from transforms.labels import values_to_classes

LOG = logging.getLogger(__name__)


class LoadCase(Transform):
    """Read a case: ``{"image": ..., "label": ..., "case": id}``.

    `image` is a float32 MetaTensor (4, X, Y, Z) in modality order; `label` a uint8 MetaTensor
    (1, X, Y, Z) of class indices, there only with ``labels=True``. Both lie on the grid of the
    files, untouched. Images on different grids are refused, unless `resample_to` is the index of
    the modality whose grid the others are brought to (`pipeline.data.resampling`). NaN and infinite
    intensities are refused, unless `mask_nonfinite` sets them to 0 before anything else and logs
    how many they are; an image that holds nothing else is refused all the same. Their meta holds
    what MONAI's LoadImaged gives, except that `filename_or_obj` is a bare file name: paths do not
    leave the machine in a checkpoint. With `modalities`, an image that holds one intensity is told
    of as `check` does, which nobody need have run: a warning, an error where all images do.
    """

    def __init__(
        self,
        *,
        labels: bool,
        resample_to: int | None = None,
        mask_nonfinite: bool = False,
        modalities: Sequence[str] = (),
    ) -> None:
        if labels and resample_to is not None:
            raise ValueError("resample_to is for images without labels: labels are not resampled")
        self.labels = labels
        self.resample_to = resample_to
        self.mask_nonfinite = mask_nonfinite
        self.modalities = tuple(modalities)

    def __call__(self, case: Case) -> dict[str, Any]:
        """Return the tensors of `case`; DataError lists everything that is wrong with its files."""
        return self.with_warnings(case)[0]

    def with_warnings(self, case: Case) -> tuple[dict[str, Any], list[Problem]]:
        """Return the tensors of `case`, and what it was warned of in the log."""
        content, problems = read_content(
            case,
            labels=self.labels,
            mask_nonfinite=self.mask_nonfinite,
            num_threads=torch.get_num_threads(),
        )
        if self.resample_to is None:
            problems += grid_problems(content)
        problems += nonfinite_problems(content)  # before resampling, which would spread them
        problems += _constant_problems(content, self.modalities)
        errors = [problem for problem in problems if problem.severity == "error"]
        if errors:
            raise DataError.of(*errors)
        for warning in problems:
            LOG.warning("%s", warning)
        if self.resample_to is not None:
            content = bring_to_grid(content, self.resample_to)
        result: dict[str, Any] = {"image": _stack(content), "case": case.id}
        if content.label is not None:
            result["label"] = _class_indices(content, content.label)
        return result, problems


def class_indices(volume: np.ndarray, *, values: Sequence[int]) -> np.ndarray:
    """Return `values_to_classes` of a mask (X, Y, Z), as uint8 of the same shape in C order.

    Where 0 is a known value, only the box around what is not 0 is looked at: a tumour fills a
    hundredth of a mask. Raises ValueError as `values_to_classes` does.
    """
    box: tuple[slice, ...] = (slice(None),) * volume.ndim
    background = 0
    if 0 in values:
        box, background = bounding_box(volume != 0), list(values).index(0)
    inside = values_to_classes(np.ascontiguousarray(volume[box])[None], values=values)[0]
    classes = np.full(volume.shape, background, dtype=np.uint8)
    classes[box] = inside
    return classes


def _constant_problems(content: CaseContent, modalities: Sequence[str]) -> list[Problem]:
    """Report the images with one intensity by the names of their modalities.

    Where there is not one image for each name, something else is wrong, and told elsewhere.
    """
    if len(content.images) != len(modalities):
        return []
    pairs = zip(modalities, content.images, strict=True)
    names = [name for name, image in pairs if image.is_constant]
    problems = check_constant(content, Expectations())
    return [
        replace(problem, expected=f"{problem.expected} in {name}")
        for name, problem in zip(names, problems, strict=True)
    ]


def _stack(content: CaseContent) -> MetaTensor:
    images = content.images
    stacked = np.zeros((len(images), *images[0].volume.shape), dtype=np.float32)
    pairs = zip((image.volume for image in images), stacked, strict=True)
    in_threads(lambda pair: copy_into_zeros(*pair), pairs, num_threads=torch.get_num_threads())
    return _with_meta(torch.from_numpy(stacked), images[0], content.case.images[0].name)


def _class_indices(content: CaseContent, label: ImageFile) -> MetaTensor:
    values = content.case.label_values
    try:
        classes = class_indices(label.volume, values=values)
    except ValueError as error:
        raise DataError.of(
            Problem(
                case=content.case.id,
                kind="label-values",
                file=label.name,
                expected=f"the values {list(values)}, as the data list says",
                found=str(error),
                remedy="Correct `labels` in the data list's header, or the mask.",
            )
        ) from error
    return _with_meta(torch.from_numpy(classes)[None], label, label.name)


def _with_meta(tensor: torch.Tensor, image: ImageFile, file_name: str) -> MetaTensor:
    affine = torch.as_tensor(image.affine, dtype=torch.float64)
    meta = {
        "original_affine": affine.clone(),
        "spatial_shape": np.asarray(image.volume.shape),
        "space": SpaceKeys.RAS,
        "original_channel_dim": "no_channel",
        "filename_or_obj": file_name,
    }
    return MetaTensor(tensor, affine=affine, meta=meta)
