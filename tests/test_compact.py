"""A case without its background comes back to the last bit, and takes the memory that is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from pipeline.data.compact import (
    CPU,
    MAX_LEVEL,
    CompactTensor,
    compact,
    compact_case,
    restore_case,
)

SHAPE = (2, 7, 8, 9)
BOX = (slice(None), slice(1, 4), slice(2, 8), slice(0, 5))


def volume_of(values: torch.Tensor) -> torch.Tensor:
    """Return zeros with `values` in the box."""
    volume = torch.zeros(SHAPE, dtype=values.dtype)
    volume[BOX] = values
    return volume


def levels(divisor: int, *, highest: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = volume_of(torch.zeros(1))[BOX].shape
    drawn = torch.randint(1, (highest or divisor) + 1, size, generator=generator)
    return (drawn.double() / divisor).float()


def assert_same_bits(left: torch.Tensor, right: torch.Tensor) -> None:
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    assert left.contiguous().numpy().tobytes() == right.contiguous().numpy().tobytes()


@pytest.mark.parametrize("divisor", [1, 10, 1000, 10_000])
def test_levels_take_two_bytes_and_come_back_to_the_last_bit(divisor: int) -> None:
    volume = volume_of(levels(divisor, highest=10_000))
    kept = compact(volume, divisor=divisor)
    assert (kept.values.dtype, kept.divisor) == (torch.int16, divisor)
    assert kept.nbytes == 2 * volume[BOX].numel()
    assert_same_bits(kept.restore(), volume)


@pytest.mark.parametrize("divisor", [1, 10, 1000, 10_000])
def test_another_device_gets_the_same_bits(divisor: int) -> None:
    for volume in (volume_of(levels(divisor, highest=10_000)), volume_of(off_by_a_bit())):
        kept = compact(volume, divisor=divisor)
        assert_same_bits(kept._whole_on(CPU), volume)  # by torch, as on a GPU
        assert kept.restore(torch.device("meta")).is_meta


def test_every_level_of_the_article_comes_back() -> None:
    # As `min_max_normalize` makes them: a quotient in float64, rounded to float32.
    all_levels = torch.from_numpy((np.arange(1001) / 1000.0).astype(np.float32))
    kept = compact(all_levels.reshape(1, 7, 11, 13), divisor=1000)
    assert kept.divisor == 1000
    assert_same_bits(kept.restore().flatten(), all_levels)


def off_by_a_bit() -> torch.Tensor:
    values = levels(1000)
    values[0, 1, 2, 3] = torch.nextafter(values[0, 1, 2, 3], torch.tensor(2.0))
    return values


@pytest.mark.parametrize(
    "values",
    [
        off_by_a_bit(),
        levels(1000).sub(0.4321),
        levels(1000).index_fill(1, torch.tensor(1), -0.0),
        levels(1000).index_fill(1, torch.tensor(2), torch.nan),
        levels(1000).index_fill(1, torch.tensor(2), -torch.inf),
        levels(1000).index_fill(1, torch.tensor(0), (MAX_LEVEL + 1) / 1000),
        levels(1000).index_fill(1, torch.tensor(0), 3e38),
        levels(1000).double(),
        levels(1).to(torch.uint8),
    ],
    ids=[
        "an ulp",
        "z-score",
        "-0.0",
        "NaN",
        "infinity",
        "too high",
        "overflow",
        "float64",
        "label",
    ],
)
def test_what_levels_cannot_tell_is_kept_as_it_is(values: torch.Tensor) -> None:
    volume = volume_of(values)
    kept = compact(volume, divisor=1000)
    assert kept.divisor is None
    assert kept.nbytes == values.nbytes
    assert_same_bits(kept.restore(), volume)


@pytest.mark.parametrize("corner", [(0, 0, 0), (6, 7, 8), (3, 0, 8)])
def test_the_box_is_the_smallest_one(corner: tuple[int, int, int]) -> None:
    volume = torch.zeros(SHAPE)
    volume[1][corner] = 3.0
    kept = compact(volume)
    assert kept.start == corner
    assert tuple(kept.values.shape) == (2, 1, 1, 1)
    assert_same_bits(kept.restore(), volume)


def test_a_box_is_what_a_naive_search_finds() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        volume = (torch.rand(SHAPE, generator=generator) > 0.99).float()
        kept = compact(volume)
        places = np.argwhere(volume.numpy().any(axis=0))
        if len(places):
            assert kept.start == tuple(places.min(axis=0))
            ends = np.add(kept.start, kept.values.shape[1:])
            assert tuple(ends) == tuple(places.max(axis=0) + 1)
        assert_same_bits(kept.restore(), volume)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_nothing_but_background_takes_nothing(dtype: torch.dtype) -> None:
    volume = torch.zeros(SHAPE, dtype=dtype)
    kept = compact(volume)
    assert kept.nbytes == 0
    assert_same_bits(kept.restore(), volume)


def test_a_volume_whose_axes_are_swapped_in_memory() -> None:
    volume = volume_of(levels(1000)).permute(0, 3, 1, 2)
    assert not volume.is_contiguous()
    assert_same_bits(compact(volume, divisor=1000).restore(), volume)


@pytest.mark.parametrize("divisor", [1000, 7])
def test_the_whole_volume_is_not_held_on_to(divisor: int) -> None:
    values = compact(volume_of(levels(1000)), divisor=divisor).values
    assert values.untyped_storage().nbytes() == values.nbytes
    assert values.is_contiguous()


def test_what_is_restored_is_writable_memory_of_its_own() -> None:
    volume = volume_of(levels(1000))
    kept = compact(volume, divisor=1000)
    kept.restore().fill_(5.0)
    assert_same_bits(kept.restore(), volume)


# ---- Metadata -----------------------------------------------------------------------------------


def tracked() -> MetaTensor:
    volume = MetaTensor(volume_of(levels(1000)), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    volume.meta["filename_or_obj"] = "a.nii.gz"
    volume.push_applied_operation({"class": "Crop", "extra_info": {"cropped": [1, 2]}})
    return volume


def test_metadata_and_trace_come_back() -> None:
    volume = tracked()
    restored = compact(volume, divisor=1000).restore()
    assert isinstance(restored, MetaTensor)
    assert restored.meta["filename_or_obj"] == "a.nii.gz"
    assert torch.equal(restored.affine, volume.affine)
    assert restored.applied_operations == volume.applied_operations


def test_what_follows_adds_nothing_to_the_kept_trace() -> None:
    kept = compact(tracked(), divisor=1000)
    restored = kept.restore()
    assert isinstance(restored, MetaTensor)
    restored.push_applied_operation({"class": "Flip"})
    restored.affine = torch.eye(4)
    restored.meta["more"] = 1
    again = kept.restore()
    assert isinstance(again, MetaTensor)
    assert [entry["class"] for entry in again.applied_operations] == ["Crop"]
    assert again.affine[0, 0] == 2.0
    assert "more" not in again.meta


def test_a_tensor_without_metadata_stays_one() -> None:
    assert type(compact(volume_of(levels(1000))).restore()) is torch.Tensor


# ---- Cases --------------------------------------------------------------------------------------


def test_a_case_is_compact_in_its_volumes_alone() -> None:
    case: dict[str, Any] = {
        "image": tracked(),
        "label": volume_of(levels(3).to(torch.uint8)),
        "case": "case_000",
        "weight": torch.ones(3),
    }
    kept = compact_case(case, divisor=1000)
    assert isinstance(kept["image"], CompactTensor)
    assert isinstance(kept["label"], CompactTensor)
    assert kept["case"] == "case_000"
    assert kept["weight"] is case["weight"]
    restored = restore_case(kept)
    assert restored.keys() == case.keys()
    for key in ("image", "label"):
        assert_same_bits(torch.as_tensor(restored[key]), torch.as_tensor(case[key]))
