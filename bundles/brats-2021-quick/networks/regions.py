"""A part of a volume, and what a decoder has to compute for no more than that part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Region: TypeAlias = tuple[slice, slice, slice]
"""Slices of X, Y and Z, with a start of at least 0 and an end within the volume."""


@dataclass(frozen=True, eq=False)
class Content:
    """What a volume holds beside its background.

    Attributes:
        box: the part of it that is not background alone.
        background: (B, C, 1, 1, 1), what every voxel outside the box is.
    """

    box: Region
    background: Tensor


def cut(volume: Tensor, region: Region, *, origin: Sequence[int] = (0, 0, 0)) -> Tensor:
    """Return what lies in `region` of a `volume` (B, C, ...) that begins at `origin`."""
    x, y, z = (
        slice(part.start - first, part.stop - first)
        for part, first in zip(region, origin, strict=True)
    )
    return volume[:, :, x, y, z]


def start_of(region: Region) -> tuple[int, int, int]:
    """Return the first voxel of `region`."""
    x, y, z = (part.start for part in region)
    return x, y, z


def grown(region: Region, *, by: int, size: Sequence[int]) -> Region:
    """Return `region` with so many voxels more on each side, rounded up to even, within a volume.

    Args:
        region: a part of the volume.
        by: voxels.
        size: (X, Y, Z) of the volume, even.
    """
    x, y, z = (
        slice(max(part.start - by, 0) // 2 * 2, min(part.stop + by + 1, edge) // 2 * 2)
        for part, edge in zip(region, size, strict=True)
    )
    return x, y, z


def halved(region: Region) -> Region:
    """Return the same part of a volume of half the size; starts and ends are even."""
    x, y, z = (slice(part.start // 2, part.stop // 2) for part in region)
    return x, y, z


def mirrored(content: Content, axes: Sequence[int], *, size: Sequence[int]) -> Content:
    """Return `content` after mirroring `axes` of (B, C, X, Y, Z), a volume of that size."""
    x, y, z = (
        slice(edge - part.stop, edge - part.start) if axis in axes else part
        for axis, (part, edge) in enumerate(zip(content.box, size, strict=True), start=2)
    )
    return Content((x, y, z), content.background)


def regions_of_levels(
    region: Region, *, size: Sequence[int], num_levels: int, halo: int
) -> list[Region]:
    """Return what each level of a decoder has to compute, from the coarsest to the top.

    What is cut off is missing from the first `halo` voxels inside a face: they are computed with
    zeros instead. So they are computed in addition, and left out of what the level above gets; at
    the volume's own faces zeros are what belongs there. What a level computes is even on all sides,
    so that it is a part of the coarser level.

    Args:
        region: of the top level that is wanted.
        size: (X, Y, Z) of the top level.
        num_levels: of the decoder.
        halo: how far a level looks sideways, in its own voxels.
    """
    levels = []
    for level in range(num_levels):
        here = grown(region, by=halo, size=[edge >> level for edge in size])
        levels.append(here)
        region = halved(here)
    return levels[::-1]
