"""The article's intensity steps, equal to its NumPy and SciPy code: min-max, Gaussian, sharpening.

Source: the `crop` method of the article's DataGenerator, which works in float64. Here every step
computes in float64 and returns float32, so that a chain of the three stays within 1e-6 of it.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Transform
from monai.utils import TransformBackends

from transforms.arrays import KeywiseTransform, Volume, plain_tensor, with_meta_of

# A float64 tile of this size stays in a processor's cache, and torch computes it in one thread: it
# splits what has 2**15 elements, and waiting for each other thousands of times makes two threads on
# a busy machine ten times slower than one.
TILE_VOXELS = (1 << 15) - 1


def _tile_voxels(device: torch.device) -> int:
    """Return how many voxels to compute at a time: a tile on a CPU, everything on a GPU."""
    return TILE_VOXELS if device.type == "cpu" else sys.maxsize


def _axis_tiles(before: int, along: int, after: int, limit: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of the axes before and after one that is kept whole, `limit` voxels at most.

    With contiguous memory the last axis is cut least. A tile has at least one line of voxels.
    """
    width = min(after, max(1, limit // along))
    depth = max(1, limit // (along * width))
    for first in range(0, before, depth):
        for start in range(0, after, width):
            yield slice(first, first + depth), slice(start, start + width)


def _symmetric_index(radius: int, size: int, device: torch.device) -> torch.Tensor:
    """Return the indices -radius..size+radius-1, those outside mirrored at the voxels' faces.

    SciPy calls this boundary "reflect" and NumPy "symmetric" (d c b a | a b c d | d c b a); it
    repeats with a period of twice the size, so an axis may be shorter than what is added to it.
    """
    index = torch.arange(-radius, size + radius, device=device) % (2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def _padded_tiles(
    source: torch.Tensor, result: torch.Tensor, *, axis: int, radius: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield float64 copies of `source`, padded along `axis`, and their places in `result`.

    Both are viewed as (before, axis, after). `result` must be contiguous; it may be `source`,
    since a tile holds whole lines along the axis and is copied before it is replaced.
    """
    size = source.shape[axis]
    view = (math.prod(source.shape[:axis]), size, math.prod(source.shape[axis + 1 :]))
    lines, places = source.reshape(view), result.view(view)
    index = _symmetric_index(radius, size, source.device)
    limit = _tile_voxels(source.device)
    for before, after in _axis_tiles(view[0], len(index), view[2], limit):
        yield lines[before, :, after].index_select(1, index).double(), places[before, :, after]


def min_max_normalize(volume: Volume, *, decimals: int | None = 3) -> torch.Tensor:
    """Scale each channel of `volume` (C, X, Y, Z) to 0..1 over all its voxels, then round.

    Equal to ``np.round((x - x.min()) / (x.max() - x.min()), decimals)`` in float64: with 3
    decimals, one of exactly 1001 levels. A constant channel becomes 0, with a UserWarning (the
    article divides by zero there). `decimals=None` does not round.

    Returns:
        float32 of the same shape; a MetaTensor, with its metadata, if `volume` is one.
    """
    source = plain_tensor(volume)
    # Tensors and not numbers, so that CUDA divides: by a number it multiplies with the rounded
    # reciprocal, which can move a tie to another level.
    level = None
    if decimals is not None:
        level = torch.tensor(10.0**decimals, dtype=torch.float64, device=source.device)
    result = torch.zeros(source.shape, dtype=torch.float32, device=source.device)
    for number, (channel, out) in enumerate(zip(source, result, strict=True)):
        low, high = (bound.double() for bound in torch.aminmax(channel))
        if low == high:
            warnings.warn(
                f"channel {number} is constant ({low.item():g}); it becomes 0", stacklevel=2
            )
            continue
        tile = min(channel.numel(), _tile_voxels(channel.device))
        for part, place in zip(
            channel.reshape(-1).split(tile), out.view(-1).split(tile), strict=True
        ):
            scaled = (part.double() - low).div_(high - low)
            if level is not None:
                scaled.mul_(level).round_().div_(level)
            place.copy_(scaled)
    return with_meta_of(volume, result)


def gaussian_filter(volume: Volume, *, sigma: float = 1.0, truncate: float = 4.0) -> torch.Tensor:
    """Smooth each channel of `volume` (C, X, Y, Z); equal to `scipy.ndimage.gaussian_filter`.

    Args:
        volume: any real dtype; it is not changed.
        sigma: standard deviation in voxels, more than 0, the same along every axis.
        truncate: the kernel ends at this many standard deviations (rounded to voxels).

    Returns:
        float32 of the same shape; a MetaTensor, with its metadata, if `volume` is one.

    Raises:
        ValueError: if `sigma` is not more than 0.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be more than 0 voxels; found {sigma}")
    weights = _gaussian_weights(sigma, truncate)

    source = plain_tensor(volume)
    result = torch.empty(source.shape, dtype=torch.float32, device=source.device)
    buffer = torch.empty(source.shape[1:], dtype=torch.float64, device=source.device)
    for channel, out in zip(source, result, strict=True):
        smooth = channel
        for axis in range(channel.ndim):
            _correlate(smooth, buffer, weights, axis=axis)
            smooth = buffer
        out.copy_(smooth)
    return with_meta_of(volume, result)


def _gaussian_weights(sigma: float, truncate: float) -> list[float]:
    """Return the kernel's weights from its centre outwards; the whole kernel sums to 1."""
    radius = int(truncate * sigma + 0.5)
    half = np.exp(-0.5 / sigma**2 * np.arange(radius + 1, dtype=np.float64) ** 2)
    return list(half / (half[0] + 2 * half[1:].sum()))


def _correlate(
    source: torch.Tensor, result: torch.Tensor, weights: list[float], *, axis: int
) -> None:
    """Write `source`, filtered along `axis` by the symmetric kernel, into `result`."""
    radius = len(weights) - 1
    for padded, place in _padded_tiles(source, result, axis=axis, radius=radius):
        size = place.shape[1]
        total = padded.narrow(1, radius, size) * weights[0]
        for offset, weight in enumerate(weights[1:], start=1):
            total.add_(padded.narrow(1, radius - offset, size), alpha=weight)
            total.add_(padded.narrow(1, radius + offset, size), alpha=weight)
        place.copy_(total)


def laplacian_sharpen(volume: Volume, *, strength: float = 0.3) -> torch.Tensor:
    """Return ``x - strength * scipy.ndimage.laplace(x)`` for each channel of `volume`.

    Args:
        volume: (C, X, Y, Z) of any real dtype; it is not changed.
        strength: without unit; 0.3 in the article.

    Returns:
        float32 of the same shape; a MetaTensor, with its metadata, if `volume` is one.
    """
    source = plain_tensor(volume)
    result = torch.empty(source.shape, dtype=torch.float32, device=source.device)
    for channel, out in zip(source, result, strict=True):
        sharpened = channel.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        sharpened.mul_(1 + 2 * strength * channel.ndim)
        for axis in range(channel.ndim):
            for padded, place in _padded_tiles(channel, sharpened, axis=axis, radius=1):
                place.sub_(padded[:, :-2], alpha=strength).sub_(padded[:, 2:], alpha=strength)
        out.copy_(sharpened)
    return with_meta_of(volume, result)


class MinMaxNormalize(Transform):
    """Array transform of `min_max_normalize`."""

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012 - MONAI's idiom

    def __init__(self, *, decimals: int | None = 3) -> None:
        self.decimals = decimals

    def __call__(self, img: Volume) -> torch.Tensor:
        """Return `img` (C, X, Y, Z) normalised."""
        return min_max_normalize(img, decimals=self.decimals)


class GaussianFilter(Transform):
    """Array transform of `gaussian_filter`."""

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012 - MONAI's idiom

    def __init__(self, *, sigma: float = 1.0, truncate: float = 4.0) -> None:
        self.sigma = sigma
        self.truncate = truncate

    def __call__(self, img: Volume) -> torch.Tensor:
        """Return `img` (C, X, Y, Z) smoothed."""
        return gaussian_filter(img, sigma=self.sigma, truncate=self.truncate)


class LaplacianSharpen(Transform):
    """Array transform of `laplacian_sharpen`."""

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012 - MONAI's idiom

    def __init__(self, *, strength: float = 0.3) -> None:
        self.strength = strength

    def __call__(self, img: Volume) -> torch.Tensor:
        """Return `img` (C, X, Y, Z) sharpened."""
        return laplacian_sharpen(img, strength=self.strength)


class MinMaxNormalized(KeywiseTransform):
    """Dictionary transform of `min_max_normalize`."""

    def __init__(
        self, keys: KeysCollection, *, decimals: int | None = 3, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, MinMaxNormalize(decimals=decimals), allow_missing_keys)


class GaussianFilterd(KeywiseTransform):
    """Dictionary transform of `gaussian_filter`."""

    def __init__(
        self,
        keys: KeysCollection,
        *,
        sigma: float = 1.0,
        truncate: float = 4.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, GaussianFilter(sigma=sigma, truncate=truncate), allow_missing_keys)


class LaplacianSharpend(KeywiseTransform):
    """Dictionary transform of `laplacian_sharpen`."""

    def __init__(
        self, keys: KeysCollection, *, strength: float = 0.3, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, LaplacianSharpen(strength=strength), allow_missing_keys)
