"""Bias fields: the slow change of brightness that coils leave across a brain, taken out.

A polynomial is fitted to the logarithm of each modality's intensities, as Styner et al. (IEEE TMI
19(3), 2000) do, and divided out. What is no ordinary tissue in any one modality has no part in the
fit of any of them, by the weights of Tukey's biweight (Beaton and Tukey, Technometrics 16(2),
1974): a large tumour would otherwise be taken for a bias field and flattened.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection

from transforms.arrays import KeywiseTransform, Volume, plain_tensor, with_meta_of

# The fit sees means over cubes of voxels, about so many of them: they are less noisy than voxels.
NUM_CUBES = 50_000
# A cube with less brain in it has no part in the fit.
LEAST_BRAIN = 0.5
# Residuals from here on, in standard deviations, have no weight. Statisticians take 4.7, for few
# outliers; a tumour is up to a sixth of a brain.
CUTOFF = 2.5
NUM_ITERATIONS = 12
# Of a residual in the logarithm: below it, intensities are the same.
LEAST_DEVIATION = 1e-4
# From the median absolute deviation of normally distributed numbers to the standard one.
MAD_TO_DEVIATION = 1.4826

Exponents = tuple[int, ...]


def correct_bias_field(volume: Volume, *, share: float = 1.0, degree: int = 2) -> torch.Tensor:
    """Divide each channel of `volume` (C, X, Y, Z) by its bias field, or by a part of it.

    The field is the exponential of a polynomial in X, Y and Z, with a mean of 1 (geometric, over
    the brain). The brain is where all channels are above 0. Zeros stay 0, and so does the volume
    as it is where the brain is too small for the fit: fewer cubes of voxels than coefficients.

    Args:
        volume: finite, of any real dtype; it is not changed.
        share: of the field's logarithm that is taken out, in (0, 1]. Tumours of hundreds of mL
            leave their trace in the field; with less of it, more of them stays.
        degree: of the polynomial, at least 1. From 3 on it follows large tumours.

    Returns:
        float32 of the same shape; a MetaTensor, with its metadata, if `volume` is one.

    Raises:
        ValueError: a setting is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of a bias field must be in (0, 1]; found {share}")
    if degree < 1:
        raise ValueError(f"the degree of a bias field must be at least 1; found {degree}")
    source = plain_tensor(volume).float()
    exponents = [each for each in product(range(degree + 1), repeat=3) if sum(each) <= degree]
    places, intensities = _cubes(source)
    if len(places) < len(exponents):
        return with_meta_of(volume, source.clone())
    centre = (places.max(0) + places.min(0)) / 2
    # At least 1, for a brain that is flat.
    radius = np.maximum((places.max(0) - places.min(0)) / 2, 1)
    scaled = (places - centre) / radius
    terms = np.stack([np.prod(scaled**each, axis=1) for each in exponents], axis=1)
    coefficients = _fitted(terms, np.log(intensities))
    coefficients[0] -= (terms @ coefficients).mean(axis=0)  # of the constant term
    coefficients *= share
    result = torch.empty_like(source)
    for channel, out, found in zip(source, result, coefficients.T, strict=True):
        field = _polynomial(channel, exponents, found, centre=centre, radius=radius)
        torch.div(channel, field.exp_(), out=out)
    return with_meta_of(volume, result)


def _cubes(source: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the centres (N, 3) of cubes of brain in voxels, and their mean intensities (N, C)."""
    brain = (source > 0).all(0, keepdim=True)
    num_voxels = int(brain.sum())
    edge = max(1, math.ceil((num_voxels / NUM_CUBES) ** (1 / 3)))
    pooled = partial(F.avg_pool3d, kernel_size=edge, ceil_mode=True)
    share = pooled(brain.float())[0]
    chosen = share >= LEAST_BRAIN
    means = torch.stack([pooled((channel * brain[0])[None])[0][chosen] for channel in source], 1)
    places = chosen.nonzero().double() * edge + (edge - 1) / 2
    intensities = means.double() / share[chosen].double()[:, None]
    return places.cpu().numpy(), intensities.cpu().numpy()


def _fitted(terms: np.ndarray, logarithms: np.ndarray) -> np.ndarray:
    """Return the coefficients (K, C) with which `terms` (N, K) give `logarithms` (N, C)."""
    weights = np.ones(len(terms))
    coefficients = np.zeros((terms.shape[1], logarithms.shape[1]))
    for _ in range(NUM_ITERATIONS):
        weighted = terms * weights[:, None]
        # The smallest solution, where several fit.
        coefficients = np.linalg.lstsq(weighted.T @ terms, weighted.T @ logarithms, rcond=None)[0]
        residuals = logarithms - terms @ coefficients
        residuals -= np.median(residuals, axis=0)
        deviations = MAD_TO_DEVIATION * np.median(np.abs(residuals), axis=0)
        scaled = residuals / (CUTOFF * np.maximum(deviations, LEAST_DEVIATION))
        weights = ((1 - scaled**2).clip(0) ** 2).prod(axis=1)
    return coefficients


def _polynomial(
    channel: torch.Tensor,
    exponents: Sequence[Exponents],
    coefficients: np.ndarray,
    *,
    centre: np.ndarray,
    radius: np.ndarray,
) -> torch.Tensor:
    """Return the polynomial on the grid of `channel` (X, Y, Z)."""
    x, y, z = (
        (torch.arange(size, dtype=torch.float64) - float(middle)) / float(half)
        for size, middle, half in zip(channel.shape, centre, radius, strict=True)
    )
    degree = max(map(max, exponents))
    cube = torch.zeros((degree + 1,) * 3, dtype=torch.float64)
    for each, coefficient in zip(exponents, coefficients, strict=True):
        cube[each] = float(coefficient)
    powers = [torch.stack([axis**power for power in range(degree + 1)]) for axis in (x, y, z)]
    # From the shortest sums to the longest; float32 is enough for the last.
    along_z = torch.einsum("ijk,kz->ijz", cube, powers[2])
    along_yz = torch.einsum("ijz,jy->iyz", along_z, powers[1]).to(channel)
    return torch.einsum("iyz,ix->xyz", along_yz, powers[0].to(channel))


class CorrectBiasFieldd(KeywiseTransform):
    """Dictionary transform of `correct_bias_field`."""

    def __init__(
        self,
        keys: KeysCollection,
        *,
        share: float = 1.0,
        degree: int = 2,
        allow_missing_keys: bool = False,
    ) -> None:
        step = partial(correct_bias_field, share=share, degree=degree)
        super().__init__(keys, step, allow_missing_keys)
