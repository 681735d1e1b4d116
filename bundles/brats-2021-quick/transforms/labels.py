"""Labels: a dataset's own values <-> class indices -> regions (WT, TC, ET)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Transform
from monai.utils import TransformBackends

from transforms.arrays import KeywiseTransform, Volume, plain_tensor, with_meta_of

MAX_CLASSES = 256  # class indices are uint8
MAX_HISTOGRAM_VALUES = 10


def _checked_values(values: Sequence[int]) -> tuple[int, ...]:
    """Return `values` as a tuple of int; ValueError unless they can number the classes."""
    checked = tuple(int(value) for value in values)
    if not 0 < len(checked) <= MAX_CLASSES or len(set(checked)) != len(checked):
        raise ValueError(
            f"label values must be 1 to {MAX_CLASSES} different integers, one per class; "
            f"found {checked}"
        )
    return checked


def values_to_classes(label: Volume, *, values: Sequence[int]) -> torch.Tensor:
    """Return the class index of every voxel of `label`, as uint8 of the same shape.

    Args:
        label: (1, X, Y, Z) of any real dtype, in the dataset's own values.
        values: the value of each class; its position is the class index.

    Raises:
        ValueError: if a voxel has a value that is not listed, with a histogram of such values.
    """
    known_values = _checked_values(values)
    plain = plain_tensor(label)
    # A wide dtype, so that comparing with a value the stored dtype cannot hold is not an overflow.
    wide = plain.double() if plain.is_floating_point() else plain.long()
    classes = torch.zeros(wide.shape, dtype=torch.uint8, device=wide.device)
    known = torch.zeros(wide.shape, dtype=torch.bool, device=wide.device)
    for index, value in enumerate(known_values):
        found = wide == value
        known |= found
        classes[found] = index
    if not known.all():
        raise ValueError(
            f"label values must be among {known_values}; found also "
            f"{_histogram(wide[~known])}. Correct the label, or state its values in the data list"
        )
    return with_meta_of(label, classes)


def _histogram(voxels: torch.Tensor) -> str:
    """Return "value: number of voxels" for the most frequent values, most frequent first."""
    found, counts = np.unique(voxels.cpu().numpy(), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown = [f"{found[i]:g}: {counts[i]} voxels" for i in order[:MAX_HISTOGRAM_VALUES]]
    if len(order) > MAX_HISTOGRAM_VALUES:
        shown.append(f"and {len(order) - MAX_HISTOGRAM_VALUES} other values")
    return ", ".join(shown)


def classes_to_values(classes: Volume, *, values: Sequence[int]) -> torch.Tensor:
    """Return the dataset's own value of every voxel of `classes`: inverse of `values_to_classes`.

    Args:
        classes: (1, X, Y, Z) of class indices.
        values: the value of each class; its position is the class index.

    Returns:
        uint8 where it can hold all `values`, else int32; of the same shape.

    Raises:
        ValueError: if a voxel's class index has no value.
    """
    known_values = _checked_values(values)
    index = plain_tensor(classes).long()
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < len(known_values):
        raise ValueError(
            f"class indices must be 0 to {len(known_values) - 1}, one for each of the values "
            f"{known_values}; found {int(index.min())} to {int(index.max())}"
        )
    fits = min(known_values) >= 0 and max(known_values) <= 255
    dtype = torch.uint8 if fits else torch.int32
    table = torch.tensor(known_values, dtype=dtype, device=index.device)
    return with_meta_of(classes, table[index])


def classes_to_regions(classes: Volume, *, regions: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return one mask per region, bool (R, X, Y, Z); regions may overlap.

    Args:
        classes: (1, X, Y, Z) of class indices.
        regions: the class indices that each region is the union of; those of BraTS are
            ``((1, 2, 3), (1, 3), (3,))`` for WT, TC and ET.

    Raises:
        ValueError: if `classes` has not exactly one channel, or a region has no class.
    """
    plain = plain_tensor(classes)
    if plain.shape[0] != 1:
        raise ValueError(f"class indices must have 1 channel; found shape {tuple(plain.shape)}")
    if not regions or not all(regions):
        raise ValueError(f"every region must have at least one class; found {regions}")
    masks = torch.zeros((len(regions), *plain.shape[1:]), dtype=torch.bool, device=plain.device)
    for mask, region in zip(masks, regions, strict=True):
        for index in region:
            mask |= plain[0] == index
    return with_meta_of(classes, masks)


class LabelValuesToClasses(Transform):
    """Array transform of `values_to_classes`."""

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012 - MONAI's idiom

    def __init__(self, values: Sequence[int]) -> None:
        self.values = _checked_values(values)

    def __call__(self, img: Volume) -> torch.Tensor:
        """Return the class indices of `img` (1, X, Y, Z)."""
        return values_to_classes(img, values=self.values)


class ClassesToLabelValues(Transform):
    """Array transform of `classes_to_values`."""

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012 - MONAI's idiom

    def __init__(self, values: Sequence[int]) -> None:
        self.values = _checked_values(values)

    def __call__(self, img: Volume) -> torch.Tensor:
        """Return the dataset's values of `img` (1, X, Y, Z)."""
        return classes_to_values(img, values=self.values)


class ClassesToRegions(Transform):
    """Array transform of `classes_to_regions`."""

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012 - MONAI's idiom

    def __init__(self, regions: Sequence[Sequence[int]]) -> None:
        self.regions = tuple(tuple(int(index) for index in region) for region in regions)

    def __call__(self, img: Volume) -> torch.Tensor:
        """Return the masks (R, X, Y, Z) of `img` (1, X, Y, Z)."""
        return classes_to_regions(img, regions=self.regions)


class LabelValuesToClassesd(KeywiseTransform):
    """Dictionary transform of `values_to_classes`."""

    def __init__(
        self, keys: KeysCollection, values: Sequence[int], *, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, LabelValuesToClasses(values), allow_missing_keys)


class ClassesToLabelValuesd(KeywiseTransform):
    """Dictionary transform of `classes_to_values`."""

    def __init__(
        self, keys: KeysCollection, values: Sequence[int], *, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, ClassesToLabelValues(values), allow_missing_keys)


class ClassesToRegionsd(KeywiseTransform):
    """Dictionary transform of `classes_to_regions`."""

    def __init__(
        self,
        keys: KeysCollection,
        regions: Sequence[Sequence[int]],
        *,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, ClassesToRegions(regions), allow_missing_keys)
