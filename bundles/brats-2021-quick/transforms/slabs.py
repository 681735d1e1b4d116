"""Which part of a volume is more than its background, and slabs of it that stay in a cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

Memory: TypeAlias = Any
"""An array of NumPy's on a CPU, a tensor of torch's elsewhere.

NumPy's sums are quicker than torch's on pieces that fit into a cache, and run in one thread:
threads that wait for each other after each of thousands of small sums are slower than one.
"""


@dataclass(frozen=True)
class ChannelRange:
    """What the voxels of a channel (X, Y, Z) are, as a tensor of the channel's own type each.

    Attributes:
        background: value of the first voxel, that of all rows which do not vary.
        low: the least value.
        high: the largest value.
        varying: bool (X, Y) on the CPU, whether the row along Z has another value.
    """

    background: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    varying: torch.Tensor


@dataclass(frozen=True)
class Slab:
    """Some planes (X) of a volume, and rows (Y) in each of them."""

    planes: slice
    rows: slice

    @property
    def num_planes(self) -> int:
        """How many planes there are."""
        return int(self.planes.stop - self.planes.start)

    @property
    def num_rows(self) -> int:
        """How many rows a plane has."""
        return int(self.rows.stop - self.rows.start)

    def of(self, volume: Any) -> Any:
        """Return this part of `volume` (..., X, Y, Z), in the same memory."""
        return volume[..., self.planes, self.rows, :]

    def moved(self, planes: int, rows: int) -> Slab:
        """Return the same part in coordinates that begin elsewhere."""
        return Slab(
            slice(self.planes.start + planes, self.planes.stop + planes),
            slice(self.rows.start + rows, self.rows.stop + rows),
        )

    def tiles(self, *, depth: int, num_voxels: int) -> Iterator[Slab]:
        """Yield parts of at most so many voxels (at least a row), with rows of length `depth`."""
        num_planes = max(1, num_voxels // max(self.num_rows * depth, 1))
        num_rows = max(1, num_voxels // depth)
        for plane in range(self.planes.start, self.planes.stop, num_planes):
            planes = slice(plane, min(plane + num_planes, self.planes.stop))
            for row in range(self.rows.start, self.rows.stop, num_rows):
                yield Slab(planes, slice(row, min(row + num_rows, self.rows.stop)))


class Spans:
    """The first and the last row of each plane in which there is anything.

    Args:
        bounds: whole numbers (X, 2), the first row and the one after the last; where there is
            nothing, the first is `NOWHERE` and the other its negative.
    """

    NOWHERE = 1 << 40

    def __init__(self, bounds: np.ndarray) -> None:
        self.bounds = bounds

    @classmethod
    def of(cls, present: torch.Tensor) -> Spans:
        """Return the spans of `present`, bool (X, Y)."""
        found = present.numpy()
        first, behind = found.argmax(1), found.shape[1] - found[:, ::-1].argmax(1)
        bounds = np.stack([first, behind], axis=1)
        return cls(np.where(found.any(axis=1, keepdims=True), bounds, (cls.NOWHERE, -cls.NOWHERE)))

    def over(self, planes: slice) -> Slab:
        """Return `planes` with the rows in which any of them has something, perhaps none."""
        start, stop = int(self.bounds[planes, 0].min()), int(self.bounds[planes, 1].max())
        return Slab(planes, slice(start, max(start, stop)))

    def grown(self, *, planes: int, rows: int, within: slice) -> Spans:
        """Return what lies within so many planes and rows of it, and in the rows `within`."""
        nothing = np.tile((self.NOWHERE, -self.NOWHERE), (planes, 1))
        near = sliding_window_view(
            np.concatenate([nothing, self.bounds, nothing]), 2 * planes + 1, axis=0
        )
        first = np.maximum(near[:, 0].min(1) - rows, within.start)
        behind = np.minimum(near[:, 1].max(1) + rows, within.stop)
        return Spans(np.stack([first, behind], axis=1))


def memory_of(tensor: torch.Tensor) -> Memory:
    """Return the same memory for the functions of `library_of`."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def library_of(memory: Memory) -> Any:
    """Return the library that computes with `memory`: both know `add`, `subtract`, `multiply`."""
    return np if isinstance(memory, np.ndarray) else torch


def zeros(
    shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return zeros; on a CPU from NumPy, which asks for large pages and clears none before its use.

    To get its memory is what a filter would otherwise spend most of its time on.
    """
    if device.type == "cpu":
        memory = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
        return torch.from_numpy(memory).view(dtype).view(tuple(shape))
    return torch.zeros(tuple(shape), dtype=dtype, device=device)


def range_of(channel: torch.Tensor, *, tile_voxels: int) -> ChannelRange:
    """Return background, extremes and varying rows of `channel` (X, Y, Z), at least one voxel.

    So many voxels are read at a time: what is read twice should still be in the cache.
    """
    num_planes, num_rows, depth = channel.shape
    whole = Slab(slice(0, num_planes), slice(0, num_rows))
    bounds = torch.empty((2, num_planes, num_rows), dtype=channel.dtype, device=channel.device)
    for tile in whole.tiles(depth=depth, num_voxels=tile_voxels):
        voxels, (lows, highs) = tile.of(channel), bounds[:, tile.planes, tile.rows]
        torch.amin(voxels, 2, out=lows)
        torch.amax(voxels, 2, out=highs)
    background, found = channel[0, 0, 0], memory_of(bounds)
    varying = (found != memory_of(background)).any(0)  # so that NaN varies
    low, high = (torch.as_tensor(bound) for bound in (found[0].min(), found[1].max()))
    return ChannelRange(background, low, high, torch.as_tensor(varying).cpu())


def nonzero_rows(volume: torch.Tensor) -> torch.Tensor:
    """Return bool (X, Y) on the CPU, the rows of `volume` (C, X, Y, Z) in which any is not 0."""
    memory = memory_of(volume.detach())
    found = memory_of(torch.zeros(volume.shape[1:3], dtype=torch.bool, device=volume.device))
    if volume.device.type == "cpu":  # plane by plane, which stay in the cache
        for channel in memory:
            for rows, plane in zip(found, channel, strict=True):
                rows |= (plane != 0).any(1)
    else:
        found = (memory != 0).any(3).any(0)
    return torch.as_tensor(found).cpu()


def box_of(varying: torch.Tensor, *, reach: int) -> Slab:
    """Return all planes and rows within `reach` voxels of one that varies, empty if none does."""
    return Slab(_spread(varying.any(1), reach), _spread(varying.any(0), reach))


def _spread(present: torch.Tensor, reach: int) -> slice:
    """Return the slice from the first to the last True, longer by `reach` on both sides."""
    found = present.nonzero()
    if not len(found):
        return slice(0, 0)
    first, last = int(found[0]), int(found[-1])
    return slice(max(first - reach, 0), min(last + 1 + reach, len(present)))
