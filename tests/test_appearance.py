"""Each change of appearance beside a naive twin, and random draws within their ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from transforms.appearance import Appearance, RandAppearanced, change_appearance
from transforms.patches import BACKGROUND

SHAPE = (14, 12, 11)
STEPS = ("noise", "blur", "brightness", "offset", "contrast", "gamma", "low_resolution")
OFF = {f"{step}_probability": 0.0 for step in STEPS}


def head(*, background: float = 0.0) -> torch.Tensor:
    """Return three channels of noise within an ellipsoid, and one value around it."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    noise = np.random.default_rng(5).standard_normal((3, *SHAPE))
    inside = sum(axis**2 for axis in axes) < 0.9
    return torch.from_numpy(np.where(inside, noise, background).astype(np.float32))


def brain_of(image: torch.Tensor) -> np.ndarray:
    return (image != image[:, :1, :1, :1]).any(0).numpy()


def gamma_twin(values: np.ndarray, exponent: float) -> np.ndarray:
    low, high = values.min(), values.max()
    changed = ((values - low) / (high - low)) ** exponent * (high - low) + low
    return (changed - changed.mean()) / changed.std() * values.std() + values.mean()


def coarse_twin(channel: np.ndarray, zoom: float) -> np.ndarray:
    """Take the nearest voxels of a coarser grid, and interpolate between their centres."""
    result = channel
    for axis, length in enumerate(channel.shape):
        coarse = max(round(length * zoom), 1)
        nearest = np.floor((np.arange(coarse) + 0.5) * length / coarse).astype(int)
        taken = np.take(result, nearest, axis)
        place = ((np.arange(length) + 0.5) * coarse / length - 0.5).clip(0, coarse - 1)
        result = np.apply_along_axis(
            lambda row, place=place, coarse=coarse: np.interp(place, np.arange(coarse), row),
            axis,
            taken,
        )
    return result


def changed_channels(appearance: Appearance, image: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the brain's voxels (C, N) after the change, and those before in float64."""
    brain = brain_of(image)
    found = change_appearance(image, appearance=appearance).numpy()
    background = image[:, 0, 0, 0].numpy()[:, None]
    np.testing.assert_array_equal(
        found[:, ~brain], np.broadcast_to(background, found[:, ~brain].shape)
    )
    return found[:, brain], image.double().numpy()[:, brain]


# Of every comparison below: float32 of values up to 4, and of sums of them.
TOLERANCE = {"rtol": 0, "atol": 3e-6}


@pytest.mark.parametrize("background", [0.0, -3.5])
def test_brightness_is_a_factor_of_each_channel(background: float) -> None:
    image = head(background=background)
    found, before = changed_channels(Appearance(brightness=(0.8, None, 1.2)), image)
    np.testing.assert_allclose(found, before * [[0.8], [1.0], [1.2]], **TOLERANCE)


@pytest.mark.parametrize("background", [0.0, -3.5])
def test_an_offset_is_added_to_each_channel(background: float) -> None:
    image = head(background=background)
    found, before = changed_channels(Appearance(offset=(0.3, None, -0.2)), image)
    np.testing.assert_allclose(found, np.add(before, [[0.3], [0.0], [-0.2]]), **TOLERANCE)


@pytest.mark.parametrize("background", [0.0, -3.5])
def test_contrast_is_about_the_brains_mean_and_within_its_range(background: float) -> None:
    image = head(background=background)
    found, before = changed_channels(Appearance(contrast=(0.75, None, 1.25)), image)
    for channel, values, factor in zip(found, before, (0.75, 1.0, 1.25), strict=True):
        twin = (values - values.mean()) * factor + values.mean()
        np.testing.assert_allclose(channel, twin.clip(values.min(), values.max()), **TOLERANCE)
    assert found[2].max() == np.float32(before[2].max())


@pytest.mark.parametrize("is_inverted", [False, True])
@pytest.mark.parametrize("background", [0.0, -3.5])
def test_gamma_is_a_power_of_the_brains_range_and_keeps_its_moments(
    background: float, is_inverted: bool
) -> None:
    image, sign = head(background=background), -1 if is_inverted else 1
    appearance = Appearance(gamma=(0.7, None, 1.5), is_inverted=is_inverted)
    found, before = changed_channels(appearance, image)
    for channel, values, exponent in zip(found, before, (0.7, None, 1.5), strict=True):
        twin = values if exponent is None else sign * gamma_twin(sign * values, exponent)
        np.testing.assert_allclose(channel, twin, **TOLERANCE)
        assert channel.mean() == pytest.approx(values.mean(), abs=1e-6)
        assert channel.std() == pytest.approx(values.std(), abs=1e-6)


@pytest.mark.parametrize("background", [0.0, -3.5])
def test_blur_is_scipys_filter_of_the_whole_channel(background: float) -> None:
    image = head(background=background)
    found, _ = changed_channels(Appearance(blur_sigma=(0.5, None, 1.0)), image)
    brain = brain_of(image)
    for channel, whole, sigma in zip(found, image.double().numpy(), (0.5, 0, 1.0), strict=True):
        twin = ndimage.gaussian_filter(whole, sigma) if sigma else whole
        np.testing.assert_allclose(channel, twin[brain], **TOLERANCE)


@pytest.mark.parametrize("zoom", [0.5, 0.63, 1.0])
def test_low_resolution_takes_the_nearest_and_interpolates(zoom: float) -> None:
    image = head(background=-3.5)
    found, before = changed_channels(Appearance(low_resolution=(zoom, None, zoom)), image)
    brain = brain_of(image)
    for number in (0, 2):
        twin = coarse_twin(image[number].double().numpy(), zoom)
        np.testing.assert_allclose(found[number], twin[brain], **TOLERANCE)
    np.testing.assert_array_equal(found[1], before[1])


def test_noise_has_its_standard_deviation_and_belongs_to_its_seed() -> None:
    image = head()
    found, before = changed_channels(Appearance(noise_sigma=0.1, noise_seed=3), image)
    noise = found - before
    # 3 times some 700 voxels: the standard deviation of the figures is 0.0016 and 0.0022.
    assert noise.std() == pytest.approx(0.1, abs=0.008)
    assert noise.mean() == pytest.approx(0, abs=0.011)
    assert abs(np.corrcoef(noise)[np.triu_indices(3, 1)]).max() < 0.2
    again, _ = changed_channels(Appearance(noise_sigma=0.1, noise_seed=3), image)
    other, _ = changed_channels(Appearance(noise_sigma=0.1, noise_seed=4), image)
    np.testing.assert_array_equal(found, again)
    assert (found != other).any()


def test_steps_follow_each_other_in_their_order() -> None:
    image = head()
    every = {
        "noise_sigma": 0.1,
        "blur_sigma": (0.7, None, None),
        "brightness": (1.2, 0.8, None),
        "offset": (None, 0.1, -0.2),
        "contrast": (0.8, 1.2, None),
        "low_resolution": (0.6, None, None),
        "gamma": (1.4, None, 0.8),
    }
    expected = image
    for step, value in every.items():
        expected = change_appearance(
            expected, appearance=Appearance(**{step: value}), background=torch.zeros(3, 1, 1, 1)
        )
    assert torch.equal(change_appearance(image, appearance=Appearance(**every)), expected)


def test_a_channel_of_one_value_and_an_image_of_background_stay() -> None:
    image = head()
    image[1] = 0
    found = change_appearance(image, appearance=Appearance(gamma=(1.5,) * 3, contrast=(1.2,) * 3))
    assert torch.equal(found[1], image[1])
    assert torch.isfinite(found).all()
    nothing = torch.full((2, 4, 4, 4), 3.0)
    assert torch.equal(change_appearance(nothing, appearance=Appearance(noise_sigma=1.0)), nothing)


def test_a_patch_without_a_corner_of_background_is_told_what_that_is() -> None:
    image = head()[:, 5:, 5:, 5:]  # begins within the brain
    brain = (image != 0).any(0)
    assert brain[0, 0, 0]
    found = change_appearance(
        image, appearance=Appearance(noise_sigma=1.0), background=torch.zeros(3, 1, 1, 1)
    )
    assert torch.equal((found != 0).any(0), brain)
    assert (found != image)[:, brain].all()


def test_metadata_and_dtype_and_the_input() -> None:
    affine = torch.diag(torch.tensor([-1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    image = (head() * 100).round().short()
    tracked = MetaTensor(image.clone(), affine=affine)
    for appearance in (Appearance(), Appearance(brightness=(2.0, None, None), noise_sigma=1.0)):
        found = change_appearance(tracked, appearance=appearance)
        assert isinstance(found, MetaTensor)
        assert found.dtype == torch.float32
        assert torch.equal(found.affine, affine)
        assert torch.equal(tracked.as_tensor(), image)


# ---- the random transform -----------------------------------------------------------------------


def transform(seed: int = 0, **settings: Any) -> RandAppearanced:
    return RandAppearanced(["image"], **{**OFF, **settings}).set_random_state(seed=seed)


def all_on(seed: int) -> RandAppearanced:
    return transform(seed, **dict.fromkeys(OFF, 1.0))


def drawn(number: int = 2000, **settings: Any) -> list[Appearance]:
    drawing, found = transform(**settings), []
    for _ in range(number):
        drawing.randomize(4)
        found.append(drawing.appearance)
    return found


def test_probability_zero_changes_nothing() -> None:
    data = {"image": head(), "label": torch.ones(1, *SHAPE)}
    result = transform()(data)
    assert result["image"] is data["image"]
    assert all(appearance.is_identity for appearance in drawn(200))


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    data = {"image": head(), "label": torch.ones(1, *SHAPE)}
    first, again, other = (all_on(seed)(data) for seed in (3, 3, 4))
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])
    assert first["label"] is data["label"]
    assert torch.equal(data["image"], head())


@pytest.mark.parametrize("step", STEPS)
def test_each_step_alone_changes_the_brain_alone_and_later_draws_stay_put(step: str) -> None:
    image, one, none = head(), transform(3, **{f"{step}_probability": 1.0}), transform(3)
    found = one({"image": image})["image"]
    assert not torch.equal(found, image)
    assert torch.equal((found != 0).any(0), (image != 0).any(0))
    none({"image": image})
    assert one.R.random_sample() == none.R.random_sample()


@pytest.mark.parametrize(
    ("step", "attribute", "strength", "low", "high"),
    [
        ("noise", "noise_sigma", 0.2, 0.0, 0.2),
        ("blur", "blur_sigma", (0.5, 1.0), 0.5, 1.0),
        ("brightness", "brightness", 0.25, 0.75, 1.25),
        ("offset", "offset", 0.25, -0.25, 0.25),
        ("contrast", "contrast", (0.6, 1.1), 0.6, 1.1),
        ("gamma", "gamma", (0.7, 1.5), 0.7, 1.5),
        ("low_resolution", "low_resolution", 0.5, 0.5, 1.0),
    ],
    ids=STEPS,
)
def test_strengths_fill_their_range_and_steps_occur_with_their_probability(
    step: str, attribute: str, strength: Any, low: float, high: float
) -> None:
    found = drawn(**{f"{step}_probability": 0.4, attribute: strength})
    values = [getattr(appearance, attribute) for appearance in found]
    happened = [value for value in values if value is not None]
    # Standard deviation of the share is 0.011: five of them.
    assert len(happened) / len(found) == pytest.approx(0.4, abs=0.055)
    channels = np.array(happened, dtype=float).reshape(len(happened), -1)  # None is NaN
    margin = 0.05 * (high - low)
    assert low <= np.nanmin(channels) < low + margin
    assert high - margin < np.nanmax(channels) <= high
    share = 0.5 if step in ("blur", "low_resolution") else 1.0
    # 3200 channels: 0.009, five of them.
    assert np.isfinite(channels).mean() == pytest.approx(share, abs=0.045)
    if step in ("contrast", "gamma"):  # as often weaker as stronger, on uneven ranges
        assert (channels < 1).mean() == pytest.approx(0.5, abs=0.045)


def test_one_gamma_in_four_is_inverted() -> None:
    share = np.mean([appearance.is_inverted for appearance in drawn(gamma_probability=1.0)])
    # Standard deviation 0.0097: five of them.
    assert share == pytest.approx(0.25, abs=0.05)


def test_the_background_under_its_key_is_used_and_taken_out() -> None:
    image = head()[:, 5:, 5:, 5:]
    data = {"image": image, BACKGROUND: torch.zeros(3, 1, 1, 1)}
    result = transform(noise_probability=1.0)(data)
    assert BACKGROUND not in result
    assert BACKGROUND in data
    assert torch.equal((result["image"] != 0).any(0), (image != 0).any(0))
