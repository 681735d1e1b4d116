"""The deterministic chain that training, inference and the bundle share, from plain JSON values."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from monai.transforms import (
    CastToTyped,
    Compose,
    DivisiblePadd,
    NormalizeIntensityd,
    Orientationd,
    Spacingd,
    Transform,
)

from transforms.bias_field import CorrectBiasFieldd
from transforms.geometry import ORIENTATION, BorderCropd, BrainBoxd, Margins
from transforms.intensity import FilterIntensitiesd, MinMaxNormalized

# Stated, because MONAI 1.6 warns where it has to choose them; affines are nibabel's (RAS+).
AXIS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))


class ZScoreNormalized(NormalizeIntensityd):
    """Z-score of each channel over its non-zero voxels; MONAI's, without changing its input."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(keys, nonzero=True, channel_wise=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with the volumes (C, X, Y, Z) at the keys normalised."""
        copied = {key: data[key].clone() for key in self.key_iterator(dict(data))}
        return super().__call__({**data, **copied})


def build_preprocessing(
    *,
    keys: Sequence[str] = ("image", "label"),
    border_crop: Margins | None = None,
    brain_box: bool = False,
    bias_field_share: float | None = None,
    normalization: Literal["minmax", "zscore"] | None = "minmax",
    decimals: int | None = 3,
    gaussian_sigma: float | None = None,
    sharpen_strength: float | None = None,
    spacing_mm: float | None = None,
    divisor: int = 1,
) -> Compose:
    """Return the chain from a loaded case to the network's input; every value is plain JSON.

    Its order: orientation, border crop, brain box, bias field, normalisation, Gaussian, sharpening,
    spacing, padding. Only the first key's intensities change.

    Args:
        keys: the image, MetaTensor (C, X, Y, Z), then any labels, MetaTensor (1, X, Y, Z).
        border_crop: voxels to remove at the (start, end) of each axis.
        brain_box: whether to crop to the box of the voxels in which any channel exceeds 0.
        bias_field_share: of it that is taken out (see `correct_bias_field`); None or 0: nothing.
        normalization: "minmax" (see `min_max_normalize`) or "zscore" over non-zero voxels.
        decimals: of "minmax"; None does not round.
        gaussian_sigma: in voxels; None or 0 does not smooth.
        sharpen_strength: None or 0 does not sharpen.
        spacing_mm: isotropic spacing to resample to (linear; nearest for labels).
        divisor: zeros are added at the end of each axis up to a multiple of this.

    Raises:
        ValueError: if a value is not one of those above.
    """
    _check_settings(keys, normalization, spacing_mm, divisor)
    return Compose(
        [
            *_grid_steps(keys, border_crop, brain_box),
            *_bias_field_steps(keys[0], bias_field_share),
            *_intensity_steps(keys[0], normalization, decimals, gaussian_sigma, sharpen_strength),
            *_resampling_steps(keys, spacing_mm, divisor),
        ]
    )


def build_stored_and_live(**settings: Any) -> tuple[Compose, Compose]:
    """Return `build_preprocessing` in two parts, one after the other equal to the last bit.

    The first part is worth storing: orientation, crops, bias field and normalisation, after which
    "minmax" leaves few levels and the background is constant. The second is cheap to repeat on each
    use, where the data is needed: Gaussian, sharpening, spacing, padding.

    Args:
        settings: those of `build_preprocessing`.

    Raises:
        ValueError: see `build_preprocessing`.
    """
    stored: list[Transform] = []
    live: list[Transform] = []
    for step in build_preprocessing(**settings).transforms:
        if isinstance(step, FilterIntensitiesd):
            before, after = step.in_two()
            stored += before
            live.append(after)
        elif live or isinstance(step, (Spacingd, DivisiblePadd)):
            live.append(step)
        else:
            stored.append(step)
    return Compose(stored), Compose(live)


def _check_settings(
    keys: Sequence[str], normalization: str | None, spacing_mm: float | None, divisor: int
) -> None:
    if isinstance(keys, str) or not keys:
        raise ValueError(f"keys must be a list that starts with the image's key; found {keys!r}")
    if normalization not in ("minmax", "zscore", None):
        raise ValueError(
            f'normalization must be "minmax", "zscore" or null; found {normalization!r}'
        )
    if spacing_mm is not None and not spacing_mm > 0:
        raise ValueError(f"spacing_mm must be more than 0; found {spacing_mm}")
    if divisor < 1:
        raise ValueError(f"divisor must be at least 1; found {divisor}")


def _grid_steps(
    keys: Sequence[str], border_crop: Margins | None, brain_box: bool
) -> list[Transform]:
    """Return the steps that turn and crop the grid without resampling it."""
    steps: list[Transform] = [Orientationd(keys, axcodes=ORIENTATION, labels=AXIS_LABELS)]
    if border_crop is not None:
        steps.append(BorderCropd(keys, border_crop))
    if brain_box:
        steps.append(BrainBoxd(keys, source_key=keys[0]))
    return steps


def _bias_field_steps(key: str, share: float | None) -> list[Transform]:
    return [CorrectBiasFieldd([key], share=share)] if share else []


def _intensity_steps(
    key: str,
    normalization: str | None,
    decimals: int | None,
    gaussian_sigma: float | None,
    sharpen_strength: float | None,
) -> list[Transform]:
    """Return the steps that change the image's intensities."""
    steps: list[Transform] = []
    has_filters = bool(gaussian_sigma or sharpen_strength)
    is_minmax = normalization == "minmax"
    if normalization == "zscore":
        steps.append(ZScoreNormalized([key]))
    if has_filters:
        steps.append(
            FilterIntensitiesd(
                [key],
                normalize=is_minmax,
                decimals=decimals,
                sigma=gaussian_sigma,
                strength=sharpen_strength,
            )
        )
    elif is_minmax:
        steps.append(MinMaxNormalized([key], decimals=decimals))
    return steps


def _resampling_steps(
    keys: Sequence[str], spacing_mm: float | None, divisor: int
) -> list[Transform]:
    """Return the steps that resample and pad to what the network takes."""
    steps: list[Transform] = []
    label_keys = keys[1:]
    if spacing_mm is not None:
        modes = ["bilinear", *("nearest" for _ in label_keys)]
        steps.append(Spacingd(keys, pixdim=(spacing_mm,) * 3, mode=modes))
        if label_keys:
            # Spacingd returns every key as float32.
            steps.append(CastToTyped(label_keys, dtype=torch.uint8))
    if divisor > 1:
        steps.append(DivisiblePadd(keys, k=divisor, method="end"))
    return steps
