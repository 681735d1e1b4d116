"""The grid: the orientation all arrays share, the border crop with its inverse, the brain box."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop, Cropd, CropForegroundd

Margins: TypeAlias = Sequence[Sequence[int]]

ORIENTATION = "LPS"
"""Array axes X, Y, Z run towards the left, posterior and superior, as BraTS stores them."""


def border_slices(shape: Sequence[int], margins: Margins) -> tuple[slice, ...]:
    """Return the slices that keep what lies inside `margins` of a grid of `shape`.

    Args:
        shape: spatial shape, in voxels, without the channels.
        margins: voxels removed at the (start, end) of each axis; the article's are
            ``((8, 8), (8, 8), (6, 5))``.

    Raises:
        ValueError: if there is not one pair of non-negative margins per axis, or if no voxel
            of the grid would be left.
    """
    sizes = tuple(int(size) for size in shape)
    pairs = _checked_pairs(margins, len(sizes))
    if any(start + end >= size for (start, end), size in zip(pairs, sizes, strict=True)):
        raise ValueError(
            f"border margins {pairs} leave nothing of a volume of shape {sizes}; "
            f"use smaller margins for it"
        )
    return tuple(slice(start, size - end) for (start, end), size in zip(pairs, sizes, strict=True))


def _checked_pairs(margins: Margins, num_axes: int) -> tuple[tuple[int, ...], ...]:
    """Return `margins` as tuples; ValueError unless they are one pair for each axis."""
    pairs = tuple(tuple(int(margin) for margin in pair) for pair in margins)
    if len(pairs) != num_axes or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
        raise ValueError(
            f"border margins must be one (start, end) pair of non-negative voxel counts for each "
            f"of the {num_axes} axes; found {pairs}"
        )
    return pairs


def border_crop(volume: torch.Tensor, margins: Margins) -> torch.Tensor:
    """Return the inside of `volume` (C, X, Y, Z), as a plain tensor that shares its memory.

    `BorderCrop` is the same for a MetaTensor: it also moves the affine and can be inverted.

    Raises:
        ValueError: see `border_slices`.
    """
    plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    inside = (slice(None), *border_slices(plain.shape[1:], margins))
    return plain[inside]


def border_restore(volume: torch.Tensor, margins: Margins) -> torch.Tensor:
    """Put a cropped `volume` (C, X, Y, Z) back on its full grid; the border is zero.

    The inverse of `border_crop`; a plain tensor of the same dtype on the same device.

    Raises:
        ValueError: see `border_slices`.
    """
    plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    pairs = _checked_pairs(margins, plain.ndim - 1)
    full = tuple(size + sum(pair) for size, pair in zip(plain.shape[1:], pairs, strict=True))
    inside = (slice(None), *border_slices(full, pairs))
    restored = plain.new_zeros((plain.shape[0], *full))
    restored[inside] = plain
    return restored


class BorderCrop(Crop):
    """Remove a border of fixed width; lazy execution, affine and inverse are MONAI's.

    Args:
        margins: voxels removed at the (start, end) of each axis.
        lazy: whether the crop only joins the pending operations.
    """

    def __init__(self, margins: Margins, *, lazy: bool = False) -> None:
        super().__init__(lazy=lazy)
        self.margins = tuple(tuple(int(margin) for margin in pair) for pair in margins)

    def __call__(  # type: ignore[override]
        self, img: torch.Tensor, *, lazy: bool | None = None
    ) -> torch.Tensor:
        """Crop `img` (C, X, Y, Z); raises ValueError where the margins do not fit it."""
        shape = img.peek_pending_shape() if isinstance(img, MetaTensor) else img.shape[1:]
        return super().__call__(img, slices=border_slices(shape, self.margins), lazy=lazy)


class BorderCropd(Cropd):
    """Dictionary version of `BorderCrop`: the same border is removed from every key."""

    def __init__(
        self,
        keys: KeysCollection,
        margins: Margins,
        *,
        allow_missing_keys: bool = False,
        lazy: bool = False,
    ) -> None:
        cropper = BorderCrop(margins, lazy=lazy)
        super().__init__(keys, cropper, allow_missing_keys=allow_missing_keys, lazy=lazy)


class BrainBoxd(CropForegroundd):
    """Crop every key to the box of the voxels in which any channel of the image exceeds 0.

    MONAI's `CropForegroundd`, except that an image without such a voxel is an error: MONAI
    returns a volume without voxels, on which a later step fails for no visible reason.

    Args:
        keys: keys of volumes (C, X, Y, Z) on one grid.
        source_key: the image.
    """

    def __init__(self, keys: KeysCollection, *, source_key: str) -> None:
        super().__init__(keys, source_key, start_coord_key=None, end_coord_key=None)

    def __call__(
        self, data: Mapping[Hashable, Any], lazy: bool | None = None
    ) -> dict[Hashable, Any]:
        """Return a copy of `data` with the keys cropped; ValueError if there is no brain."""
        image = data[self.source_key]
        if not (image > 0).any():
            raise ValueError(
                f"'{self.source_key}' of shape {tuple(image.shape)} has no voxel above 0, so that "
                f"there is no brain to crop to; check the images, or turn the brain box off"
            )
        return super().__call__(data, lazy=lazy)
