"""The steps of a filter bank: each does one thing to some rows, in memory that it already holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from transforms.levels import Voxels
from transforms.slabs import Slab


class Step(Protocol):
    """Done once for each channel."""

    def __call__(self, channel: torch.Tensor, reader: Voxels, out: torch.Tensor, /) -> None:
        """Read from `channel` with `reader`, compute, or write to `out`, each (X, Y, Z)."""


@dataclass(frozen=True)
class Read:
    """Write the voxels of `source` less the background to `place`.

    What is not computed, 0, is then right.
    """

    source: Slab
    place: torch.Tensor

    def __call__(self, channel: torch.Tensor, reader: Voxels, _: torch.Tensor) -> None:
        """Read."""
        reader.read(self.source.of(channel), self.place)
        if reader.background:
            self.place.sub_(reader.background)


@dataclass(frozen=True)
class Mirror:
    """Fill the first and the last part of `volume` along `axis` with what lies at `index` there."""

    volume: torch.Tensor
    axis: int
    index: torch.Tensor

    def __call__(self, *_: object) -> None:
        """Fill both margins."""
        margin = len(self.index) // 2
        end = self.volume.shape[self.axis] - margin
        found = self.volume.index_select(self.axis, self.index)
        for start, margin_of in ((0, 0), (end, margin)):
            place = self.volume.narrow(self.axis, start, margin)
            place.copy_(found.narrow(self.axis, margin_of, margin))


@dataclass(frozen=True)
class Clear:
    """Set `place` to 0."""

    place: torch.Tensor

    def __call__(self, *_: object) -> None:
        """Clear."""
        self.place.zero_()


@dataclass(frozen=True)
class Smooth:
    """Write the weighted sum of shifted copies to `place`.

    Args:
        weights: of the kernel, from its centre outwards.
        shifted: the copies from -radius to radius.
        place: of the same shape; none of them.
        scratch: memory of the same shape for a sum of two, and for the sum so far.
    """

    weights: Sequence[float]
    shifted: Sequence[torch.Tensor]
    place: torch.Tensor
    scratch: tuple[torch.Tensor, torch.Tensor]

    def __call__(self, *_: object) -> None:
        """Sum from the kernel's ends inwards: small numbers first, for the sake of rounding."""
        radius = len(self.weights) - 1
        pair, total = self.scratch
        if not radius:
            self.place.copy_(self.shifted[0])
            return
        for offset in range(radius, 0, -1):
            torch.add(self.shifted[radius - offset], self.shifted[radius + offset], out=pair)
            if offset == radius:
                torch.mul(pair, self.weights[offset], out=total)
            else:
                total.add_(pair, alpha=self.weights[offset])
        torch.add(total, self.shifted[radius], alpha=self.weights[0], out=self.place)


@dataclass(frozen=True)
class Laplacian:
    """Sum the neighbours of each voxel, less as many times the voxel, into the second scratch.

    Args:
        neighbours: along each axis, the copies shifted by -1, 0, 1.
        scratch: memory of the same shape: for a sum of two, and for the Laplacian.
    """

    neighbours: Sequence[Sequence[torch.Tensor]]
    scratch: tuple[torch.Tensor, torch.Tensor]

    def __call__(self, *_: object) -> None:
        """Compute it; a difference is small, and so is what its rounding takes from the result."""
        pair, total = self.scratch
        (behind, centre, ahead), *others = self.neighbours
        torch.add(behind, ahead, out=total)
        for behind, _same, ahead in others:
            torch.add(behind, ahead, out=pair)
            total.add_(pair)
        total.sub_(centre, alpha=2 * len(self.neighbours))


@dataclass(frozen=True)
class Write:
    """Write `smooth`, less `strength` times `laplacian`, plus the background to the result.

    Args:
        part: where it belongs.
        smooth: of the shape of that part.
        laplacian: of the same shape; not read without a strength.
        strength: of the sharpening.
    """

    part: Slab
    smooth: torch.Tensor
    laplacian: torch.Tensor
    strength: float

    def __call__(self, _: torch.Tensor, reader: Voxels, out: torch.Tensor) -> None:
        """Write."""
        place = self.part.of(out)
        if self.strength:
            torch.add(self.smooth, self.laplacian, alpha=-self.strength, out=place)
        else:
            place.copy_(self.smooth)
        if reader.background:
            place.add_(reader.background)
