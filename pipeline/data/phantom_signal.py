"""From tissue to picture: relaxation times, signal equations, slices, receiver bias and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from pipeline.data.phantom_fields import Field, Grid, smooth_noise


@dataclass(frozen=True)
class Tissue:
    """Relaxation times at 3 T in ms, proton density relative to water's, and the concentration of
    the contrast agent in mmol/L that the tissue takes up in the t1ce image.
    """

    t1_ms: float
    t2_ms: float
    proton_density: float
    contrast_mmol: float = 0.0


# White and grey matter: near Wansapura et al. 1999, J Magn Reson Imaging 9:531 (3 T, in vivo).
# CSF: T1 as Lin et al. 2001 measured it at 3 T; T2 near 2 s, as in water.
# Blood: T1 of Stanisz et al. 2005, Magn Reson Med 54:507.
# Deep nuclei lie between white and grey matter in T1; their iron shortens T2, most in the pallidum.
# Tumour and oedema: near de Blank et al. 2019, Radiol Imaging Cancer 1:e190001 (T1 of solid
# high-grade tumour 1863 ms, of white matter around it 1261 +- 359 ms); T2 as long as Bottomley et
# al. 1987, Med Phys 14:1 found it in tumours and oedema. Necrosis lies between tumour and fluid.
# Proton densities: Whittall et al. 1997, Magn Reson Med 37:34.
TISSUES: Mapping[str, Tissue] = {
    "white": Tissue(832, 79.6, 0.71),
    "grey": Tissue(1331, 105, 0.83, 0.01),
    "deep_grey": Tissue(1150, 86, 0.80, 0.01),
    "pallidum": Tissue(960, 66, 0.76),
    "gliosis": Tissue(1350, 135, 0.84),
    "csf": Tissue(4163, 2000, 1.0),
    "vessel": Tissue(1932, 150, 0.85, 0.45),
    "oedema": Tissue(1620, 175, 0.88),
    "solid": Tissue(1750, 160, 0.88, 0.02),
    "enhancing": Tissue(1600, 140, 0.86, 0.5),
    "necrosis": Tissue(2700, 380, 0.95, 0.02),
}
# Gadobutrol in human plasma at 3 T, in L/(mmol s): Szomolanyi et al. 2019, Invest Radiol 54:559.
RELAXIVITY = 4.97


def varied(rng: np.random.Generator, tissues: Mapping[str, Tissue] = TISSUES) -> dict[str, Tissue]:
    """Return `tissues` of another person: times off by 4 % (standard deviation), uptake by 30 %."""
    return {
        name: replace(
            tissue,
            t1_ms=tissue.t1_ms * rng.lognormal(0, 0.04),
            t2_ms=tissue.t2_ms * rng.lognormal(0, 0.04),
            contrast_mmol=tissue.contrast_mmol * rng.lognormal(0, 0.3),
        )
        for name, tissue in tissues.items()
    }


def with_contrast(tissue: Tissue) -> Tissue:
    """Return `tissue` after the contrast agent has shortened its T1: 1/T1' = 1/T1 + r1 C."""
    rate = 1 / tissue.t1_ms + RELAXIVITY * tissue.contrast_mmol / 1000
    return replace(tissue, t1_ms=1 / rate, contrast_mmol=0.0)


def spin_echo(tissue: Tissue, *, repetition_ms: float, echo_ms: float) -> float:
    """Return the spin-echo signal PD (1 - exp(-TR/T1)) exp(-TE/T2), 0..1."""
    recovered = 1 - np.exp(-repetition_ms / tissue.t1_ms)
    return float(tissue.proton_density * recovered * np.exp(-echo_ms / tissue.t2_ms))


def inversion_recovery(
    tissue: Tissue, *, repetition_ms: float, echo_ms: float, inversion_ms: float
) -> float:
    """Return the magnitude PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2), 0..1."""
    recovered = 1 - 2 * np.exp(-inversion_ms / tissue.t1_ms) + np.exp(-repetition_ms / tissue.t1_ms)
    return float(tissue.proton_density * abs(recovered) * np.exp(-echo_ms / tissue.t2_ms))


def nulling_time_ms(tissue: Tissue, *, repetition_ms: float) -> float:
    """Return the inversion time at which `tissue` is dark: TI = T1 ln(2 / (1 + exp(-TR/T1)))."""
    return float(tissue.t1_ms * np.log(2 / (1 + np.exp(-repetition_ms / tissue.t1_ms))))


def signal(modality: str, tissue: Tissue) -> float:
    """Return the signal of `tissue` in `modality` (flair, t1, t1ce or t2), 0..1.

    Repetition and echo times are usual clinical ones at 3 T; the inversion time of flair nulls the
    CSF of `TISSUES`, so that a person whose CSF differs keeps a faint rest of it.
    """
    if modality == "flair":
        inversion_ms = nulling_time_ms(TISSUES["csf"], repetition_ms=9000)
        return inversion_recovery(tissue, repetition_ms=9000, echo_ms=95, inversion_ms=inversion_ms)
    if modality == "t2":
        return spin_echo(tissue, repetition_ms=5000, echo_ms=90)
    seen = with_contrast(tissue) if modality == "t1ce" else tissue
    return spin_echo(seen, repetition_ms=600, echo_ms=10)


def thick_slices(image: Field, *, thickness_mm: float, voxel_mm: float) -> Field:
    """Return `image`, (X, Y, Z), as if interpolated from axial slices of `thickness_mm`."""
    # A Gaussian of the slice's full width at half maximum.
    return ndimage.gaussian_filter1d(image, thickness_mm / voxel_mm / 2.355, axis=2)


def bias_field(rng: np.random.Generator, grid: Grid) -> Field:
    """Return a smooth positive receiver sensitivity, (X, Y, Z), mostly within 15 % of 1."""
    return np.exp(np.float32(0.07) * smooth_noise(rng, grid, wavelength_mm=150))


def rician(rng: np.random.Generator, image: Field, *, sigma: float) -> Field:
    """Return the magnitude of `image` with noise `sigma` in both channels: never negative."""
    real = image + np.float32(sigma) * _receiver_noise(rng, image.shape)
    return np.hypot(real, np.float32(sigma) * _receiver_noise(rng, image.shape))


def _receiver_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Field:
    """Return Gaussian noise of standard deviation 1, a little smooth as interpolation leaves it."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 0.5)
    return noise / noise.std()
