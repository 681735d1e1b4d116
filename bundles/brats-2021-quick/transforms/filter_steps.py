"""The steps of a filter bank: each does one thing to some rows, in memory that it already holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from transforms.levels import Voxels
from transforms.slabs import Memory, Slab, library_of


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
    """Copy voxels to the margins: `copies` are the places and what belongs there."""

    copies: Sequence[tuple[Memory, Memory]]

    def __call__(self, *_: object) -> None:
        """Copy."""
        for place, source in self.copies:
            place[...] = source


@dataclass(frozen=True)
class Clear:
    """Set `place` to 0."""

    place: Memory

    def __call__(self, *_: object) -> None:
        """Clear."""
        self.place[...] = 0


@dataclass(frozen=True)
class Smooth:
    """Write the sum of shifted copies, each with its weight, to `place`.

    Args:
        ratios: the weight of each copy divided by that of its inner neighbour, from the ends
            inwards; the copy in the middle has the weight 1.
        shifted: the copies from -radius to radius.
        place: of the same shape; none of them.
        scratch: memory of the same shape for a sum of two, and for the sum so far.
    """

    ratios: Sequence[float]
    shifted: Sequence[Memory]
    place: Memory
    scratch: tuple[Memory, Memory]

    def __call__(self, *_: object) -> None:
        """Sum from the ends inwards: few operations, and small numbers first."""
        library, (pair, total) = library_of(self.place), self.scratch
        for offset, ratio in enumerate(self.ratios):
            behind, ahead = self.shifted[offset], self.shifted[-1 - offset]
            if offset == 0:
                library.add(behind, ahead, out=total)
            else:
                library.add(behind, ahead, out=pair)
                library.add(total, pair, out=total)
            library.multiply(total, ratio, out=total)
        middle = self.shifted[len(self.ratios)]
        if self.ratios:
            library.add(total, middle, out=self.place)
        else:
            self.place[...] = middle


@dataclass(frozen=True)
class Laplacian:
    """Sum the neighbours of each voxel, less as many times the voxel, times `factor`.

    Args:
        neighbours: along each axis, the copies shifted by -1, 0, 1.
        factor: of the sum.
        scratch: memory of the same shape: for a sum of two, and for the result.
    """

    neighbours: Sequence[Sequence[Memory]]
    factor: float
    scratch: tuple[Memory, Memory]

    def __call__(self, *_: object) -> None:
        """Compute it; a difference is small, and so is what its rounding takes from the result."""
        library, (pair, total) = library_of(self.scratch[0]), self.scratch
        for number, (behind, _middle, ahead) in enumerate(self.neighbours):
            if number == 0:
                library.add(behind, ahead, out=total)
            else:
                library.add(behind, ahead, out=pair)
                library.add(total, pair, out=total)
        library.multiply(self.neighbours[0][1], 2 * len(self.neighbours), out=pair)
        library.subtract(total, pair, out=total)
        library.multiply(total, self.factor, out=total)


@dataclass(frozen=True)
class Write:
    """Write `scale` times the smoothed volume, plus a change, plus the background to the result.

    Args:
        scale: what `Smooth` left out.
        parts: where it belongs, what is smoothed, and the change, if any.
    """

    scale: float
    parts: Sequence[tuple[Slab, torch.Tensor, torch.Tensor | None]]

    def __call__(self, _: torch.Tensor, reader: Voxels, out: torch.Tensor) -> None:
        """Write."""
        for part, smooth, change in self.parts:
            place = part.of(out)
            if change is None:
                torch.mul(smooth, self.scale, out=place)
            else:
                torch.add(change, smooth, alpha=self.scale, out=place)
            if reader.background:
                place.add_(reader.background)
