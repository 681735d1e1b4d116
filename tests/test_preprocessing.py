"""The preprocessing chain, beside the article's own steps in NumPy and SciPy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from transforms.preprocessing import build_preprocessing, build_stored_and_live

ARTICLE_CROP = [[8, 8], [8, 8], [6, 5]]
# Stored as RAS with swapped axes: 2.5 mm, 0.9 mm and 1.2 mm, off the origin.
TURNED = np.array(
    [[0.0, 0.0, 1.2, -31.0], [0.0, 0.9, 0.0, 12.5], [2.5, 0.0, 0.0, 40.0], [0.0, 0.0, 0.0, 1.0]]
)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def article_crop_and_filters(volume: np.ndarray) -> np.ndarray:
    """Return what the article makes of one modality (X, Y, Z), there in the order (Z, X, Y)."""
    cropped = np.moveaxis(volume.astype(np.float64), 2, 0)[6:-5, 8:-8, 8:-8]
    low = np.min(cropped)
    levels = np.round((cropped - low) / (np.max(cropped) - low), 3)
    smooth = ndimage.gaussian_filter(levels, sigma=(1, 1, 1))
    return np.moveaxis(smooth - 0.3 * ndimage.laplace(smooth), 0, 2)


def article_chain(**settings: Any) -> Any:
    return build_preprocessing(
        border_crop=ARTICLE_CROP, gaussian_sigma=1.0, sharpen_strength=0.3, **settings
    )


def random_case(
    shape: tuple[int, int, int], *, affine: np.ndarray = LPS, channels: int = 4
) -> dict[str, Any]:
    rng = np.random.default_rng(sum(shape))
    image = rng.integers(0, 2000, (channels, *shape)).astype(np.float32)
    label = rng.integers(0, 4, (1, *shape)).astype(np.uint8)
    return {
        "image": MetaTensor(torch.from_numpy(image), affine=torch.tensor(affine)),
        "label": MetaTensor(torch.from_numpy(label), affine=torch.tensor(affine)),
        "case": "case_000",
    }


@pytest.mark.parametrize("shape", [(37, 41, 29), (19, 40, 13), (17, 18, 12), (64, 21, 48)], ids=str)
def test_equals_the_article_everywhere_and_on_axes_shorter_than_the_kernel(
    shape: tuple[int, int, int],
) -> None:
    case = random_case(shape)
    if shape == (17, 18, 12):  # 1 x 2 x 1 voxels are left: two values per channel
        case["image"][:, 8, 8, 6], case["image"][:, 8, 9, 6] = 3.0, 1000.0
    found = article_chain()(case)["image"]
    assert found.dtype == torch.float32
    for channel, volume in zip(found.numpy(), case["image"].numpy(), strict=True):
        # The project's promise; measured differences are below 6e-7, of filters in float32.
        np.testing.assert_allclose(channel, article_crop_and_filters(volume), rtol=0, atol=1e-6)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("case", ["BraTS2021_00003", "BraTS2021_01477"])
def test_equals_the_article_on_real_cases(real_cases: Path, case: str) -> None:
    files = [real_cases / case / f"{case}_{name}.nii.gz" for name in ("flair", "t1", "t1ce", "t2")]
    volumes = [nib.load(file).get_fdata() for file in files]
    image = MetaTensor(
        torch.from_numpy(np.stack(volumes)).float(), affine=nib.load(files[0]).affine
    )
    found = article_chain(keys=("image",))({"image": image})["image"]
    assert found.shape == (4, 224, 224, 144)
    for channel, modality in zip(found.numpy(), volumes, strict=True):
        np.testing.assert_allclose(channel, article_crop_and_filters(modality), rtol=0, atol=1e-6)


def test_settings_survive_json() -> None:
    settings = {
        "keys": ["image", "label"],
        "border_crop": [[1, 1], [2, 0], [0, 1]],
        "brain_box": True,
        "normalization": "minmax",
        "decimals": 3,
        "gaussian_sigma": 1.0,
        "sharpen_strength": 0.3,
        "spacing_mm": 2.0,
        "divisor": 8,
    }
    case = random_case((9, 8, 7), affine=TURNED)
    once = build_preprocessing(**settings)(case)
    again = build_preprocessing(**json.loads(json.dumps(settings)))(case)
    assert torch.equal(once["image"], again["image"])
    assert torch.equal(once["label"], again["label"])


FULL_CHAIN: dict[str, Any] = {
    "border_crop": [[1, 1], [2, 0], [0, 1]],
    "brain_box": True,
    "gaussian_sigma": 1.0,
    "sharpen_strength": 0.3,
    "spacing_mm": 2.0,
    "divisor": 8,
}


@pytest.mark.parametrize(
    "left_out",
    [(), ("gaussian_sigma",), ("gaussian_sigma", "sharpen_strength"), tuple(FULL_CHAIN)],
)
@pytest.mark.parametrize("normalization", ["minmax", "zscore", None])
def test_stored_and_live_are_the_whole_chain(left_out: tuple[str, ...], normalization: Any) -> None:
    settings = {name: value for name, value in FULL_CHAIN.items() if name not in left_out}
    settings["normalization"] = normalization
    stored, live = build_stored_and_live(**settings)
    whole = build_preprocessing(**settings)
    case = random_case((9, 8, 7), affine=TURNED)
    expected, middle = whole(case), stored(case)
    found = live(middle)
    for key in ("image", "label"):
        assert torch.equal(found[key].as_tensor(), expected[key].as_tensor())
        assert torch.equal(found[key].affine, expected[key].affine)
        trace = [step["class"] for step in expected[key].applied_operations]
        assert [step["class"] for step in found[key].applied_operations] == trace
    if normalization == "minmax":
        levels = middle["image"].as_tensor().double() * 1000
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)  # float32 of levels


def test_brats_is_left_as_stored() -> None:
    case = random_case((5, 6, 7))
    result = build_preprocessing(normalization=None)(case)
    assert torch.equal(result["image"].as_tensor(), case["image"].as_tensor())
    assert torch.equal(result["label"].as_tensor(), case["label"].as_tensor())
    assert result["case"] == "case_000"


def test_any_orientation_becomes_lps_before_the_crop() -> None:
    case = random_case((5, 6, 7), affine=TURNED)
    chain = build_preprocessing(normalization=None, border_crop=[[1, 0], [0, 2], [0, 0]])
    result = chain(case)
    turned = case["image"].numpy().transpose(0, 3, 2, 1)[:, ::-1, ::-1]
    np.testing.assert_array_equal(result["image"].numpy(), turned[:, 1:, :-2])
    assert nib.aff2axcodes(result["image"].affine.numpy()) == ("L", "P", "S")
    assert nib.aff2axcodes(result["label"].affine.numpy()) == ("L", "P", "S")


def test_label_stays_uint8_and_is_cropped_alike() -> None:
    case = random_case((9, 8, 7))
    result = build_preprocessing(border_crop=[[1, 1], [2, 0], [0, 1]])(case)
    assert result["label"].dtype == torch.uint8
    expected = case["label"].as_tensor()[:, 1:-1, 2:, :-1]
    assert torch.equal(result["label"].as_tensor(), expected)


def test_brain_box_is_that_of_all_channels_and_crops_the_label_alike() -> None:
    case = random_case((9, 8, 7), channels=2)
    case["image"].zero_()
    case["image"][0, 2, 3, 1] = 5
    case["image"][1, 6, 4, 1] = 7
    result = build_preprocessing(brain_box=True, normalization=None)(case)
    assert torch.equal(result["image"].as_tensor(), case["image"].as_tensor()[:, 2:7, 3:5, 1:2])
    assert torch.equal(result["label"].as_tensor(), case["label"].as_tensor()[:, 2:7, 3:5, 1:2])
    assert set(result) == {"image", "label", "case"}


def test_minmax_is_taken_after_the_crops() -> None:
    case = random_case((6, 6, 6))
    case["image"][:, 0, 0, 0] = 1e6
    result = build_preprocessing(border_crop=[[1, 0], [0, 0], [0, 0]])(case)
    assert result["image"].amax((1, 2, 3)).tolist() == [1, 1, 1, 1]


def test_zscore_is_that_of_the_voxels_that_are_not_zero() -> None:
    case = random_case((8, 8, 8))
    case["image"][:, :3] = 0
    result = build_preprocessing(normalization="zscore")(case)["image"].numpy()
    assert not result[:, :3].any()
    for channel, source in zip(result, case["image"].numpy(), strict=True):
        brain = source != 0
        expected = (source[brain] - source[brain].mean()) / source[brain].std()
        # Mean and deviation of hundreds of float32 values, summed in another order.
        np.testing.assert_allclose(channel[brain], expected, rtol=0, atol=1e-5)


def test_spacing_becomes_isotropic_and_the_label_keeps_its_classes() -> None:
    case = random_case((10, 12, 14), affine=TURNED)
    result = build_preprocessing(spacing_mm=2.0)(case)
    spacing_mm = np.linalg.norm(result["image"].affine.numpy()[:3, :3], axis=0)
    # Norms of float64 affines.
    np.testing.assert_allclose(spacing_mm, 2.0, rtol=0, atol=1e-12)
    assert result["image"].shape[1:] == result["label"].shape[1:] == (9, 6, 12)
    assert result["image"].dtype == torch.float32
    assert result["label"].dtype == torch.uint8
    assert set(result["label"].unique().tolist()) <= {0, 1, 2, 3}


def test_padding_is_zero_at_the_end_of_each_axis() -> None:
    case = random_case((9, 8, 7))
    result = build_preprocessing(normalization=None, divisor=8)(case)
    assert result["image"].shape == (4, 16, 8, 8)
    assert torch.equal(result["image"].as_tensor()[:, :9, :8, :7], case["image"].as_tensor())
    assert not result["image"][:, 9:].any()
    assert not result["image"][..., 7:].any()
    assert torch.equal(result["label"].as_tensor()[:, :9, :8, :7], case["label"].as_tensor())


def test_image_alone_is_enough_for_inference() -> None:
    case = random_case((9, 8, 7), affine=TURNED)
    chain = {"border_crop": [[1, 1], [1, 1], [1, 1]], "spacing_mm": 2.0, "divisor": 4}
    both = build_preprocessing(**chain)(case)
    alone = build_preprocessing(keys=("image",), **chain)({"image": case["image"]})
    assert torch.equal(alone["image"].as_tensor(), both["image"].as_tensor())


@pytest.mark.parametrize("normalization", ["minmax", "zscore", None])
def test_case_is_not_changed(normalization: Any) -> None:
    case, twin = random_case((9, 8, 7)), random_case((9, 8, 7))
    chain = build_preprocessing(
        border_crop=[[1, 1], [1, 1], [1, 1]],
        brain_box=True,
        normalization=normalization,
        gaussian_sigma=1.0,
        sharpen_strength=0.3,
        spacing_mm=2.0,
        divisor=4,
    )
    chain(case)
    assert set(case) == set(twin)
    for key in ("image", "label"):
        assert torch.equal(case[key].as_tensor(), twin[key].as_tensor())
        assert torch.equal(case[key].affine, twin[key].affine)
        assert case[key].applied_operations == []


def test_inverse_restores_a_label_that_the_crop_did_not_cut() -> None:
    case = random_case((13, 12, 11), affine=TURNED)
    case["label"][:, :2], case["label"][:, -2:] = 0, 0
    case["label"][:, :, :2], case["label"][:, :, -2:] = 0, 0
    case["label"][..., :2], case["label"][..., -2:] = 0, 0
    chain = build_preprocessing(border_crop=[[2, 1], [1, 2], [0, 2]], brain_box=True, divisor=4)
    back = chain.inverse(chain(case))
    assert torch.equal(back["label"].as_tensor(), case["label"].as_tensor())
    assert back["label"].dtype == torch.uint8
    np.testing.assert_allclose(back["label"].affine, TURNED, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keys": "image"}, "keys must be a list that starts with the image's key; found 'image'"),
        ({"keys": ()}, "keys must be a list"),
        ({"normalization": "z-score"}, '"minmax", "zscore" or null; found \'z-score\''),
        ({"spacing_mm": 0.0}, r"spacing_mm must be more than 0; found 0\.0"),
        ({"divisor": 0}, "divisor must be at least 1; found 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_preprocessing(**settings)


def test_crop_that_does_not_fit_the_case_names_both() -> None:
    # MONAI's chains wrap what a step raises.
    with pytest.raises(RuntimeError, match="applying transform") as caught:
        article_chain()(random_case((16, 20, 30)))
    assert re.search(
        r"\(\(8, 8\), \(8, 8\), \(6, 5\)\).*\(16, 20, 30\)", str(caught.value.__cause__)
    )
