"""The article's intensity steps, equal to its NumPy and SciPy code: min-max, Gaussian, sharpening.

Source: the `crop` method of the article's DataGenerator, which works in float64. Here every step
computes in float64 and returns float32; `filter_intensities`, which is all of them at once, filters
in float32 and stays within 1e-6 of it. Only what differs from the background is computed.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Transform
from monai.utils import TransformBackends

from transforms.arrays import KeywiseTransform, Volume, plain_tensor, with_meta_of
from transforms.filters import FilterBank, Filters
from transforms.levels import Levels, Voxels
from transforms.slabs import ChannelRange, box_of, range_of, zeros

# Of this size, a piece is computed by torch in one thread: it splits what has 2**15 elements, and
# waiting for each other thousands of times makes two threads on a busy machine ten times slower.
TILE_VOXELS = (1 << 15) - 1

# What stays in a processor's cache, for whatever is one thread: all of NumPy, torch if told so.
SLAB_VOXELS = 1 << 18


def _slab_voxels(device: torch.device) -> int:
    """Return how many voxels NumPy computes at a time, or torch on a GPU: there, all at once."""
    return SLAB_VOXELS if device.type == "cpu" else sys.maxsize


def _tile_voxels(device: torch.device) -> int:
    """Return how many voxels torch computes at a time."""
    is_split = device.type == "cpu" and torch.get_num_threads() > 1
    return TILE_VOXELS if is_split else _slab_voxels(device)


def min_max_normalize(volume: Volume, *, decimals: int | None = 3) -> torch.Tensor:
    """Scale each channel of `volume` (C, X, Y, Z) to 0..1 over all its voxels, then round.

    Equal to ``np.round((x - x.min()) / (x.max() - x.min()), decimals)`` in float64: with 3
    decimals, one of exactly 1001 levels. A constant channel becomes 0, with a UserWarning (the
    article divides by zero there). `decimals=None` does not round.

    Returns:
        float32 of the same shape; a MetaTensor, with its metadata, if `volume` is one.
    """
    source = _checked(volume)
    readers, varying = _levels_of(source, decimals)
    result = _backgrounds(source, readers)
    box, tile_voxels = box_of(varying, reach=0), _tile_voxels(source.device)
    for channel, out, reader in zip(source, result, readers, strict=True):
        for tile in box.tiles(depth=source.shape[3], num_voxels=tile_voxels):
            reader.read(tile.of(channel), tile.of(out))
    return with_meta_of(volume, result)


def gaussian_filter(volume: Volume, *, sigma: float = 1.0, truncate: float = 4.0) -> torch.Tensor:
    """Smooth each channel of `volume` (C, X, Y, Z); equal to `scipy.ndimage.gaussian_filter`.

    Args:
        volume: finite, of any real dtype; it is not changed.
        sigma: standard deviation in voxels, more than 0, the same along every axis.
        truncate: the kernel ends at this many standard deviations (rounded to voxels).

    Returns:
        float32 of the same shape; a MetaTensor, with its metadata, if `volume` is one.

    Raises:
        ValueError: if `sigma` is not more than 0.
    """
    source = _checked(volume)
    filters = Filters(_gaussian_weights(sigma, truncate))
    readers, varying = _voxels_of(source)
    return with_meta_of(volume, _filtered(source, readers, varying, filters))


def laplacian_sharpen(volume: Volume, *, strength: float = 0.3) -> torch.Tensor:
    """Return ``x - strength * scipy.ndimage.laplace(x)`` for each channel of `volume`.

    Args:
        volume: (C, X, Y, Z), finite, of any real dtype; it is not changed.
        strength: without unit; 0.3 in the article.

    Returns:
        float32 of the same shape; a MetaTensor, with its metadata, if `volume` is one.
    """
    source = _checked(volume)
    filters = Filters(strength=strength)
    readers, varying = _voxels_of(source)
    return with_meta_of(volume, _filtered(source, readers, varying, filters))


def filter_intensities(
    volume: Volume,
    *,
    normalize: bool,
    decimals: int | None = 3,
    sigma: float | None = None,
    strength: float | None = None,
) -> torch.Tensor:
    """Return `volume` (C, X, Y, Z) after the steps above, in less time than one after the other.

    Where values lie in 0..1, the result is within 1e-6 of the steps in float64.

    Args:
        volume: finite, of any real dtype; it is not changed.
        normalize: whether to begin with `min_max_normalize`.
        decimals: of it.
        sigma: of `gaussian_filter`; None or 0 does not smooth.
        strength: of `laplacian_sharpen`; None or 0 does not sharpen.

    Returns:
        float32 of the same shape; a MetaTensor, with its metadata, if `volume` is one.
    """
    source = _checked(volume)
    weights = _gaussian_weights(sigma, truncate=4.0) if sigma else (1.0,)
    filters = Filters(weights, strength or 0.0, dtype=torch.float32)
    readers: Sequence[Voxels]
    readers, varying = _levels_of(source, decimals) if normalize else _voxels_of(source)
    return with_meta_of(volume, _filtered(source, readers, varying, filters))


def _gaussian_weights(sigma: float, truncate: float) -> tuple[float, ...]:
    """Return the kernel's weights from its centre outwards; the whole kernel sums to 1."""
    if not sigma > 0:
        raise ValueError(f"sigma must be more than 0 voxels; found {sigma}")
    radius = int(truncate * sigma + 0.5)
    half = np.exp(-0.5 / sigma**2 * np.arange(radius + 1, dtype=np.float64) ** 2)
    half = half[half > 0]  # a weight too small for a float has no part in the sum
    return tuple((half / (half[0] + 2 * half[1:].sum())).tolist())


def _checked(volume: Volume) -> torch.Tensor:
    source = plain_tensor(volume).detach()
    if source.ndim != 4:
        raise ValueError(f"a volume must be (C, X, Y, Z); found shape {tuple(source.shape)}")
    # NumPy does not know it.
    return source.float() if source.dtype == torch.bfloat16 else source


def _ranges_of(source: torch.Tensor) -> tuple[list[ChannelRange], torch.Tensor]:
    """Return the range of each channel, and bool (X, Y), the rows in which any varies."""
    tile_voxels = _tile_voxels(source.device)
    ranges = [range_of(channel, tile_voxels=tile_voxels) for channel in source]
    return ranges, torch.stack([found.varying for found in ranges]).any(0)


def _voxels_of(source: torch.Tensor) -> tuple[list[Voxels], torch.Tensor]:
    """Return a reader of each channel, and the rows in which any varies."""
    ranges, varying = _ranges_of(source)
    return [Voxels(found) for found in ranges], varying


def _levels_of(source: torch.Tensor, decimals: int | None) -> tuple[list[Levels], torch.Tensor]:
    """Return a reader of each channel's levels, and the rows in which any varies."""
    ranges, varying = _ranges_of(source)
    readers = [Levels(found, decimals) for found in ranges]
    for number, reader in enumerate(readers):
        if reader.is_constant:
            warnings.warn(
                f"channel {number} is constant ({reader.low.item():g}); it becomes 0", stacklevel=3
            )
    return readers, varying


def _backgrounds(source: torch.Tensor, readers: Sequence[Voxels]) -> torch.Tensor:
    """Return float32 (C, X, Y, Z) that holds nothing but the background of each channel."""
    result = zeros(source.shape, source.device)
    for out, reader in zip(result, readers, strict=True):
        if reader.background != 0:
            out.fill_(reader.background)
    return result


def _filtered(
    source: torch.Tensor, readers: Sequence[Voxels], varying: torch.Tensor, filters: Filters
) -> torch.Tensor:
    """Return what `readers` read from `source`, filtered, float32 (C, X, Y, Z)."""
    result = _backgrounds(source, readers)
    box = box_of(varying, reach=filters.reach)
    if not box.num_planes:
        return result
    bank = FilterBank(
        filters,
        varying=varying[box.planes, box.rows],
        depth=source.shape[3],
        device=source.device,
        tile_voxels=_tile_voxels(source.device),
        slab_voxels=_slab_voxels(source.device),
    )
    for channel, out, reader in zip(source, result, readers, strict=True):
        bank.run(box.of(channel), reader, box.of(out))
    return result


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


class FilterIntensitiesd(KeywiseTransform):
    """Dictionary transform of `filter_intensities`; the arguments are its."""

    def __init__(
        self,
        keys: KeysCollection,
        *,
        normalize: bool,
        decimals: int | None = 3,
        sigma: float | None = None,
        strength: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        step = partial(
            filter_intensities,
            normalize=normalize,
            decimals=decimals,
            sigma=sigma,
            strength=strength,
        )
        super().__init__(keys, step, allow_missing_keys)
        self.normalize = normalize
        self.decimals = decimals
        self.sigma = sigma
        self.strength = strength

    def in_two(self) -> tuple[list[Transform], Transform]:
        """Return steps that do the same, to the last bit: a normalisation, if any, and filters."""
        if not self.normalize:
            return [], self
        keys, allowed = self.keys, self.allow_missing_keys
        filters = FilterIntensitiesd(
            keys,
            normalize=False,
            sigma=self.sigma,
            strength=self.strength,
            allow_missing_keys=allowed,
        )
        first = MinMaxNormalized(keys, decimals=self.decimals, allow_missing_keys=allowed)
        return [first], filters
