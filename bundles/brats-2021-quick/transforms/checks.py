"""What a loaded case must be before its modalities become the channels of one image."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from transforms.cases import case_of

AFFINE_TOLERANCE_MM = 1e-3  # what float32 headers and rewritten quaternions differ by


class RequireSameGridd(MapTransform):
    """Refuse a case whose files lie on different grids; pass it on unchanged otherwise.

    MONAI's `ConcatItemsd` compares shapes only: modalities of two examinations, or one that is
    flipped, would be stacked in silence.

    Args:
        keys: MetaTensors (1, X, Y, Z), the first of which the others are compared with.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data`.

        Raises:
            ValueError: a volume is not a MetaTensor (1, X, Y, Z), or its shape or its affine (by
                more than `AFFINE_TOLERANCE_MM`) is not the first one's.
        """
        first_key = self.keys[0]
        first = _volume(data, first_key)
        for key in self.keys[1:]:
            volume = _volume(data, key)
            if volume.shape != first.shape:
                raise ValueError(
                    f"{case_of(data)}: '{key}' must have the shape of '{first_key}', "
                    f"{tuple(first.shape[1:])}; found {tuple(volume.shape[1:])}"
                )
            difference = float((volume.affine - first.affine).abs().max())
            if not difference <= AFFINE_TOLERANCE_MM:  # so that NaN is refused too
                raise ValueError(
                    f"{case_of(data)}: '{key}' must lie where '{first_key}' does; their affines "
                    f"differ by up to {difference:g}. Resample the images onto one grid first"
                )
        return dict(data)


def _volume(data: Mapping[Hashable, Any], key: Hashable) -> MetaTensor:
    volume = data[key]
    if not isinstance(volume, MetaTensor) or volume.ndim != 4 or volume.shape[0] != 1:
        found = tuple(volume.shape) if isinstance(volume, torch.Tensor) else type(volume).__name__
        raise ValueError(
            f"{case_of(data)}: '{key}' must be one 3D image with its affine, (1, X, Y, Z); "
            f"found {found}"
        )
    return volume


class RequireFinited(MapTransform):
    """Refuse images with NaN or infinite voxels, of which one is enough to empty a whole mask."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data`; ValueError, with the number of such voxels, if there are any."""
        for key in self.key_iterator(dict(data)):
            num_voxels = int((~torch.isfinite(data[key])).sum())
            if num_voxels:
                raise ValueError(
                    f"{case_of(data)}: '{key}' must be finite; {num_voxels} voxels are NaN or "
                    f"infinite. Repair the image first"
                )
        return dict(data)
