"""Gaussian and Laplacian in one pass over a volume, by sums of shifted copies.

Where nothing differs from the background, nothing is computed: a filter of a constant is the same
constant. The operations on a voxel and their order do not depend on its neighbours or on how the
volume is divided, so neither does any bit of the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from transforms.filter_steps import (
    Clear,
    Laplacian,
    Mirror,
    Read,
    Smooth,
    Step,
    Write,
)
from transforms.levels import Voxels
from transforms.slabs import Memory, Slab, Spans, memory_of, zeros


@dataclass(frozen=True)
class Filters:
    """What is done to each channel.

    Attributes:
        weights: of the Gaussian's kernel from its centre outwards; (1,) does not smooth.
        strength: of the sharpening; 0 does not sharpen.
        dtype: to compute in. With float32, voxels of 0..1 come out within 1e-6, for half the time.
    """

    weights: Sequence[float] = (1.0,)
    strength: float = 0.0
    dtype: torch.dtype = torch.float64

    @property
    def ratios(self) -> list[float]:
        """Each weight divided by its inner neighbour, from the ends inwards."""
        pairs = zip(self.weights[1:], self.weights[:-1], strict=True)
        return [float(outer / inner) for outer, inner in reversed(list(pairs))]

    @property
    def radius(self) -> int:
        """Voxels that the kernel of the Gaussian reaches on either side."""
        return len(self.weights) - 1

    @property
    def reach(self) -> int:
        """Voxels that one voxel spreads to on either side."""
        return self.radius + (self.strength != 0)


class _Planes:
    """Planes with margins on all sides: neighbours along an axis are equally far in all memory.

    So a shifted copy of many rows, margins included, is one piece of memory.
    """

    def __init__(self, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> None:
        self.whole = zeros(shape, device, dtype)
        self.depth = shape[2]

    def shifted(self, part: Slab, axis: int, reach: int) -> list[Memory]:
        """Return the rows of `part`, one line a plane, shifted by -reach..reach along `axis`."""
        strides = self.whole.stride()
        start = part.planes.start * strides[0] + part.rows.start * strides[1]
        size = (2 * reach + 1, part.num_planes, part.num_rows * strides[1])
        lines = (strides[axis], strides[0], 1)
        copies = self.whole.as_strided(size, lines, start - reach * strides[axis])
        return [memory_of(copy) for copy in copies.unbind()]


class FilterBank:
    """Filters channels of one shape, one after the other, in memory that they share.

    The volume is extended by the filters' reach, mirrored at its border as by SciPy's "reflect":
    filters that are symmetric keep the symmetry, so that this is needed once, before the first.

    Args:
        filters: what is done.
        varying: bool (X, Y) on the CPU, the rows in which any channel is more than background.
        depth: voxels along Z.
        device: to compute on.
        tile_voxels: about how many voxels to read and write at a time.
        slab_voxels: about how many voxels to filter at a time.
    """

    def __init__(
        self,
        filters: Filters,
        *,
        varying: torch.Tensor,
        depth: int,
        device: torch.device,
        tile_voxels: int,
        slab_voxels: int,
    ) -> None:
        self.filters = filters
        self.ratios = filters.ratios
        self.tile_voxels, self.slab_voxels = tile_voxels, slab_voxels
        self.scale = filters.weights[0] ** 3  # of three axes
        self.margin = filters.reach
        self.shape = (*varying.shape, depth)
        self.extended = [_extended(size, self.margin) for size in self.shape]
        whole = [len(indices) for indices in self.extended]
        self.thickness = min(max(slab_voxels // math.prod(whole[1:]), 1), whole[0])
        some = (self.thickness, *whole[1:])
        self.read, self.smooth_z = (_Planes(some, device, filters.dtype) for _ in range(2))
        self.smooth_y, self.smooth_x = (_Planes(whole, device, filters.dtype) for _ in range(2))
        size = min(max(slab_voxels, whole[2]), math.prod(some))
        self.scratch = torch.empty((2, size), dtype=filters.dtype, device=device)
        self.steps = list(self._steps(varying))

    def run(self, channel: torch.Tensor, reader: Voxels, out: torch.Tensor) -> None:
        """Filter what `reader` makes of `channel` (X, Y, Z) into `out`, float32 of that shape.

        `out` is written where the result is more than background; there it holds background.
        """
        for step in self.steps:
            step(channel, reader, out)

    def _steps(self, varying: torch.Tensor) -> Iterator[Step]:
        """Yield all steps, plane by plane; each follows the one before as soon as it can.

        What a step reads is then still in the cache.
        """
        radius, margin = self.filters.radius, self.margin
        size_x, size_y = (len(indices) for indices in self.extended[:2])
        extended = varying[self.extended[0]][:, self.extended[1]]
        rows_y = slice(radius, size_y - radius)
        known = Spans.of(extended)
        after_y = known.grown(planes=0, rows=radius, within=rows_y)
        after_x = after_y.grown(planes=radius, rows=0, within=rows_y)
        inside = slice(margin, size_y - margin)
        written = after_x.grown(planes=margin - radius, rows=margin - radius, within=inside)
        for start in range(0, size_x, self.thickness):
            planes = slice(start, min(start + self.thickness, size_x))
            yield from self._in_plane(known.over(planes), after_y.over(planes))
            # Filters along X need `radius` planes on either side, the Laplacian one more.
            for spans, lag, steps in (
                (after_x, radius, self._across),
                (written, margin, self._written),
            ):
                ready = slice(max(start - lag, lag), planes.stop - lag)
                if ready.start < ready.stop:
                    yield from steps(spans.over(ready))

    def _in_plane(self, part: Slab, smoothed: Slab) -> Iterator[Step]:
        """Read the rows of `part` and smooth them along Z and Y into the rows `smoothed`."""
        if not part.num_rows:
            return
        margin, first, depth = self.margin, part.planes.start, self.read.depth
        own = slice(max(part.rows.start, margin), min(part.rows.stop, margin + self.shape[1]))
        local = Slab(slice(0, part.num_planes), own)
        for start, planes in _runs(self.extended[0][part.planes]):
            for piece in Slab(planes, own).tiles(depth=depth, num_voxels=self.tile_voxels):
                place = piece.moved(start - planes.start, 0).of(self.read.whole)
                yield Read(piece.moved(0, -margin), place[..., margin : depth - margin])
        for piece in self._tiles(local):
            yield self._mirror(piece.of(self.read.whole), 2)
            yield self._smooth(2, self.read, piece, self.smooth_z, piece)
        yield from self._around(local, is_mirrored=own != part.rows)
        for piece in self._tiles(smoothed.moved(-first, 0)):
            yield self._smooth(1, self.smooth_z, piece, self.smooth_y, piece.moved(first, 0))

    def _around(self, part: Slab, *, is_mirrored: bool) -> Iterator[Step]:
        """Make right what filters along Y read beside the rows of `part`."""
        reach = 2 * self.filters.radius  # what is smoothed beside it reads so far
        planes = self.smooth_z.whole[part.planes]
        before, behind = part.rows.start, part.rows.stop
        for rows in (slice(max(before - reach, 0), before), slice(behind, behind + reach)):
            yield Clear(memory_of(planes[:, rows]))
        if is_mirrored:
            yield self._mirror(planes, 1)

    def _across(self, part: Slab) -> Iterator[Step]:
        """Smooth the rows of `part` along X."""
        for piece in self._tiles(part):
            yield self._smooth(0, self.smooth_y, piece, self.smooth_x, piece)

    def _written(self, part: Slab) -> Iterator[Step]:
        """Write the rows of `part`, sharpened."""
        for piece in self._tiles(part):
            changes, strength = None, self.filters.strength
            if strength:
                neighbours = [self.smooth_x.shifted(piece, axis, 1) for axis in (2, 1, 0)]
                yield Laplacian(neighbours, -strength * self.scale, self._scratch(piece))
                shape = (piece.num_planes, piece.num_rows, self.read.depth)
                changes = self.scratch[1, : math.prod(shape)].view(shape)
            yield Write(self.scale, list(self._parts(piece, changes)))

    def _parts(
        self, piece: Slab, changes: torch.Tensor | None
    ) -> Iterator[tuple[Slab, torch.Tensor, torch.Tensor | None]]:
        """Yield what `Write` takes: places in the result, smoothed voxels, changes of these."""
        depth, margin = self.read.depth, self.margin
        inside = slice(margin, depth - margin)
        for tile in piece.tiles(depth=depth, num_voxels=self.tile_voxels):
            change = None
            if changes is not None:
                local = tile.moved(-piece.planes.start, -piece.rows.start)
                change = local.of(changes)[..., inside]
            yield tile.moved(-margin, -margin), tile.of(self.smooth_x.whole)[..., inside], change

    def _mirror(self, volume: torch.Tensor, axis: int) -> Mirror:
        """Return the step that fills the margins of `volume` along `axis`."""
        indices, margin = self.extended[axis], self.margin
        places = [*range(margin), *range(len(indices) - margin, len(indices))]

        def at(index: int) -> Memory:
            return memory_of(volume.select(axis, index))

        return Mirror([(at(place), at(indices[place] + margin)) for place in places])

    def _smooth(self, axis: int, source: _Planes, part: Slab, target: _Planes, place: Slab) -> Step:
        shifted = source.shifted(part, axis, self.filters.radius)
        return Smooth(self.ratios, shifted, target.shifted(place, 0, 0)[0], self._scratch(part))

    def _tiles(self, part: Slab) -> Iterator[Slab]:
        return part.tiles(depth=self.read.depth, num_voxels=self.slab_voxels)

    def _scratch(self, part: Slab) -> tuple[Memory, Memory]:
        """Return memory for two sums over the rows of `part`, one line a plane."""
        shape = (part.num_planes, part.num_rows * self.read.depth)
        pair, total = (memory_of(memory[: math.prod(shape)].view(shape)) for memory in self.scratch)
        return pair, total


def _extended(size: int, margin: int) -> list[int]:
    """Return which voxel of an axis comes where, margins included: c b a | a b c d | d c b.

    It repeats with a period of twice the size, so an axis may be shorter than its margin.
    """
    period = 2 * size
    folded = [index % period for index in range(-margin, size + margin)]
    return [min(index, period - 1 - index) for index in folded]


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Yield slices that read `indices` in their order, each with the place of its first."""
    start = 0
    for place, index in enumerate(indices):
        if place + 1 == len(indices) or indices[place + 1] != index + 1:
            yield start, slice(indices[start], index + 1)
            start = place + 1
