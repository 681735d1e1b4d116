"""Patches: boxes of voxels of a case, which may reach beyond it, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from transforms.slabs import memory_of, zeros

BACKGROUND = "background"
"""The key under which a patch says what the background of its whole image is, (C, 1, 1, 1)."""

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Window:
    """A box of voxels, which may reach beyond its volume.

    Attributes:
        start: its first voxel along X, Y and Z; negative where it begins before the volume.
        size: its number of voxels along X, Y and Z.
    """

    start: Triple
    size: Triple


def place_patch(
    size: Sequence[int], patch_size: Sequence[int], *, place: Sequence[float], about: Triple | None
) -> Window:
    """Return a window of `patch_size` in a volume of `size`, both X, Y and Z.

    Where the volume is smaller, it lies in the middle of the window.

    Args:
        size: of the volume.
        patch_size: of the window.
        place: three numbers in [0, 1), from the first position along an axis to the last one.
        about: a voxel that is to be in the middle, as far as the volume's faces allow, instead.
    """
    starts = []
    for axis, (length, edge) in enumerate(zip(size, patch_size, strict=True)):
        room = length - edge
        if room < 0:
            starts.append(room // 2)
        elif about is None:
            starts.append(int(place[axis] * (room + 1)))
        else:
            starts.append(min(max(about[axis] - edge // 2, 0), room))
    return Window(triple(starts), triple(patch_size))


def background_of(image: torch.Tensor) -> torch.Tensor:
    """Return the background of `image` (C, X, Y, Z): its first voxel, (C, 1, 1, 1)."""
    return image[:, :1, :1, :1].clone()


def crop(
    volume: torch.Tensor, *, window: Window, background: torch.Tensor | None = None
) -> torch.Tensor:
    """Return a contiguous copy of what `window` shows of `volume` (C, X, Y, Z).

    Outside is `background` (C, 1, 1, 1), or 0.
    """
    result = zeros((len(volume), *window.size), volume.device, volume.dtype)
    if background is not None:
        memory_of(result)[...] = memory_of(background)
    into, out_of = [slice(None)], [slice(None)]
    for start, edge, length in zip(window.start, window.size, volume.shape[1:], strict=True):
        begin, end = max(start, 0), min(start + edge, length)
        into.append(slice(begin - start, end - start))
        out_of.append(slice(begin, end))
    memory_of(result)[tuple(into)] = memory_of(volume)[tuple(out_of)]
    return result


def chosen_voxel(label: torch.Tensor, which: float) -> Triple | None:
    """Return X, Y and Z of one of the voxels above 0, chosen by a number in [0, 1), if any is."""
    found = np.flatnonzero((label.cpu().numpy() > 0).any(0))
    if not len(found):
        return None
    return triple(np.unravel_index(found[int(which * len(found))], tuple(label.shape[1:])))


def triple(numbers: Sequence[Any]) -> Triple:
    """Return three numbers as integers."""
    x, y, z = numbers
    return int(x), int(y), int(z)
