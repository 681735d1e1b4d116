"""The border crop: slices, the affine, lazy execution, and an inverse that loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from transforms.geometry import (
    ORIENTATION,
    BorderCrop,
    BorderCropd,
    BrainBoxd,
    border_crop,
    border_restore,
    border_slices,
)

MARGINS = ((1, 2), (0, 3), (2, 0))
SHAPE = (7, 9, 8)
INSIDE = (slice(1, 5), slice(0, 6), slice(2, 8))
# Anisotropic, with flipped and swapped axes, and off the origin.
AFFINE = np.array(
    [[0.0, -1.5, 0.0, 31.0], [0.9, 0.0, 0.0, -12.5], [0.0, 0.0, -2.5, 40.0], [0.0, 0.0, 0.0, 1.0]]
)


def numbered(*, channels: int = 2) -> torch.Tensor:
    """A volume in which every voxel has its own number."""
    return torch.arange(channels * 7 * 9 * 8, dtype=torch.float32).reshape(channels, *SHAPE)


def tracked(volume: torch.Tensor) -> MetaTensor:
    return MetaTensor(volume.clone(), affine=torch.tensor(AFFINE))


def test_orientation_is_that_of_brats() -> None:
    assert ORIENTATION == "LPS"


def test_slices_of_the_article_keep_144_of_155_slices() -> None:
    slices = border_slices((240, 240, 155), ((8, 8), (8, 8), (6, 5)))
    assert slices == (slice(8, 232), slice(8, 232), slice(6, 150))


def test_margin_larger_than_the_volume_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"\(\(8, 8\), \(1, 1\)\).*shape \(16, 9\)"):
        border_slices((16, 9), ((8, 8), (1, 1)))


@pytest.mark.parametrize("margins", [((1, 1),), ((1, 1), (0,)), ((1, 1), (-1, 0))])
def test_margins_that_are_not_a_pair_per_axis_are_refused(
    margins: tuple[tuple[int, ...], ...],
) -> None:
    with pytest.raises(ValueError, match="one \\(start, end\\) pair"):
        border_slices((9, 9), margins)
    with pytest.raises(ValueError, match="one \\(start, end\\) pair"):
        border_restore(torch.zeros(1, 9, 9), margins)


def test_crop_keeps_the_inside_of_every_channel() -> None:
    volume = numbered()
    assert torch.equal(border_crop(volume, MARGINS), volume[(slice(None), *INSIDE)])


def test_restore_is_the_inverse_where_the_border_is_background() -> None:
    label = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    label[(slice(None), *INSIDE)] = torch.randint(0, 4, (1, 4, 6, 6), dtype=torch.uint8)
    restored = border_restore(border_crop(label, MARGINS), MARGINS)
    assert restored.dtype == torch.uint8
    assert torch.equal(restored, label)


def test_restore_fills_the_border_with_zero() -> None:
    restored = border_restore(torch.ones(1, 4, 6, 6), MARGINS)
    assert restored.shape == (1, *SHAPE)
    assert restored.sum() == 4 * 6 * 6
    assert restored[(slice(None), *INSIDE)].all()


def test_functions_give_plain_tensors_whose_affine_cannot_be_wrong() -> None:
    cropped = border_crop(tracked(numbered()), MARGINS)
    assert type(cropped) is torch.Tensor
    assert type(border_restore(MetaTensor(cropped), MARGINS)) is torch.Tensor


def test_transform_crops_as_the_function() -> None:
    volume = numbered()
    cropped = BorderCrop(MARGINS)(tracked(volume))
    assert torch.equal(cropped.as_tensor(), border_crop(volume, MARGINS))


def test_transform_refuses_a_volume_smaller_than_its_margins() -> None:
    with pytest.raises(ValueError, match=r"leave nothing of a volume of shape \(3, 9, 8\)"):
        BorderCrop(MARGINS)(MetaTensor(torch.zeros(1, 3, 9, 8)))


def test_voxels_keep_their_world_coordinates() -> None:
    volume = numbered()
    cropped = BorderCropd("image", MARGINS)({"image": tracked(volume)})["image"]
    for index in [(0, 0, 0), (3, 5, 5), (2, 0, 4)]:
        value = cropped.as_tensor()[(0, *index)]
        before = (volume[0] == value).nonzero()[0].double()
        world_before = torch.tensor(AFFINE) @ torch.cat([before, torch.ones(1)])
        world_after = cropped.affine @ torch.tensor([*index, 1.0], dtype=torch.float64)
        # Only sums and products of numbers with few digits: rounding of float64.
        torch.testing.assert_close(world_after, world_before, rtol=0, atol=1e-12)


def test_lazy_gives_the_same_volume_and_affine_as_eager() -> None:
    eager = BorderCropd("image", MARGINS)({"image": tracked(numbered())})["image"]
    transform = BorderCropd("image", MARGINS, lazy=True)
    pending = transform({"image": tracked(numbered())})["image"]
    assert len(pending.pending_operations) == 1
    assert pending.peek_pending_shape() == (4, 6, 6)
    lazy = Compose([BorderCropd("image", MARGINS)], lazy=True)({"image": tracked(numbered())})
    assert torch.equal(lazy["image"].as_tensor(), eager.as_tensor())
    torch.testing.assert_close(lazy["image"].affine, eager.affine, rtol=0, atol=0)


def test_two_lazy_crops_use_the_shape_that_is_pending() -> None:
    margins = ((1, 1), (1, 1), (1, 1))
    chain = [BorderCropd("image", margins), BorderCropd("image", margins)]
    lazy = Compose(chain, lazy=True)({"image": tracked(numbered())})["image"]
    assert torch.equal(lazy.as_tensor(), numbered()[:, 2:-2, 2:-2, 2:-2])


def test_inverse_of_a_chain_restores_label_and_affine() -> None:
    label = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    label[(slice(None), *INSIDE)] = 3
    chain = Compose([BorderCropd(["image", "label"], MARGINS)])
    there = chain({"image": tracked(numbered()), "label": tracked(label)})
    back = chain.inverse(there)
    assert torch.equal(back["label"].as_tensor(), label)
    assert back["label"].dtype == torch.uint8
    assert back["image"].shape[1:] == SHAPE
    np.testing.assert_allclose(back["label"].affine, AFFINE, rtol=0, atol=1e-12)
    assert back["label"].applied_operations == []


def test_missing_key_is_an_error_unless_allowed() -> None:
    data = {"image": tracked(numbered())}
    with pytest.raises(KeyError, match="label"):
        BorderCropd(["image", "label"], MARGINS)(data)
    allowed = BorderCropd(["image", "label"], MARGINS, allow_missing_keys=True)(data)
    assert allowed["image"].shape[1:] == (4, 6, 6)


def test_input_is_not_changed() -> None:
    image = tracked(numbered())
    data = {"image": image}
    BorderCropd("image", MARGINS)(data)
    assert data["image"] is image
    assert torch.equal(image.as_tensor(), numbered())
    np.testing.assert_array_equal(image.affine, AFFINE)
    assert image.applied_operations == []


def test_brain_box_without_a_brain_is_an_error() -> None:
    data = {"image": tracked(torch.zeros(2, *SHAPE))}
    with pytest.raises(ValueError, match=r"'image' of shape \(2, 7, 9, 8\) has no voxel above 0"):
        BrainBoxd(["image"], source_key="image")(data)


def test_brain_box_keeps_any_channel_and_inverts() -> None:
    image = torch.zeros(2, *SHAPE)
    image[0, 2, 3, 1], image[1, 5, 8, 4] = 3, 4
    chain = Compose([BrainBoxd(["image", "label"], source_key="image")])
    there = chain({"image": tracked(image), "label": tracked(numbered(channels=1))})
    assert torch.equal(there["image"].as_tensor(), image[:, 2:6, 3:, 1:5])
    assert torch.equal(there["label"].as_tensor(), numbered(channels=1)[:, 2:6, 3:, 1:5])
    assert torch.equal(chain.inverse(there)["image"].as_tensor(), image)
