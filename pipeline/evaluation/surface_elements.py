"""The surface between the voxels of a mask: where its elements lie, and their areas.

Marching cubes over every 2x2x2 neighbourhood of voxel centres (Lorensen and Cline 1987,
doi:10.1145/37402.37422). A neighbourhood that is neither all inside nor all outside is one surface
element, at its centre. Its eight corners are a code of eight bits, and the code and the spacing
give its area in mm2.

Marching cubes leaves two choices open. They are made here so that the areas of all 256 codes are
those of DeepMind's `surface-distance`, which the official BraTS metrics use:

- The corners in the minority (the inside where four are inside) are what is cut off, and on a face
  whose two diagonals differ the minority's corners stay apart. A mask and its complement therefore
  have the same surface.
- A polygon that does not lie in a plane is cut into the fan of triangles, all from one of its
  vertices, that has the largest area on a cube. Only 5 and 6 vertices leave a choice, and fans
  that tie are mirror images with the same area at every spacing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

_Corner = tuple[int, int, int]
_Edge = tuple[_Corner, _Corner]  # from a corner that is cut off to one that is not

# In the order of their bits: corner (x, y, z) is bit 4x + 2y + z.
_CORNERS: tuple[_Corner, ...] = tuple((x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1))
_NUM_CODES = 256


def element_codes(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Return the code of every 2x2x2 neighbourhood of `mask`, (X + 1, Y + 1, Z + 1).

    The neighbourhood [i, j, k] covers the voxels i - 1 and i, j - 1 and j, k - 1 and k; the voxel
    (i - 1 + x, j - 1 + y, k - 1 + z) is bit 4x + 2y + z. Outside the volume nothing is inside.

    Args:
        mask: Boolean, (X, Y, Z).
    """
    codes = np.pad(mask, 1).view(np.uint8)
    codes = codes[:, :, :-1] | (codes[:, :, 1:] << np.uint8(1))
    codes = codes[:, :-1] | (codes[:, 1:] << np.uint8(2))
    return codes[:-1] | (codes[1:] << np.uint8(4))


def is_element(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return where the surface passes: neither all eight voxels inside, nor all outside."""
    return (codes != 0) & (codes != _NUM_CODES - 1)


def element_areas_mm2(spacing_mm: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray:
    """Return the area in mm2 of the surface element of each code, (256,), float64.

    Args:
        spacing_mm: Three distances of voxel centres, > 0.
    """
    codes, normals = _triangles()
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    # Stretching the axes by the spacing stretches each component of an area by the other two.
    areas = np.linalg.norm(normals * (spacing.prod() / spacing), axis=1)
    return np.bincount(codes, weights=areas, minlength=_NUM_CODES)


@functools.cache
def _triangles() -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Return the triangles of all codes on a unit cube: their codes (N,) and normals (N, 3).

    The length of a normal is its triangle's area.
    """
    codes: list[int] = []
    normals: list[npt.NDArray[np.float64]] = []
    for code in range(_NUM_CODES):
        for polygon in _polygons(_cut_off(code)):
            fan = _largest_fan(polygon)
            codes.extend([code] * len(fan))
            normals.append(fan)
    return np.array(codes), np.concatenate(normals)


def _cut_off(code: int) -> frozenset[_Corner]:
    inside = frozenset(corner for bit, corner in enumerate(_CORNERS) if code >> bit & 1)
    return inside if len(inside) <= 4 else frozenset(_CORNERS) - inside


def _polygons(cut_off: frozenset[_Corner]) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the closed polygons (N, 3) through the midpoints of the cube's edges that are cut."""
    links: dict[_Edge, list[_Edge]] = {}
    for axis, side in itertools.product(range(3), (0, 1)):
        for one, other in _lines_on_face(cut_off, axis=axis, side=side):
            links.setdefault(one, []).append(other)
            links.setdefault(other, []).append(one)
    while links:
        start = next(iter(links))
        loop, edge = [start], links.pop(start)[0]
        while edge != start:
            onward = next(near for near in links.pop(edge) if near != loop[-1])
            loop.append(edge)
            edge = onward
        yield np.array(loop).mean(axis=1)


def _lines_on_face(
    cut_off: frozenset[_Corner], *, axis: int, side: int
) -> list[tuple[_Edge, _Edge]]:
    """Return the lines in which the surface meets one face, each from a cut edge to another."""
    face = [corner for corner in _CORNERS if corner[axis] == side]
    edges = [
        (corner, other)
        for corner in face
        for other in face
        if corner in cut_off and other not in cut_off and _are_neighbours(corner, other)
    ]
    if len(edges) == 4:  # two corners across a diagonal: one line around each of them
        return [(edges[0], edges[1]), (edges[2], edges[3])]
    return [(edges[0], edges[1])] if edges else []


def _are_neighbours(one: _Corner, other: _Corner) -> bool:
    return sum(a != b for a, b in zip(one, other, strict=True)) == 1


def _largest_fan(polygon: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the normals (N - 2, 3) of the largest fan of triangles that fills `polygon` (N, 3)."""
    fans = [_fan(np.roll(polygon, -first, axis=0)) for first in range(len(polygon))]
    return max(fans, key=lambda normals: float(np.linalg.norm(normals, axis=1).sum()))


def _fan(polygon: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    rays = polygon[1:] - polygon[0]
    return np.cross(rays[:-1], rays[1:]) / 2
