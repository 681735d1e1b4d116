"""Deformation beside SciPy and NumPy, and where patches lie."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from transforms.deformation import (
    Deformation,
    RandDeformedd,
    _displacements,
    deform,
)
from transforms.patches import BACKGROUND, Window, crop

SHAPE = (13, 10, 9)


def head(shape: tuple[int, ...] = SHAPE, *, background: float = 0.0) -> torch.Tensor:
    """Return two channels of noise within an ellipsoid, and one value around it."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    noise = np.random.default_rng(5).standard_normal((2, *shape))
    inside = sum(axis**2 for axis in axes) < 0.9
    return torch.from_numpy(np.where(inside, noise, background).astype(np.float32))


def tumour(shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    label[:, 4:8, 3:7, 2:6] = 1
    label[:, 5:7, 4:6, 3:5] = 3
    return label


def sample(shape: tuple[int, ...] = SHAPE) -> dict[str, Any]:
    affine = torch.diag(torch.tensor([-1.0, -2.0, 3.0, 1.0], dtype=torch.float64))
    return {
        "image": MetaTensor(head(shape), affine=affine),
        "label": MetaTensor(tumour(shape), affine=affine),
        "case": "case_000",
    }


def whole(volume: torch.Tensor) -> Window:
    x, y, z = volume.shape[1:]
    return Window((0, 0, 0), (x, y, z))


def deformed(
    image: torch.Tensor, label: torch.Tensor, window: Window | None = None, **changes: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    shown, (mask,) = deform(
        image, [label], deformation=Deformation(**changes), window=window or whole(image)
    )
    return shown, mask


@pytest.mark.parametrize(
    ("angles", "axes"),
    [((90.0, 0.0, 0.0), (1, 2)), ((0.0, 90.0, 0.0), (2, 0)), ((0.0, 0.0, 90.0), (0, 1))],
    ids=["about_x", "about_y", "about_z"],
)
def test_quarter_turns_are_those_of_numpy(
    angles: tuple[float, float, float], axes: tuple[int, int]
) -> None:
    image, label = head((11, 11, 11)), tumour((11, 11, 11))
    shown, mask = deformed(image, label, angles_degrees=angles)
    channel_axes = (axes[0] + 1, axes[1] + 1)
    expected = np.rot90(image.numpy(), 1, channel_axes)
    # Positions of 1e-6 voxels off, times differences of a few standard deviations.
    np.testing.assert_allclose(shown, expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(mask, np.rot90(label.numpy(), 1, channel_axes))


def naive(image: torch.Tensor, deformation: Deformation, window: Window) -> np.ndarray:
    """Deform by SciPy in float64, the background put back where the nearest voxel has it."""
    matrix = deformation.to_source()
    half = (np.array(window.size) - 1) / 2
    offset = np.array(window.start) + half - matrix @ half
    background = image[:, 0, 0, 0].double().numpy()

    def resampled(volume: np.ndarray, order: int, rim: int = 0) -> np.ndarray:
        return ndimage.affine_transform(
            np.pad(volume, rim),
            matrix,
            offset + rim,
            output_shape=window.size,
            order=order,
            mode="nearest",
        )

    brain = (image != image[:, :1, :1, :1]).any(0).double().numpy()
    channels = np.stack([resampled(channel, 1) for channel in image.double().numpy()])
    return np.where(resampled(brain, 0, rim=1) > 0, channels, background[:, None, None, None])


@pytest.mark.parametrize("background", [0.0, -3.5])
@pytest.mark.parametrize(
    "window", [Window((0, 0, 0), SHAPE), Window((5, -2, 3), (6, 14, 5))], ids=["whole", "patch"]
)
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.35])
def test_rotation_and_scale_equal_scipy(background: float, window: Window, scale: float) -> None:
    image, label = head(background=background), tumour()
    change = Deformation(angles_degrees=(11.0, -23.0, 7.0), scale=scale)
    shown, _ = deform(image, [label], deformation=change, window=window)
    # Positions in float32, some 1e-6 voxels off.
    np.testing.assert_allclose(shown, naive(image, change, window), rtol=0, atol=2e-5)


def test_a_volume_of_many_pieces_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    image, label = head((20, 21, 22)), tumour((20, 21, 22))
    changes = {"angles_degrees": (5.0, 9.0, 2.0), "elastic_voxels": 1.0, "elastic_seed": 3}
    expected = deformed(image, label, **changes)
    monkeypatch.setattr("transforms.deformation.PIECE_VOXELS", 100)  # less than a plane
    for found, other in zip(deformed(image, label, **changes), expected, strict=True):
        assert torch.equal(found, other)


def test_a_scale_of_two_doubles_a_cube_by_hand() -> None:
    image = torch.zeros(1, 11, 11, 11)
    image[:, 4:7, 4:7, 4:7] = 1
    label = (image > 0).to(torch.uint8) * 2
    shown, mask = deformed(image, label, scale=2.0)
    # From the centre, 5, a voxel reads half as far: 2.5 to 7.5, rounded up at the lower face.
    expected = torch.zeros_like(label)
    expected[:, 3:8, 3:8, 3:8] = 2
    inner = mask[:, 3:8, 3:8, 3:8]
    assert torch.equal(inner, expected[:, 3:8, 3:8, 3:8])
    assert not mask[:, :2].any()
    assert not mask[:, 9:].any()
    assert torch.equal(shown[:, 3:8, 3:8, 3:8], torch.ones(1, 5, 5, 5))


def test_half_the_scale_leaves_the_background_around_the_volume() -> None:
    image = head(background=-3.5)
    label = torch.full((1, *SHAPE), 2, dtype=torch.int16)
    shown, mask = deformed(image, label, scale=0.5)
    assert mask.dtype == torch.int16
    assert mask.unique().tolist() == [0, 2]
    assert (shown[:, :3] == -3.5).all()
    assert (mask[:, :3] == 0).all()


def test_background_stays_exact_and_labels_keep_their_values() -> None:
    image, label = head((20, 20, 20), background=0.3), tumour((20, 20, 20))
    brain = (image != image[:, :1, :1, :1]).any(0)[None]
    for seed in range(5):
        change = Deformation((20.0, 5.0, -9.0), 1.1, elastic_voxels=1.5, elastic_seed=seed)
        shown, (mask, near) = deform(image, [label, brain], deformation=change, window=whole(image))
        assert torch.equal((shown != image[:, :1, :1, :1]).any(0), near[0])
        assert mask.unique().tolist() == [0, 1, 3]


def test_an_image_of_background_alone_stays() -> None:
    image = torch.full((2, *SHAPE), 4.0)
    shown, _ = deformed(image, tumour(), scale=1.2)
    assert torch.equal(shown, image)


def test_bending_is_smooth_and_as_strong_as_asked() -> None:
    size = (40, 33, 20)
    fields = [
        _displacements(
            Deformation(elastic_voxels=1.5, elastic_seed=seed), size, torch.device("cpu")
        )
        for seed in range(200)
    ]
    stack = torch.stack([field for field in fields if field is not None])
    assert stack.shape == (200, 3, *size)
    # 600 vectors: the standard deviation of a standard deviation is 1.5 / sqrt(1200) = 0.043.
    spread = stack.flatten(0, 1).std(0)
    assert spread.min() > 1.5 - 5 * 0.043
    assert spread.max() < 1.5 + 5 * 0.043
    assert stack.diff(dim=2).abs().max() < 1  # nowhere folded


def test_bending_moves_image_and_label_alike() -> None:
    label = tumour()
    image = torch.cat([label.float() + 1, head()[:1]])
    image[:, 0, 0, 0] = 0
    _, mask = deformed(image, label, elastic_voxels=1.0, elastic_seed=2)
    _, twin = deformed(
        image, (image[:1] - 1).clamp(min=0).byte(), elastic_voxels=1.0, elastic_seed=2
    )
    assert torch.equal(mask, twin)
    assert not torch.equal(mask, label)


# ---- the random transform -----------------------------------------------------------------------


def transform(seed: int = 0, **settings: Any) -> RandDeformedd:
    values = {"probability": 1.0, "elastic_probability": 0.5, "elastic_voxels": 1.0, **settings}
    return RandDeformedd(["image", "label"], **values).set_random_state(seed=seed)


def test_nothing_drawn_gives_the_volumes_themselves() -> None:
    data = sample()
    result = transform(probability=0.0, elastic_probability=0.0)(data)
    assert result["image"] is data["image"]
    assert result["label"] is data["label"]
    assert BACKGROUND not in result


def test_metadata_is_kept_and_the_input_is_not_changed() -> None:
    data, twin = sample(), sample()
    result = transform(patch_size=(8, 8, 16))(data)
    for key in ("image", "label"):
        assert isinstance(result[key], MetaTensor)
        assert torch.equal(result[key].affine, twin[key].affine)
        assert result[key].shape[1:] == (8, 8, 16)
        assert result[key].is_contiguous()
        assert torch.equal(data[key].as_tensor(), twin[key].as_tensor())
    assert set(data) == set(twin)
    assert result["image"].dtype == torch.float32
    assert result["label"].dtype == torch.uint8


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    first, again, other = (transform(seed, patch_size=(8, 9, 7))(sample()) for seed in (3, 3, 4))
    for key in ("image", "label"):
        assert torch.equal(first[key].as_tensor(), again[key].as_tensor())
    assert not torch.equal(first["image"].as_tensor(), other["image"].as_tensor())


@pytest.mark.parametrize(
    "settings",
    [
        {"probability": 0.0},
        {"elastic_probability": 0.0},
        {"patch_size": (4, 4, 4)},
        {"patch_size": (4, 4, 4), "foreground_probability": 1.0},
    ],
    ids=["no_rotation", "no_bending", "patch", "foreground"],
)
def test_later_draws_stay_put(settings: dict[str, Any]) -> None:
    reference, changed = transform(), transform(**settings)
    reference(sample())
    changed(sample())
    assert reference.R.random_sample() == changed.R.random_sample()


def test_draws_fill_their_ranges_with_their_probabilities() -> None:
    drawing = transform(probability=0.3, rotation_degrees=30.0, scale=1.4, elastic_probability=0.2)
    angles, scales, bendings = [], [], []
    for _ in range(3000):
        drawing.randomize()
        change = drawing.deformation
        angles.append(change.angles_degrees)
        scales.append(change.scale)
        bendings.append(change.elastic_voxels)
    turned = np.any(angles, axis=1)
    scaled = np.array(scales) != 1
    # Standard deviation of the shares: 0.0084 and less; five of them.
    assert turned.mean() == pytest.approx(0.3, abs=0.042)
    assert scaled.mean() == pytest.approx(0.3, abs=0.042)
    assert (turned & scaled).mean() == pytest.approx(0.09, abs=0.03)
    assert np.mean(np.array(bendings) > 0) == pytest.approx(0.2, abs=0.042)
    assert (np.abs(angles).max(0) <= 30).all()
    assert (np.abs(angles).max(0) > 28).all()
    assert 1 / 1.4 <= min(scales) < 0.73
    assert 1.37 < max(scales) <= 1.4
    # Log-uniform: as often enlarged as made smaller; 900 draws, 0.017 each.
    assert (np.array(scales)[scaled] > 1).mean() == pytest.approx(0.5, abs=0.09)


# ---- patches ------------------------------------------------------------------------------------


def places(shape: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """Return an image whose voxels say where they are, from 1 on, and a label of one voxel."""
    image = torch.stack(torch.meshgrid(*(torch.arange(1.0, n + 1) for n in shape), indexing="ij"))
    image[:, 0, 0, 0] = 0
    label = torch.zeros(1, *shape, dtype=torch.uint8)
    label[0, 1, 9, 4] = 2
    return {"image": image, "label": label}


def patches(number: int, **settings: Any) -> list[dict[str, Any]]:
    cutting = transform(probability=0.0, elastic_probability=0.0, **settings)
    return [cutting(places((12, 11, 5))) for _ in range(number)]


def test_a_patch_without_deformation_is_a_plain_crop_inside_the_volume() -> None:
    data, starts = places((12, 11, 5)), set()
    for patch in patches(200, patch_size=(8, 10, 3), foreground_probability=0.0):
        x, y, z = (int(patch["image"][axis].max()) for axis in range(3))
        window = Window((x - 8, y - 10, z - 3), (8, 10, 3))
        starts.add(window.start)
        assert torch.equal(patch["image"], crop(data["image"], window=window))
        assert torch.equal(patch["label"], crop(data["label"], window=window))
    assert starts == set(itertools.product(range(5), range(2), range(3)))


def test_a_smaller_volume_is_padded_with_its_background_on_both_sides() -> None:
    data = {"image": head(background=-3.5), "label": tumour()}
    cutting = transform(probability=0.0, elastic_probability=0.0, patch_size=(16, 10, 12))
    result = cutting(data)
    expected = np.pad(data["image"].numpy(), ((0, 0), (2, 1), (0, 0), (2, 1)), constant_values=-3.5)
    np.testing.assert_array_equal(result["image"], expected)
    expected = np.pad(data["label"].numpy(), ((0, 0), (2, 1), (0, 0), (2, 1)))
    np.testing.assert_array_equal(result["label"], expected)
    assert result[BACKGROUND].flatten().tolist() == [-3.5, -3.5]


def test_patches_hold_the_tumour_as_often_as_asked() -> None:
    always = patches(50, patch_size=(3, 3, 3), foreground_probability=1.0)
    assert all(patch["label"].any() for patch in always)
    # In the middle, but for Z, where the face is in the way.
    assert all(patch["label"][0, 1, 1, 2] == 2 for patch in always)
    sometimes = patches(400, patch_size=(3, 3, 3), foreground_probability=0.33)
    by_chance = 2 * 2 * 3 / (10 * 9 * 3)
    share = np.mean([bool(patch["label"].any()) for patch in sometimes])
    # Standard deviation 0.024, four of them.
    assert share == pytest.approx(0.33 + 0.67 * by_chance, abs=0.1)


def test_every_voxel_of_tumour_may_be_the_one() -> None:
    data = places((12, 11, 5))
    data["label"][0, 10, 0, 4] = 1
    cutting = transform(
        probability=0.0, elastic_probability=0.0, patch_size=(3, 3, 3), foreground_probability=1.0
    )
    values = [int(cutting(data)["label"].max()) for _ in range(40)]
    assert set(values) == {1, 2}


def test_without_tumour_a_patch_lies_anywhere() -> None:
    cutting = transform(probability=0.0, patch_size=(3, 3, 3), foreground_probability=1.0)
    data = places((12, 11, 5))
    data["label"].zero_()
    found = {float(cutting(data)["image"][0].max()) for _ in range(60)}
    assert len(found) > 5


def test_a_deformed_patch_is_that_part_of_the_deformed_volume_about_its_centre() -> None:
    image, label = head((21, 21, 21)), tumour((21, 21, 21))
    change = {"angles_degrees": (10.0, 20.0, -15.0), "scale": 1.2}
    all_of_it, all_labels = deformed(image, label, **change)
    part, labels = deformed(image, label, Window((6, 7, 8), (9, 7, 5)), **change)
    # Both have the centre 10.
    torch.testing.assert_close(part, all_of_it[:, 6:15, 7:14, 8:13], rtol=0, atol=2e-5)
    assert torch.equal(labels, all_labels[:, 6:15, 7:14, 8:13])


def test_an_image_alone_can_be_deformed() -> None:
    only = RandDeformedd(["image"], probability=1.0, patch_size=(5, 5, 5)).set_random_state(seed=1)
    assert only({"image": head()})["image"].shape == (2, 5, 5, 5)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.9}, "scale must be at least 1; found 0.9"),
        ({"patch_size": (4, 4)}, r"three positive edges; found \(4, 4\)"),
        ({"patch_size": (4, 4, 0)}, r"three positive edges; found \(4, 4, 0\)"),
    ],
    ids=["scale", "two_edges", "no_edge"],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transform(**settings)


@pytest.mark.parametrize(
    ("image", "label"),
    [(head(), tumour((13, 10, 8))), (head()[0], tumour()[0])],
    ids=["size", "dimensions"],
)
def test_volumes_on_other_grids_are_refused(image: torch.Tensor, label: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected volumes \(C, X, Y, Z\) on one grid; found"):
        transform()({"image": image, "label": label})
