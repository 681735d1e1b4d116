"""What the transforms share: arrays in, tensors with their metadata out, one transform per key."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

Volume: TypeAlias = np.ndarray | torch.Tensor

# torch stores these but hardly computes with them.
_STORAGE_DTYPES = (torch.uint16, torch.uint32, torch.uint64)


def plain_tensor(volume: Volume) -> torch.Tensor:
    """Return `volume` as a tensor without metadata, of a dtype that torch can compute with.

    A tensor keeps its memory and device; an array is copied, since torch wants native byte
    order, positive strides, and warns about memory that is read-only.
    """
    if isinstance(volume, MetaTensor):
        tensor = volume.as_tensor()
    elif isinstance(volume, torch.Tensor):
        tensor = volume
    else:
        native = volume.dtype.newbyteorder("=")
        tensor = torch.from_numpy(volume.astype(native, order="C", copy=True))
    return tensor.double() if tensor.dtype in _STORAGE_DTYPES else tensor


def with_meta_of(volume: Volume, result: torch.Tensor) -> torch.Tensor:
    """Return `result` with a copy of the metadata and of the trace of `volume`, if it has any."""
    if not isinstance(volume, MetaTensor):
        return result
    tracked = MetaTensor(result)
    tracked.copy_meta_from(volume)
    return tracked


class KeywiseTransform(MapTransform):
    """Apply one array transform to each key: the body of the dictionary transforms.

    Args:
        keys: keys of the volumes to transform.
        transform: called with each of them.
        allow_missing_keys: skip a key that the data lacks, instead of raising KeyError.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: Callable[[Volume], torch.Tensor],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = transform

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` in which the volumes at the keys are replaced."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform(result[key])
        return result
