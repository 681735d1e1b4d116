"""Min-max, Gaussian and sharpening, beside NumPy and SciPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from scipy import ndimage

from transforms.intensity import (
    FilterIntensitiesd,
    GaussianFilter,
    GaussianFilterd,
    LaplacianSharpen,
    LaplacianSharpend,
    MinMaxNormalize,
    MinMaxNormalized,
    filter_intensities,
    gaussian_filter,
    laplacian_sharpen,
    min_max_normalize,
)

# Half a unit in the last place of float32 below 2 (the result's dtype), and nothing else: all
# arithmetic is float64.
FLOAT32_ROUNDING = 1.2e-7

# The project's promise for what filters in float32; measured differences are below 6e-7.
ARTICLE_TOLERANCE = 1e-6

# Odd, anisotropic, and with axes shorter than the Gaussian's radius of 4.
SHAPES = [(17, 11, 23), (3, 9, 1), (1, 1, 1), (2, 30, 4), (64, 80, 60)]

PAIRS: list[tuple[Transform, Transform]] = [
    (MinMaxNormalize(decimals=2), MinMaxNormalized(["image"], decimals=2)),
    (GaussianFilter(sigma=0.7), GaussianFilterd(["image"], sigma=0.7)),
    (LaplacianSharpen(strength=0.2), LaplacianSharpend(["image"], strength=0.2)),
]


def random_volume(shape: tuple[int, ...], *, channels: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((channels, *shape)))


def test_min_max_of_a_hand_worked_channel() -> None:
    volume = torch.tensor([[[[2.0, 4.0, 5.0, 10.0]]]])
    expected = torch.tensor([[[[0.0, 0.25, 0.375, 1.0]]]])
    assert torch.equal(min_max_normalize(volume), expected)


def test_min_max_of_each_channel_is_its_own_background_included() -> None:
    volume = torch.tensor([[[[-1.0, 0.0, 3.0]]], [[[0.0, 5.0, 10.0]]]])
    expected = torch.tensor([[[[0.0, 0.25, 1.0]]], [[[0.0, 0.5, 1.0]]]])
    assert torch.equal(min_max_normalize(volume), expected)


@pytest.mark.parametrize("largest", [7, 1000, 2000, 4096, 32767])
def test_min_max_lands_on_the_very_levels_of_numpy(largest: int) -> None:
    # Every integer intensity once: with 2000, half of them are exact ties between two levels.
    channel = np.arange(largest + 1, dtype=np.int16)[None, :, None, None]
    expected = np.round((channel - 0.0) / (largest - 0.0), 3)
    found = min_max_normalize(channel).numpy()
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert len(np.unique(found)) <= 1001


def test_min_max_rounds_to_the_decimals_asked_for() -> None:
    volume = random_volume((5, 6, 7))
    low, high = volume.amin((1, 2, 3), keepdim=True), volume.amax((1, 2, 3), keepdim=True)
    exact = (volume - low) / (high - low)
    assert torch.equal(min_max_normalize(volume, decimals=None), exact.float())
    rounded = torch.from_numpy(np.round(exact.numpy(), 1)).float()
    assert torch.equal(min_max_normalize(volume, decimals=1), rounded)


def test_constant_channel_becomes_zero_with_a_warning() -> None:
    volume = torch.stack([torch.arange(8.0), torch.full((8,), 5.0)]).reshape(2, 2, 2, 2)
    with pytest.warns(UserWarning, match="channel 1 is constant \\(5\\); it becomes 0"):
        normalized = min_max_normalize(volume)
    assert not normalized[1].any()
    assert normalized[0].max() == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("sigma", "truncate"), [(1.0, 4.0), (0.5, 4.0), (2.3, 3.0)])
def test_gaussian_equals_scipy(shape: tuple[int, int, int], sigma: float, truncate: float) -> None:
    volume = random_volume(shape)
    twin = np.stack(
        [ndimage.gaussian_filter(channel, sigma, truncate=truncate) for channel in volume.numpy()]
    )
    found = gaussian_filter(volume, sigma=sigma, truncate=truncate)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, twin, rtol=0, atol=FLOAT32_ROUNDING)


def test_gaussian_of_a_corner_mirrors_at_the_face_of_the_voxel() -> None:
    # One axis of two voxels, radius 4: the kernel folds back onto them alternately.
    weights = np.exp(-0.5 * np.arange(-4, 5) ** 2)
    weights /= weights.sum()
    by_offset = dict(zip(range(-4, 5), weights, strict=True))
    onto_itself = sum(by_offset[offset] for offset in (-4, -1, 0, 3, 4))
    found = gaussian_filter(torch.tensor([[[[1.0, 0.0]]]]))
    assert found[0, 0, 0, 0].item() == pytest.approx(onto_itself, abs=FLOAT32_ROUNDING)
    assert found.sum().item() == pytest.approx(1, abs=FLOAT32_ROUNDING)


@pytest.mark.parametrize("tile_voxels", [1, 50, 120])
def test_results_do_not_depend_on_the_tiles(
    monkeypatch: pytest.MonkeyPatch, tile_voxels: int
) -> None:
    volume = random_volume((13, 7, 5))
    whole = gaussian_filter(volume), laplacian_sharpen(volume), min_max_normalize(volume)
    monkeypatch.setattr("transforms.intensity.TILE_VOXELS", tile_voxels)
    monkeypatch.setattr("transforms.intensity.SLAB_VOXELS", tile_voxels)
    tiles = gaussian_filter(volume), laplacian_sharpen(volume), min_max_normalize(volume)
    assert all(torch.equal(a, b) for a, b in zip(whole, tiles, strict=True))


def volume_with_background(
    shape: tuple[int, int, int], *, inside: tuple[slice, ...], background: float
) -> torch.Tensor:
    """Two channels of whole numbers inside a box, one number elsewhere."""
    volume = torch.full((2, *shape), background, dtype=torch.float64)
    volume[(slice(None), *inside)] = (random_volume(shape) * 900).round()[(slice(None), *inside)]
    return volume


def article_in_scipy(channel: np.ndarray, *, sigma: float, strength: float) -> np.ndarray:
    scaled = np.round((channel - channel.min()) / (channel.max() - channel.min()), 3)
    smooth = ndimage.gaussian_filter(scaled, sigma)
    return np.asarray(smooth - strength * ndimage.laplace(smooth))


BOXES = [
    (slice(9, 14), slice(8, 20), slice(6, 20)),  # in the midst
    (slice(0, 3), slice(0, 30), slice(0, 9)),  # at the first planes
    (slice(19, 23), slice(17, 30), slice(18, 25)),  # at a corner
    (slice(0, 23), slice(14, 15), slice(0, 25)),  # through all planes
    (slice(0, 23), slice(0, 30), slice(0, 25)),  # everywhere
    (slice(22, 23), slice(29, 30), slice(24, 25)),  # one voxel, the last
]


@pytest.mark.parametrize("inside", BOXES)
@pytest.mark.parametrize("background", [0.0, 300.0, 1000.0])
def test_all_steps_at_once_equal_scipy_wherever_the_content_lies(
    inside: tuple[slice, ...], background: float
) -> None:
    volume = volume_with_background((23, 30, 25), inside=inside, background=background)
    if inside == BOXES[-1]:
        volume[:, -1, -1, -1] = 5.0
    twin = [article_in_scipy(x, sigma=1.0, strength=0.3) for x in volume.numpy()]
    found = filter_intensities(volume, normalize=True, sigma=1.0, strength=0.3)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, np.stack(twin), rtol=0, atol=ARTICLE_TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("sigma", "strength"), [(1.0, None), (None, 0.3), (2.3, 0.5), (0.1, 0.2)])
def test_all_steps_at_once_equal_one_after_the_other(
    shape: tuple[int, int, int], sigma: float | None, strength: float | None
) -> None:
    volume = random_volume(shape)
    expected = volume
    if sigma:
        expected = gaussian_filter(expected, sigma=sigma)
    if strength:
        expected = laplacian_sharpen(expected, strength=strength)
    found = filter_intensities(volume, normalize=False, sigma=sigma, strength=strength)
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=ARTICLE_TOLERANCE)


@pytest.mark.parametrize("shift", [(0, 0, 0), (3, 1, 0), (5, 5, 5)])
def test_no_bit_depends_on_how_much_background_lies_around(shift: tuple[int, int, int]) -> None:
    inside = (slice(8, 15), slice(9, 21), slice(7, 18))
    volume = volume_with_background((23, 30, 25), inside=inside, background=0.0)
    x, y, z = shift
    wide = torch.zeros(2, 40, 41, 42, dtype=torch.float64)
    wide[:, x : x + 23, y : y + 30, z : z + 25] = volume
    found = filter_intensities(wide, normalize=True, sigma=1.0, strength=0.3)
    expected = filter_intensities(volume, normalize=True, sigma=1.0, strength=0.3)
    assert torch.equal(found[:, x : x + 23, y : y + 30, z : z + 25], expected)
    found[:, x : x + 23, y : y + 30, z : z + 25] = 0
    assert not found.any()


@pytest.mark.parametrize("inside", BOXES)
@pytest.mark.parametrize("voxels", [1, 50, 700, 4000])
@pytest.mark.parametrize("threads", [1, 2])
def test_no_bit_of_all_steps_at_once_depends_on_tiles_slabs_or_threads(
    monkeypatch: pytest.MonkeyPatch, inside: tuple[slice, ...], voxels: int, threads: int
) -> None:
    volume = volume_with_background((23, 30, 25), inside=inside, background=7.0)
    volume[1] = volume[1].flip(0)
    expected = filter_intensities(volume, normalize=True, sigma=1.0, strength=0.3)
    monkeypatch.setattr("transforms.intensity.TILE_VOXELS", voxels)
    monkeypatch.setattr("transforms.intensity.SLAB_VOXELS", 3 * voxels)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = filter_intensities(volume, normalize=True, sigma=1.0, strength=0.3)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)


def test_one_constant_channel_beside_another_becomes_zero() -> None:
    volume = volume_with_background((9, 8, 7), inside=BOXES[4], background=0.0)
    volume[1] = 5.0
    with pytest.warns(UserWarning, match="channel 1 is constant \\(5\\); it becomes 0"):
        found = filter_intensities(volume, normalize=True, sigma=1.0)
    assert found[0].any()
    assert not found[1].any()


@pytest.mark.parametrize("decimals", [0, 1, 2, 3, 4, 5, 6, 7, 8, 12])
def test_levels_of_any_number_of_decimals_are_those_of_numpy(decimals: int) -> None:
    channel = (random_volume((31, 30, 29), channels=1) * 30000).round().numpy()
    channel.flat[:2] = 0, 30000
    expected = np.round(channel / 30000, decimals).astype(np.float32)
    found = min_max_normalize(channel, decimals=decimals).numpy()
    np.testing.assert_array_equal(found, expected)


def test_weights_too_small_for_a_float_are_left_out() -> None:
    volume = random_volume((6, 5, 4))
    found = gaussian_filter(volume, sigma=0.1, truncate=200.0)
    torch.testing.assert_close(found, volume.float(), rtol=0, atol=FLOAT32_ROUNDING)


def test_nan_stays_near_and_is_not_taken_for_background() -> None:
    volume = torch.zeros(1, 21, 22, 23)
    volume[0, 10, 10, 10] = torch.nan
    found = gaussian_filter(volume)
    inside = torch.zeros_like(found, dtype=torch.bool)
    inside[0, 6:15, 6:15, 6:15] = True
    assert torch.equal(found.isnan(), inside)
    assert not found[~inside].any()


def test_tensors_that_numpy_cannot_see_are_taken() -> None:
    volume = (random_volume((6, 5, 4)) * 200).round()
    expected = gaussian_filter(volume)
    assert torch.equal(gaussian_filter(volume.requires_grad_()), expected)
    assert torch.equal(gaussian_filter(volume.detach().bfloat16()), expected)


def test_a_volume_without_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(C, X, Y, Z\); found shape \(6, 5, 4\)"):
        gaussian_filter(torch.zeros(6, 5, 4))


def test_dictionary_transform_of_all_steps() -> None:
    image = volume_with_background((23, 30, 25), inside=BOXES[0], background=0.0)
    whole = FilterIntensitiesd(["image"], normalize=True, decimals=2, sigma=0.7, strength=0.2)
    expected = filter_intensities(image, normalize=True, decimals=2, sigma=0.7, strength=0.2)
    assert torch.equal(whole({"image": image})["image"], expected)
    (first,), second = whole.in_two()
    assert torch.equal(second(first({"image": image}))["image"], expected)
    assert second.in_two() == ([], second)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_sigma_that_is_not_positive_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma must be more than 0"):
        gaussian_filter(torch.zeros(1, 2, 2, 2), sigma=sigma)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_sharpening_equals_scipy(shape: tuple[int, int, int], strength: float) -> None:
    volume = random_volume(shape)
    twin = np.stack([x - strength * ndimage.laplace(x) for x in volume.numpy()])
    found = laplacian_sharpen(volume, strength=strength)
    assert found.dtype == torch.float32
    # Sharpened values reach 13, where float32 is 8 times as coarse as below 2.
    np.testing.assert_allclose(found, twin, rtol=0, atol=8 * FLOAT32_ROUNDING)


def test_sharpening_a_hand_worked_point() -> None:
    volume = torch.zeros(1, 3, 3, 3)
    volume[0, 1, 1, 1] = 1
    expected = torch.zeros(1, 3, 3, 3)
    expected[0, 1, 1, 1] = 1 + 6 * 0.25
    for axis in range(3):
        for neighbour in (0, 2):
            index = [1, 1, 1]
            index[axis] = neighbour
            expected[(0, *index)] = -0.25
    assert torch.equal(laplacian_sharpen(volume, strength=0.25), expected)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "int32", "float16", "float32", "float64", ">i2", ">f4"]
)
@pytest.mark.parametrize("function", [min_max_normalize, gaussian_filter, laplacian_sharpen])
def test_any_real_dtype_gives_what_float64_gives(function: object, dtype: str) -> None:
    whole_numbers = (random_volume((6, 5, 4)) * 200).round()
    array = whole_numbers.numpy().astype(dtype)
    expected = function(whole_numbers)  # type: ignore[operator]
    assert torch.equal(function(array), expected)  # type: ignore[operator]
    if array.dtype.isnative:
        assert torch.equal(function(torch.from_numpy(array)), expected)  # type: ignore[operator]


def test_arrays_with_odd_memory_are_taken() -> None:
    array = random_volume((6, 5, 4)).numpy()
    expected = gaussian_filter(torch.from_numpy(array[:, ::-1].copy()))
    assert torch.equal(gaussian_filter(array[:, ::-1]), expected)
    array.flags.writeable = False
    assert torch.equal(gaussian_filter(array[:, ::-1]), expected)


@pytest.mark.parametrize(("array_transform", "dict_transform"), PAIRS)
def test_dictionary_transform_changes_its_keys_only(
    array_transform: Transform, dict_transform: Transform
) -> None:
    image = random_volume((5, 6, 7))
    data = {"image": image, "label": image, "case": "c"}
    result = dict_transform(data)
    assert torch.equal(result["image"], array_transform(image))
    assert not torch.equal(result["image"].double(), image)
    assert result["label"] is image
    assert result["case"] == "c"
    assert data["image"] is image


@pytest.mark.parametrize(("array_transform", "dict_transform"), PAIRS)
def test_input_and_its_metadata_are_not_changed(
    array_transform: Transform, dict_transform: Transform
) -> None:
    values = random_volume((5, 6, 7))
    affine = torch.diag(torch.tensor([-1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    image = MetaTensor(values.clone(), affine=affine, meta={"source": "here"})
    image.applied_operations = [{"class": "Flip", "id": 1}]
    result = dict_transform({"image": image})["image"]
    assert isinstance(result, MetaTensor)
    assert result.dtype == torch.float32
    assert torch.equal(result.affine, affine)
    assert result.meta["source"] == "here"
    assert result.applied_operations == image.applied_operations
    result.applied_operations.clear()
    result.affine[0, 3] = 9
    assert image.applied_operations == [{"class": "Flip", "id": 1}]
    assert torch.equal(image.affine, affine)
    assert torch.equal(image.as_tensor(), values)
    assert type(array_transform(values)) is torch.Tensor


@pytest.mark.parametrize(("array_transform", "dict_transform"), PAIRS)
def test_missing_key_is_an_error_unless_allowed(
    array_transform: Transform, dict_transform: Transform
) -> None:
    with pytest.raises(KeyError, match="image"):
        dict_transform({"label": torch.zeros(1, 2, 2, 2)})
    assert type(dict_transform)(["image"], allow_missing_keys=True)({}) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    volume = (random_volume((21, 34, 17)) * 2000).round().float()
    on_gpu = min_max_normalize(volume.cuda())
    assert torch.equal(on_gpu.cpu(), min_max_normalize(volume))
    for function in (gaussian_filter, laplacian_sharpen):
        found, expected = function(on_gpu).cpu(), function(on_gpu.cpu())
        torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32_ROUNDING)
