"""Bias fields, beside known ones, and beside a fit over all voxels in one matrix."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from transforms import CorrectBiasFieldd, correct_bias_field

SHAPE = (40, 48, 36)
# Of a field of float32, against a deviation of the tissue of 5 %.
CLOSE = 1e-3


def places(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    axes = [np.linspace(-1, 1, size) for size in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def field(degree: int, *, seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x, y, z = places(shape)
    powers = [each for each in product(range(degree + 1), repeat=3) if 0 < sum(each) <= degree]
    terms = [rng.uniform(-0.2, 0.2) * x**i * y**j * z**k for i, j, k in powers]
    return np.exp(np.sum(terms, axis=0))


def head(*, channels: int = 2, noise: float = 0.05) -> np.ndarray:
    """Return an ellipsoid of one tissue, on a background of 0."""
    rng = np.random.default_rng(0)
    inside = (places() ** 2).sum(0) < 0.9
    tissue = 300 * np.exp(noise * rng.standard_normal((channels, *SHAPE)))
    return (tissue * inside).astype(np.float32)


def ratio_to(expected: np.ndarray, found: torch.Tensor) -> np.ndarray:
    """Return found / expected within the brain, each channel around 1."""
    inside = expected[0] > 0
    ratio = found.numpy()[:, inside] / expected[:, inside]
    return ratio / ratio.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_the_field_of_a_brain_of_one_tissue_goes_to_the_last_digits(degree: int) -> None:
    plain = head(noise=0)
    # No deviation: what is left is rounding, and that cubes of voxels average a curved field.
    shaded = plain * np.stack([field(degree, seed=seed) for seed in (1, 2)])
    found = correct_bias_field(shaded, degree=degree)
    np.testing.assert_allclose(ratio_to(plain, found), 1, rtol=0, atol=CLOSE)


def test_a_tumour_that_one_channel_shows_is_left_standing_in_all() -> None:
    plain = head()
    tumour = ((places() - np.array([0.4, 0.2, 0.1])[:, None, None, None]) ** 2).sum(0) < 0.2
    assert 0.05 < (tumour & (plain[0] > 0)).sum() / (plain[0] > 0).sum() < 0.2
    plain[0, tumour] *= 1.6
    plain[1, tumour] *= 1.08  # within the spread of the other tissue
    shaded = plain * np.stack([field(2, seed=seed) for seed in (3, 4)])
    found = ratio_to(plain, correct_bias_field(shaded))
    # The tissue's deviation of 5 %, over thousands of voxels; alone, channel 1 is 0.03 off.
    np.testing.assert_allclose(found, 1, rtol=0, atol=0.01)
    alone = ratio_to(plain[1:], correct_bias_field(shaded[1:]))
    assert np.abs(alone - 1).max() > 2 * np.abs(found[1] - 1).max()


def test_nothing_changes_but_the_scale_of_what_has_no_field() -> None:
    plain = head()
    found = correct_bias_field(plain)
    np.testing.assert_allclose(ratio_to(plain, found), 1, rtol=0, atol=0.01)
    # The field's mean is 1, so that intensities stay what they are.
    inside = plain[0] > 0
    np.testing.assert_allclose(found[:, inside].mean(1), plain[:, inside].mean(1), rtol=1e-3)


def test_mirroring_and_a_factor_make_no_difference() -> None:
    shaded = head() * field(2, seed=5)
    straight = correct_bias_field(shaded)
    for axis in (1, 2, 3):
        mirrored = correct_bias_field(np.flip(shaded, axis)).numpy()
        # SHAPE is a multiple of the cubes' edge, which is 1.
        np.testing.assert_allclose(np.flip(mirrored, axis), straight, rtol=1e-4)
    np.testing.assert_allclose(correct_bias_field(7 * shaded), 7 * straight, rtol=1e-4)


def test_zeros_stay_zeros_and_the_input_and_its_metadata_as_they_are() -> None:
    shaded = torch.from_numpy(head() * field(2, seed=6)).float()
    volume = MetaTensor(shaded.clone(), meta={"filename_or_obj": "case_000_flair.nii.gz"})
    result = CorrectBiasFieldd(["image"])({"image": volume})["image"]
    assert torch.equal(volume.as_tensor(), shaded)
    assert torch.equal(result.as_tensor() == 0, shaded == 0)
    assert result.meta["filename_or_obj"] == "case_000_flair.nii.gz"
    assert result.dtype == torch.float32


def test_a_large_volume_is_fitted_by_the_means_of_cubes() -> None:
    """Of 2 million voxels, cubes of edge 4: not at the same places, and yet the same field."""
    shape = (129, 126, 131)
    shaded = torch.from_numpy(300 * field(2, seed=7, shape=shape))[None]
    found = correct_bias_field(shaded)
    assert float(found.std() / found.mean()) < CLOSE


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 1, 9)])
def test_a_brain_of_fewer_voxels_than_coefficients_stays_as_it_is(shape: tuple[int, ...]) -> None:
    volume = torch.arange(1.0, 1 + np.prod(shape)).reshape(1, *shape)
    result = correct_bias_field(volume)
    assert torch.equal(result, volume)
    assert result.data_ptr() != volume.data_ptr()


def test_a_flat_brain_is_fitted_along_the_axes_it_has() -> None:
    volume = np.exp(0.5 * np.linspace(-1, 1, 64)).astype(np.float32).reshape(1, 8, 8, 1)
    volume = np.concatenate([volume, volume])
    assert float(correct_bias_field(volume).std()) < 0.05 * float(volume.std())


def test_a_share_of_the_field_is_taken_out() -> None:
    plain, shade = head(noise=0), field(2, seed=8)
    found = ratio_to(plain, correct_bias_field(plain * shade, share=0.25))
    left = ratio_to(plain, torch.from_numpy(plain * shade**0.75))
    np.testing.assert_allclose(found, left, rtol=0, atol=CLOSE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"degree": 0}, "degree of a bias field must be at least 1; found 0"),
        ({"share": 0.0}, r"share of a bias field must be in \(0, 1\]; found 0\.0"),
        ({"share": 1.5}, r"share of a bias field must be in \(0, 1\]; found 1\.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        correct_bias_field(head(), **settings)
