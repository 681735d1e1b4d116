"""In-plane rotation beside SciPy, and randomness that is a function of (seed, epoch, index)."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import RandFlipd, RandScaleIntensityd, RandShiftIntensityd
from scipy import ndimage

from pipeline.config import build_settings, preset
from transforms.appearance import RandAppearanced
from transforms.augmentation import (
    RandInPlaneRotated,
    RandMirrored,
    build_augmentation,
    rotate_in_plane,
    seed_of,
)
from transforms.deformation import RandDeformedd

SHAPE = (9, 12, 5)


def random_image(shape: tuple[int, ...] = SHAPE, *, channels: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).random((channels, *shape)).astype(np.float32))


def random_label(shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(6).integers(0, 4, (1, *shape)).astype(np.uint8))


def sample() -> dict[str, Any]:
    affine = torch.diag(torch.tensor([-1.0, -2.0, 3.0, 1.0], dtype=torch.float64))
    return {
        "image": MetaTensor(random_image(), affine=affine),
        "label": MetaTensor(random_label(), affine=affine),
        "case": "case_000",
    }


def mapping(shape: tuple[int, ...], degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Return SciPy's matrix and offset: from a voxel (x, y) of the result to the source."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.array([[cosine, sine], [-sine, cosine]])
    centre = (np.array(shape[:2]) - 1) / 2
    return matrix, centre - matrix @ centre


def twin_of(volume: np.ndarray, degrees: float, *, order: int) -> np.ndarray:
    """Rotate slice by slice with SciPy."""
    matrix, offset = mapping(volume.shape[1:], degrees)
    result = np.empty_like(volume)
    for channel, out in zip(volume, result, strict=True):
        for z in range(channel.shape[2]):
            out[..., z] = ndimage.affine_transform(
                channel[..., z], matrix, offset, order=order, mode="nearest"
            )
    return result


@pytest.mark.parametrize("degrees", [0.0, 7.3, -20.0, 45.0, 90.0, 133.0, -179.0])
@pytest.mark.parametrize("shape", [SHAPE, (16, 16, 3), (1, 7, 2), (2, 2, 1)], ids=str)
def test_linear_rotation_equals_scipy(shape: tuple[int, int, int], degrees: float) -> None:
    image = random_image(shape)
    twin = twin_of(image.double().numpy(), degrees, order=1)
    found = rotate_in_plane(image, degrees=degrees, mode="bilinear")
    # Four products in float32 of values and weights below 1.
    np.testing.assert_allclose(found, twin, rtol=0, atol=3e-7)


def naive_rotation(volume: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotate with whole volumes: four gathered copies, each times its weight in float32."""
    _, size_x, size_y, _ = volume.shape
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    centre_x, centre_y = (size_x - 1) / 2, (size_y - 1) / 2
    x = torch.arange(size_x, dtype=torch.float64)[:, None] - centre_x
    y = torch.arange(size_y, dtype=torch.float64)[None, :] - centre_y
    source_x = (cosine * x + sine * y + centre_x).clamp(0, size_x - 1)
    source_y = (cosine * y - sine * x + centre_y).clamp(0, size_y - 1)
    x0, y0 = source_x.floor().long(), source_y.floor().long()
    x1, y1 = (x0 + 1).clamp(max=size_x - 1), (y0 + 1).clamp(max=size_y - 1)
    right, up = source_x - x0, source_y - y0
    result = volume[:, x0, y0] * ((1 - right) * (1 - up)).float()[..., None]
    result += volume[:, x1, y0] * (right * (1 - up)).float()[..., None]
    result += volume[:, x0, y1] * ((1 - right) * up).float()[..., None]
    result += volume[:, x1, y1] * (right * up).float()[..., None]
    return result


@pytest.mark.parametrize("degrees", [0.0, 7.3, -20.0, 90.0, 133.0])
@pytest.mark.parametrize("content", [slice(0, 0), slice(0, 2), slice(9, 14), slice(0, 23)])
def test_rotation_is_to_the_last_bit_that_of_whole_volumes(degrees: float, content: slice) -> None:
    image = torch.zeros(2, 23, 19, 6)
    image[1, content, 3:11] = random_image((23, 19, 6))[1, content, 3:11] - 0.5
    found = rotate_in_plane(image, degrees=degrees, mode="bilinear")
    assert torch.equal(found, naive_rotation(image, degrees))


@pytest.mark.parametrize("degrees", [7.3, -20.0, 33.0, 133.0])
def test_nearest_rotation_equals_scipy_away_from_ties(degrees: float) -> None:
    label = random_label((21, 34, 4))
    matrix, offset = mapping((21, 34), degrees)
    voxels = np.stack(np.meshgrid(np.arange(21), np.arange(34), indexing="ij"))
    source = np.einsum("ij,jxy->ixy", matrix, voxels) + offset[:, None, None]
    is_tie = (np.abs(source - np.floor(source) - 0.5) < 1e-6).any(axis=0)
    assert is_tie.mean() < 0.05
    found = rotate_in_plane(label, degrees=degrees, mode="nearest").numpy()
    twin = twin_of(label.numpy(), degrees, order=0)
    np.testing.assert_array_equal(found[:, ~is_tie], twin[:, ~is_tie])


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_zero_degrees_is_the_identity(mode: Literal["bilinear", "nearest"]) -> None:
    image = random_image()
    assert torch.equal(rotate_in_plane(image, degrees=0.0, mode=mode), image)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_quarter_turns_bring_x_to_y_and_move_voxels_only(quarters: int) -> None:
    label = random_label((8, 8, 3))
    expected = torch.rot90(label, quarters, dims=(1, 2))
    found = rotate_in_plane(label, degrees=90.0 * quarters, mode="nearest")
    assert torch.equal(found, expected)
    image = random_image((8, 8, 3))
    turned = rotate_in_plane(image, degrees=90.0 * quarters, mode="bilinear")
    expected_image = torch.rot90(image, quarters, dims=(1, 2))
    # cos(90 degrees) is 6e-17 in float64: the neighbour's weight is lost in float32.
    torch.testing.assert_close(turned, expected_image, rtol=0, atol=1e-7)


def test_every_slice_and_modality_turns_by_the_same_angle() -> None:
    plane = random_image((11, 13, 1), channels=1)
    volume = plane.repeat(3, 1, 1, 6)
    rotated = rotate_in_plane(volume, degrees=17.0, mode="bilinear")
    assert torch.equal(rotated, rotated[:1, ..., :1].expand_as(rotated))
    assert not torch.equal(rotated, volume)


def test_outside_the_nearest_edge_voxel_is_repeated() -> None:
    volume = torch.zeros(1, 9, 9, 1)
    volume[:, 0] = 5
    rotated = rotate_in_plane(volume, degrees=45.0, mode="bilinear")
    # The result's corner (0, 0) reads 1.7 voxels beyond the edge x = 0, half way along it.
    assert rotated[0, 0, 0, 0] == pytest.approx(5.0)
    assert rotated[0, 8, 8, 0] == 0


def test_nearest_invents_no_class() -> None:
    label = torch.zeros(1, 16, 16, 4, dtype=torch.uint8)
    label[:, 4:12, 4:12] = 3
    for degrees in (3.0, 11.0, 20.0, 60.0):
        rotated = rotate_in_plane(label, degrees=degrees, mode="nearest")
        assert rotated.dtype == torch.uint8
        assert rotated.unique().tolist() == [0, 3]


def test_other_dtypes_metadata_and_the_input() -> None:
    affine = torch.diag(torch.tensor([-1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    volume = (random_image() * 100).round().short()
    tracked = MetaTensor(volume.clone(), affine=affine)
    rotated = rotate_in_plane(tracked, degrees=10.0, mode="bilinear")
    assert isinstance(rotated, MetaTensor)
    assert rotated.dtype == torch.float32
    assert torch.equal(rotated.affine, affine)
    assert torch.equal(tracked.as_tensor(), volume)
    from_numpy = rotate_in_plane(volume.numpy(), degrees=10.0, mode="bilinear")
    assert torch.equal(from_numpy, rotated.as_tensor())


def test_wrong_mode_or_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of .*bilinear.*nearest.*; found 'linear'"):
        rotate_in_plane(random_image(), degrees=1.0, mode="linear")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(C, X, Y, Z\); found shape \(9, 12, 5\)"):
        rotate_in_plane(random_image()[0], degrees=1.0, mode="nearest")


def test_random_rotation_turns_all_keys_by_the_angle_it_drew() -> None:
    transform = RandInPlaneRotated(
        ["image", "label"], degrees=20.0, modes=["bilinear", "nearest"]
    ).set_random_state(seed=3)
    data = sample()
    result = transform(data)
    degrees = transform.angle_degrees
    assert 0 < abs(degrees) <= 20
    expected = rotate_in_plane(data["image"], degrees=degrees, mode="bilinear")
    assert torch.equal(result["image"].as_tensor(), expected.as_tensor())
    expected = rotate_in_plane(data["label"], degrees=degrees, mode="nearest")
    assert torch.equal(result["label"].as_tensor(), expected.as_tensor())


def test_random_angles_fill_their_range_and_occur_with_their_probability() -> None:
    transform = RandInPlaneRotated("image", degrees=20.0, prob=0.25).set_random_state(seed=0)
    angles, happened = [], 0
    for _ in range(2000):
        transform.randomize()
        angles.append(transform.angle_degrees)
        happened += transform._do_transform
    assert -20 <= min(angles) < -19
    assert 19 < max(angles) <= 20
    # Standard deviation of the share is 0.0097: five of them.
    assert happened / 2000 == pytest.approx(0.25, abs=0.05)


def test_probability_zero_leaves_the_volume() -> None:
    data = sample()
    result = RandInPlaneRotated("image", degrees=20.0, prob=0.0)(data)
    assert result["image"] is data["image"]


def test_seed_is_a_function_of_its_three_numbers_and_differs_between_them() -> None:
    seeds = {seed_of(s, e, i) for s in range(6) for e in range(6) for i in range(30)}
    assert len(seeds) == 6 * 6 * 30
    assert all(0 <= seed < 2**32 for seed in seeds)
    # Golden: a resumed or repeated run on another machine must draw the same.
    assert seed_of(0, 0, 0) == 2968811710
    assert seed_of(42, 3, 17) == 3348264687


def augmented(seed: int, epoch: int, index: int) -> dict[str, Any]:
    chain = build_augmentation(intensity_scale=0.1, intensity_shift=0.1)
    chain.set_random_state(seed=seed_of(seed, epoch, index))
    return chain(sample())


def test_randomness_is_a_function_of_seed_epoch_and_index_only() -> None:
    chain = build_augmentation(intensity_scale=0.1, intensity_shift=0.1)
    np.random.seed(1)
    torch.manual_seed(1)
    for _ in range(3):  # what was drawn before does not matter
        chain(sample())
    chain.set_random_state(seed=seed_of(7, 1, 2))
    again, first = chain(sample()), augmented(7, 1, 2)
    assert torch.equal(again["image"].as_tensor(), first["image"].as_tensor())
    assert torch.equal(again["label"].as_tensor(), first["label"].as_tensor())
    assert again["case"] == "case_000"


@pytest.mark.parametrize("other", [(8, 1, 2), (7, 2, 2), (7, 1, 3)])
def test_randomness_differs_between_seeds_epochs_and_indices(other: tuple[int, int, int]) -> None:
    first, second = augmented(7, 1, 2)["image"], augmented(*other)["image"]
    assert not torch.equal(first.as_tensor(), second.as_tensor())


def test_global_generators_are_not_touched() -> None:
    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[union-attr]
    augmented(0, 0, 0)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_image_and_label_stay_on_top_of_each_other() -> None:
    data = sample()
    data["image"] = MetaTensor(data["label"].as_tensor().float())
    chain = build_augmentation(rotation_probability=0.0)
    for index in range(8):
        result = chain.set_random_state(seed=index)(data)
        assert torch.equal(result["image"].as_tensor(), result["label"].float().as_tensor())


def test_flips_follow_their_axes_and_occur_independently() -> None:
    chain = build_augmentation(rotation_degrees=0.0)
    image = sample()["image"].as_tensor()
    variants = {
        "none": image,
        "x": image.flip(1),
        "y": image.flip(2),
        "both": image.flip(1, 2),
    }
    seen = set()
    for index in range(40):
        result = chain.set_random_state(seed=seed_of(0, 0, index))(sample())["image"].as_tensor()
        seen |= {name for name, variant in variants.items() if torch.equal(result, variant)}
    assert seen == set(variants)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirroring_draws_and_mirrors_as_monai_does(axis: int) -> None:
    data, happened = sample(), 0
    for seed in range(20):
        ours = RandMirrored(["image", "label"], axis=axis, prob=0.5).set_random_state(seed=seed)
        theirs = RandFlipd(["image", "label"], prob=0.5, spatial_axis=axis)
        expected, found = theirs.set_random_state(seed=seed)(data), ours(data)
        for key in ("image", "label"):
            assert torch.equal(found[key].as_tensor(), expected[key].as_tensor())
            assert found[key].is_contiguous()
            assert torch.equal(found[key].affine, data[key].affine)
        happened += not torch.equal(found["image"].as_tensor(), data["image"].as_tensor())
    assert 0 < happened < 20


def test_intensity_changes_stay_in_their_range_and_off_the_label() -> None:
    chain = build_augmentation(
        rotation_degrees=0.0, flip_probability=0.0, intensity_scale=0.1, intensity_shift=0.05
    )
    data = sample()
    image, factors, shifts = data["image"].as_tensor().double(), [], []
    for index in range(50):
        result = chain.set_random_state(seed=index)(data)
        assert torch.equal(result["label"].as_tensor(), data["label"].as_tensor())
        found = result["image"].as_tensor().double()
        factor = (found.max() - found.min()) / (image.max() - image.min())
        factors.append(factor.item())
        shifts.append((found - factor * image).mean().item())
    # 1e-6: float32 of values near 1. The range must also be filled, not only kept.
    assert 0.9 - 1e-6 <= min(factors) < 0.92
    assert 1.08 < max(factors) <= 1.1 + 1e-6
    assert -0.05 - 1e-6 <= min(shifts) < -0.04
    assert 0.04 < max(shifts) <= 0.05 + 1e-6


def test_everything_off_is_the_identity() -> None:
    chain = build_augmentation(rotation_degrees=0.0, flip_axes=())
    assert chain.transforms == ()
    data = sample()
    assert chain(data)["image"] is data["image"]


def test_image_alone_can_be_augmented() -> None:
    chain = build_augmentation(keys=("image",)).set_random_state(seed=1)
    assert chain({"image": sample()["image"]})["image"].shape == (2, *SHAPE)


def test_sample_is_not_changed() -> None:
    chain = build_augmentation(
        flip_probability=1.0, intensity_scale=0.1, intensity_shift=0.1
    ).set_random_state(seed=1)
    data, twin = sample(), sample()
    chain(data)
    for key in ("image", "label"):
        assert torch.equal(data[key].as_tensor(), twin[key].as_tensor())
        assert torch.equal(data[key].affine, twin[key].affine)
        assert data[key].applied_operations == []


# ---- the whole chain ----------------------------------------------------------------------------


def off(*steps: str) -> dict[str, float]:
    return {f"{step}_probability".removeprefix("_"): 0.0 for step in steps}


NO_DEFORMATION = off("", "elastic")
NO_APPEARANCE = off("noise", "blur", "brightness", "offset", "contrast", "gamma", "low_resolution")


def test_stages_without_probability_add_nothing() -> None:
    values = build_settings(preset("original")).model_dump()["augmentation"]
    assert {"deformation", "appearance"} <= values.keys()
    before = {name: values[name] for name in values.keys() - {"deformation", "appearance"}}
    for chain, other in zip(
        build_augmentation(**values).transforms,
        build_augmentation(**before).transforms,
        strict=True,
    ):
        assert type(chain) is type(other)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"deformation": {**NO_DEFORMATION, "foreground_probability": 1.0}}, []),
        ({"deformation": {**NO_DEFORMATION, "probability": 0.1}}, [RandDeformedd]),
        ({"deformation": {**NO_DEFORMATION, "elastic_probability": 0.1}}, [RandDeformedd]),
        ({"deformation": {**NO_DEFORMATION, "patch_size": [4, 4, 4]}}, [RandDeformedd]),
        ({"appearance": NO_APPEARANCE}, []),
        ({"appearance": {**NO_APPEARANCE, "gamma_probability": 0.1}}, [RandAppearanced]),
    ],
    ids=["foreground", "probability", "elastic", "patch", "no_appearance", "gamma"],
)
def test_a_stage_adds_its_step_where_it_has_something_to_do(
    settings: dict[str, Any], expected: list[type]
) -> None:
    chain = build_augmentation(rotation_degrees=0.0, flip_axes=(), **settings)
    assert [type(step) for step in chain.transforms] == expected


def test_the_order_lets_the_background_be_known_where_it_is_asked_for() -> None:
    chain = build_augmentation(
        flip_axes=(0,),
        intensity_scale=0.1,
        intensity_shift=0.1,
        deformation={"probability": 1.0, "patch_size": [4, 4, 4]},
        appearance={"noise_probability": 1.0},
    )
    assert [type(step) for step in chain.transforms] == [
        RandDeformedd,
        RandInPlaneRotated,
        RandMirrored,
        RandAppearanced,
        RandScaleIntensityd,
        RandShiftIntensityd,
    ]


FULL = {
    "flip_axes": (0, 1, 2),
    "deformation": {"probability": 1.0, "elastic_probability": 1.0, "patch_size": [6, 8, 4]},
    "appearance": dict.fromkeys(NO_APPEARANCE, 1.0),
}


def test_the_full_chain_is_a_function_of_its_seed_and_leaves_its_sample() -> None:
    data, twin = sample(), sample()
    first, again, other = (
        build_augmentation(**FULL).set_random_state(seed=seed)(data) for seed in (5, 5, 6)
    )
    assert first.keys() == data.keys()
    assert first["image"].shape == (2, 6, 8, 4)
    for key in ("image", "label"):
        assert torch.equal(first[key].as_tensor(), again[key].as_tensor())
        assert torch.equal(data[key].as_tensor(), twin[key].as_tensor())
    assert not torch.equal(first["image"].as_tensor(), other["image"].as_tensor())


def test_the_full_chain_keeps_background_exact_in_patches_within_a_brain() -> None:
    image = random_image((24, 24, 24)) + 1
    image[:, :4] = 0  # background at one face only, which most patches do not touch
    data = {"image": image, "label": random_label((24, 24, 24))}
    appearance = {**NO_APPEARANCE, "noise_probability": 1.0, "blur_probability": 1.0}
    chain = build_augmentation(
        rotation_degrees=0.0,
        flip_axes=(0, 1, 2),
        deformation={**NO_DEFORMATION, "patch_size": [12, 12, 12]},
        appearance=appearance,
    )
    shares = []
    for seed in range(20):
        planes = (chain.set_random_state(seed=seed)(data)["image"] == 0).all(0)
        assert torch.equal(planes, planes[:, :1, :1].expand_as(planes))
        shares.append(planes.float().mean().item())
    assert min(shares) == 0 < max(shares)
