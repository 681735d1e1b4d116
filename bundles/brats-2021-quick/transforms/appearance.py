"""Random changes of how a brain looks: noise, blur, brightness, contrast, resolution and gamma.

Which steps there are, their order and their usual strengths are those of nnU-Net (Isensee et al.,
Nature Methods 2021; `get_training_transforms` of version 2), the offset excepted: how much tumour
there is moves the mean that a z-score takes off. Here they are confined to the brain,
and so are the means, extremes and standard deviations that they use.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable

from transforms.arrays import Volume, plain_tensor, with_meta_of
from transforms.intensity import filter_intensities
from transforms.patches import BACKGROUND, background_of
from transforms.slabs import Memory, memory_of, zeros

# nnU-Net inverts in 0.1 of the cases, and does not in 0.3.
INVERTED_SHARE = 0.25
# nnU-Net blurs and coarsens each channel of a chosen case with this probability.
CHANNEL_PROBABILITY = 0.5

PerChannel = Sequence[float | None]


@dataclass(frozen=True)
class Appearance:
    """What happens to an image, in this order; None leaves the image or that channel as it is.

    Attributes:
        noise_sigma: standard deviation of the Gaussian noise.
        noise_seed: of a generator on the image's device.
        blur_sigma: standard deviation of a Gaussian filter in voxels, for each channel.
        brightness: factor of the intensities, for each channel.
        offset: number added, for each channel.
        contrast: factor of the differences from the mean, for each channel; beyond the least and
            the largest value is cut off.
        low_resolution: edge of a voxel divided by that of a coarser one, for each channel.
        gamma: exponent of the intensities between their least value, 0, and their largest, 1, for
            each channel. Mean and standard deviation stay.
        is_inverted: whether gamma takes the largest value for 0.
    """

    noise_sigma: float | None = None
    noise_seed: int = 0
    blur_sigma: PerChannel | None = None
    brightness: PerChannel | None = None
    offset: PerChannel | None = None
    contrast: PerChannel | None = None
    low_resolution: PerChannel | None = None
    gamma: PerChannel | None = None
    is_inverted: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        steps = (self.noise_sigma, self.blur_sigma, self.brightness, self.offset)
        return all(
            step is None for step in (*steps, self.contrast, self.low_resolution, self.gamma)
        )


def change_appearance(
    volume: Volume, *, appearance: Appearance, background: torch.Tensor | None = None
) -> torch.Tensor:
    """Return `volume` (C, X, Y, Z) as it would look otherwise; its background stays to the bit.

    Args:
        volume: in any intensities, of any real dtype; it is not changed.
        appearance: the changes.
        background: (C, 1, 1, 1), what voxels outside the brain are in all channels; None takes the
            volume's first voxel.

    Returns:
        float32 of the same shape; a MetaTensor, with its metadata, if `volume` is one.
    """
    image = plain_tensor(volume).float()
    if background is None:
        background = background_of(image)
    inside = (memory_of(image) != memory_of(background)).any(0)
    if appearance.is_identity or not inside.any():
        return with_meta_of(volume, image)
    result = zeros(image.shape, image.device)
    memory_of(result)[...] = memory_of(image)
    generator = torch.Generator(image.device).manual_seed(appearance.noise_seed)
    for number, channel in enumerate(result):
        brain = _Brain(channel, inside)
        _change(brain, number, appearance, generator)
        brain.put()
    return with_meta_of(volume, result)


class _Brain:
    """The voxels of a channel (X, Y, Z) that lie in the brain.

    Attributes:
        values: of those voxels, (N,); a step replaces them.
    """

    def __init__(self, channel: torch.Tensor, inside: Memory) -> None:
        self.channel = channel
        self.inside = inside
        self.values = memory_of(channel)[inside]

    def put(self) -> None:
        """Write the values into the channel."""
        memory_of(self.channel)[self.inside] = self.values

    def apply(self, step: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Take the values from what `step` makes of the channel, which includes its background."""
        self.put()
        self.values = memory_of(step(self.channel))[self.inside]


def _change(brain: _Brain, number: int, appearance: Appearance, generator: torch.Generator) -> None:
    """Change the values of channel `number`."""

    def of_channel(step: PerChannel | None) -> float | None:
        return None if step is None else step[number]

    if appearance.noise_sigma is not None:
        device = brain.channel.device
        noise = memory_of(torch.randn(len(brain.values), generator=generator, device=device))
        noise *= appearance.noise_sigma
        brain.values += noise
    if (sigma := of_channel(appearance.blur_sigma)) is not None:
        brain.apply(lambda channel: _blurred(channel, sigma))
    if (factor := of_channel(appearance.brightness)) is not None:
        brain.values = brain.values * factor
    if (offset := of_channel(appearance.offset)) is not None:
        brain.values = brain.values + offset
    if (factor := of_channel(appearance.contrast)) is not None:
        brain.values = _contrasted(brain.values, factor)
    if (zoom := of_channel(appearance.low_resolution)) is not None:
        brain.apply(lambda channel: _coarsened(channel, zoom))
    if (exponent := of_channel(appearance.gamma)) is not None:
        sign = -1 if appearance.is_inverted else 1
        brain.values = sign * _gamma(sign * brain.values, exponent)


def _blurred(channel: torch.Tensor, sigma: float) -> torch.Tensor:
    return filter_intensities(channel[None], normalize=False, sigma=sigma)[0]


def _coarsened(channel: torch.Tensor, zoom: float) -> torch.Tensor:
    """Return `channel` as if it had been scanned with voxels 1 / zoom as long."""
    coarse_size = [max(round(length * zoom), 1) for length in channel.shape]
    coarse = F.interpolate(channel[None, None], size=coarse_size, mode="nearest-exact")
    return F.interpolate(coarse, size=tuple(channel.shape), mode="trilinear")[0, 0]


def _contrasted(values: Memory, factor: float) -> Memory:
    mean = values.mean()
    return ((values - mean) * factor + mean).clip(values.min(), values.max())


def _gamma(values: Memory, exponent: float) -> Memory:
    low, mean = values.min(), values.mean()
    spread = values.max() - low
    if not spread > 0:
        return values
    changed = ((values - low) / spread) ** exponent
    changed -= changed.mean()
    # Not by `std`, which means another thing in each library.
    changed *= ((values - mean) ** 2).mean() ** 0.5 / (changed**2).mean() ** 0.5
    return changed + mean


class RandAppearanced(Randomizable, MapTransform):
    """Change at random how the images at the keys look, the background excepted.

    A step happens to an image with its probability, and independently of the others. Then the
    strength is drawn for each channel, but once for noise; blur and low resolution happen to each
    channel with probability 1/2. Each call draws the same number of random numbers, whatever comes
    of them.

    The background is what lies under the key `BACKGROUND`, which is taken out of the data, or the
    image's first voxel.

    Args:
        keys: of images (C, X, Y, Z), which become float32.
        noise_probability: of Gaussian noise.
        noise_sigma: its standard deviation is uniform in [0, noise_sigma]. (nnU-Net names it
            variance, and takes it for the standard deviation.)
        blur_probability: of a Gaussian filter.
        blur_sigma: its standard deviation in voxels is uniform between these, both above 0.
        brightness_probability: of a factor.
        brightness: it is uniform in 1 ± this.
        offset_probability: of a number that is added.
        offset: it is uniform in ± this.
        contrast_probability: of a factor of the differences from the mean.
        contrast: least and largest factor, as often uniform in [least, 1] as in [1, largest].
        gamma_probability: of a power law; one in four is applied to the inverted intensities.
        gamma: least and largest exponent, drawn as for `contrast`.
        low_resolution_probability: of coarser voxels: the nearest are taken, and interpolated.
        low_resolution: the zoom is uniform in [low_resolution, 1]; above 0.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        noise_probability: float = 0.1,
        noise_sigma: float = 0.1,
        blur_probability: float = 0.2,
        blur_sigma: Sequence[float] = (0.5, 1.0),
        brightness_probability: float = 0.15,
        brightness: float = 0.25,
        offset_probability: float = 0.0,
        offset: float = 0.15,
        contrast_probability: float = 0.15,
        contrast: Sequence[float] = (0.75, 1.25),
        gamma_probability: float = 0.4,
        gamma: Sequence[float] = (0.7, 1.5),
        low_resolution_probability: float = 0.25,
        low_resolution: float = 0.5,
    ) -> None:
        super().__init__(keys)
        self.probabilities = (
            noise_probability,
            blur_probability,
            brightness_probability,
            contrast_probability,
            low_resolution_probability,
            gamma_probability,
            offset_probability,
        )
        self.noise_sigma = noise_sigma
        self.blur_sigma = blur_sigma
        self.brightness = brightness
        self.offset = offset
        self.contrast = contrast
        self.gamma = gamma
        self.low_resolution = low_resolution
        self.appearance = Appearance()

    def randomize(self, data: int) -> None:
        """Draw the changes of an image of so many channels."""
        happens = self.R.random_sample(len(self.probabilities)) < self.probabilities
        noisy, blurred, brighter, contrasted, coarser, bent, moved = happens.tolist()
        noise, inverted = self.R.random_sample(2).tolist()
        noise_seed = int(self.R.randint(2**31))
        chosen = self.R.random_sample((2, data)) < CHANNEL_PROBABILITY
        blur, brightness, contrast, zoom, exponent, offset = self.R.random_sample((6, data))
        factors = 1 + self.brightness * (2 * brightness - 1)
        zooms = self.low_resolution + (1 - self.low_resolution) * zoom
        self.appearance = Appearance(
            noise_sigma=noise * self.noise_sigma if noisy else None,
            noise_seed=noise_seed,
            blur_sigma=_where(chosen[0], _between(self.blur_sigma, blur)) if blurred else None,
            brightness=factors.tolist() if brighter else None,
            offset=(self.offset * (2 * offset - 1)).tolist() if moved else None,
            contrast=_on_either_side(self.contrast, contrast).tolist() if contrasted else None,
            low_resolution=_where(chosen[1], zooms) if coarser else None,
            gamma=_on_either_side(self.gamma, exponent).tolist() if bent else None,
            is_inverted=inverted < INVERTED_SHARE,
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` in which the images at the keys look otherwise."""
        result = dict(data)
        background = result.pop(BACKGROUND, None)
        for key in self.key_iterator(result):
            self.randomize(len(result[key]))
            if not self.appearance.is_identity:
                result[key] = change_appearance(
                    result[key], appearance=self.appearance, background=background
                )
        return result


def _where(chosen: np.ndarray, values: np.ndarray) -> list[float | None]:
    """Return the values that are chosen, None in the place of the others."""
    return [float(value) if keep else None for keep, value in zip(chosen, values, strict=True)]


def _between(bounds: Sequence[float], chance: np.ndarray) -> np.ndarray:
    """Return values between both bounds for numbers in [0, 1)."""
    low, high = bounds
    return low + (high - low) * chance


def _on_either_side(bounds: Sequence[float], chance: np.ndarray) -> np.ndarray:
    """Return values in [low, 1] for numbers below 1/2, and in [1, high] for the others."""
    low, high = bounds
    return np.where(chance < 0.5, low + (1 - low) * 2 * chance, 1 + (high - 1) * (2 * chance - 1))
