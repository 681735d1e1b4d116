"""The article's intensity steps, equal to its NumPy and SciPy code: min-max, Gaussian, sharpening.

Source: the `crop` method of the article's DataGenerator, which works in float64. Here every step
computes in float64 and returns float32, so that a chain of the three stays within 1e-6 of it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Transform
from monai.utils import TransformBackends

from transforms.arrays import KeywiseTransform, Volume, plain_tensor, with_meta_of

# A slab's few float64 buffers of this many voxels mostly stay in a processor's caches, and there
# are few enough slabs that threads seldom wait for each other.
SLAB_VOXELS = 1 << 18


def _slabs(channel: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Yield (start, end) along the first axis: cache-sized on a CPU, everything on a GPU."""
    rows = channel.shape[0]
    step = rows
    if channel.device.type == "cpu":
        step = max(1, SLAB_VOXELS // max(1, math.prod(channel.shape[1:])))
    for start in range(0, rows, max(1, step)):
        yield start, min(rows, start + step)


def _symmetric_index(start: int, end: int, size: int, device: torch.device) -> torch.Tensor:
    """Return the indices start..end-1, those outside 0..size-1 mirrored at the voxels' faces.

    SciPy calls this boundary "reflect" and NumPy "symmetric" (d c b a | a b c d | d c b a); it
    repeats with a period of twice the size, so an axis may be shorter than what is added to it.
    """
    index = torch.arange(start, end, device=device) % (2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def _filtered(
    volume: Volume, on_slab: Callable[[torch.Tensor, int, int], torch.Tensor]
) -> torch.Tensor:
    """Apply `on_slab(channel, start, end)` to every slab of every channel; float32."""
    source = plain_tensor(volume)
    result = torch.empty(source.shape, dtype=torch.float32, device=source.device)
    for channel, out in zip(source, result, strict=True):
        for start, end in _slabs(channel):
            out[start:end] = on_slab(channel, start, end)
    return with_meta_of(volume, result)


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
        for start, end in _slabs(channel):
            scaled = (channel[start:end].double() - low).div_(high - low)
            if level is not None:
                scaled.mul_(level).round_().div_(level)
            out[start:end] = scaled
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

    def smooth(channel: torch.Tensor, start: int, end: int) -> torch.Tensor:
        slab = channel
        for axis in range(channel.ndim):
            first, last = (start, end) if axis == 0 else (0, channel.shape[axis])
            slab = _correlate(slab, weights, axis, first, last)
        return slab

    return _filtered(volume, smooth)


def _gaussian_weights(sigma: float, truncate: float) -> list[float]:
    """Return the kernel's weights from its centre outwards; the whole kernel sums to 1."""
    radius = int(truncate * sigma + 0.5)
    half = np.exp(-0.5 / sigma**2 * np.arange(radius + 1, dtype=np.float64) ** 2)
    return list(half / (half[0] + 2 * half[1:].sum()))


def _correlate(
    volume: torch.Tensor, weights: list[float], axis: int, start: int, end: int
) -> torch.Tensor:
    """Return start..end-1 along `axis` of `volume` filtered by a symmetric kernel, in float64."""
    radius = len(weights) - 1
    index = _symmetric_index(start - radius, end + radius, volume.shape[axis], volume.device)
    padded = volume.index_select(axis, index).double()
    size = end - start
    result = padded.narrow(axis, radius, size) * weights[0]
    for offset, weight in enumerate(weights[1:], start=1):
        result.add_(padded.narrow(axis, radius - offset, size), alpha=weight)
        result.add_(padded.narrow(axis, radius + offset, size), alpha=weight)
    return result


def laplacian_sharpen(volume: Volume, *, strength: float = 0.3) -> torch.Tensor:
    """Return ``x - strength * scipy.ndimage.laplace(x)`` for each channel of `volume`.

    Args:
        volume: (C, X, Y, Z) of any real dtype; it is not changed.
        strength: without unit; 0.3 in the article.

    Returns:
        float32 of the same shape; a MetaTensor, with its metadata, if `volume` is one.
    """

    def sharpen(channel: torch.Tensor, start: int, end: int) -> torch.Tensor:
        index = _symmetric_index(start - 1, end + 1, channel.shape[0], channel.device)
        padded = channel.index_select(0, index).double()
        slab = padded[1:-1]
        result = slab * (1 + 2 * strength * channel.ndim)
        result.sub_(padded[:-2], alpha=strength).sub_(padded[2:], alpha=strength)
        for axis in range(1, channel.ndim):
            _subtract_neighbours(result, slab, axis, strength)
        return result

    return _filtered(volume, sharpen)


def _subtract_neighbours(
    result: torch.Tensor, volume: torch.Tensor, axis: int, strength: float
) -> None:
    """Subtract `strength` times both neighbours along `axis`; a border voxel is its own one."""
    size = volume.shape[axis]
    if size > 1:
        before, after = volume.narrow(axis, 0, size - 1), volume.narrow(axis, 1, size - 1)
        result.narrow(axis, 1, size - 1).sub_(before, alpha=strength)
        result.narrow(axis, 0, size - 1).sub_(after, alpha=strength)
    for border in (0, size - 1):
        result.select(axis, border).sub_(volume.select(axis, border), alpha=strength)


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
