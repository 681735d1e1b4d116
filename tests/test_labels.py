"""Label values, class indices and regions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from transforms.labels import (
    ClassesToLabelValues,
    ClassesToLabelValuesd,
    ClassesToRegions,
    ClassesToRegionsd,
    LabelValuesToClasses,
    LabelValuesToClassesd,
    classes_to_regions,
    classes_to_values,
    values_to_classes,
)

BRATS = (0, 1, 2, 4)
REGIONS = ((1, 2, 3), (1, 3), (3,))
LABEL = torch.tensor([[[[0, 1, 2], [4, 4, 0]]]], dtype=torch.int16)
CLASSES = torch.tensor([[[[0, 1, 2], [3, 3, 0]]]], dtype=torch.uint8)

TRANSFORMS: list[tuple[Transform, Transform, torch.Tensor]] = [
    (LabelValuesToClasses(BRATS), LabelValuesToClassesd(["label"], BRATS), LABEL),
    (ClassesToLabelValues(BRATS), ClassesToLabelValuesd(["label"], BRATS), CLASSES),
    (ClassesToRegions(REGIONS), ClassesToRegionsd(["label"], REGIONS), CLASSES),
]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_values_become_their_position(dtype: torch.dtype) -> None:
    found = values_to_classes(LABEL.to(dtype), values=BRATS)
    assert found.dtype == torch.uint8
    assert torch.equal(found, CLASSES)


def test_values_need_not_be_sorted_nor_fit_the_stored_dtype() -> None:
    # 300 is 44 in uint8: it must not match there.
    label = torch.tensor([[[[7, -3, 44]]]], dtype=torch.int16)
    assert values_to_classes(label, values=(44, 7, -3)).flatten().tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match="44: 1 voxels"):
        values_to_classes(torch.tensor([[[[44]]]], dtype=torch.uint8), values=(0, 300))


def test_arrays_of_numpy_are_taken() -> None:
    assert torch.equal(values_to_classes(LABEL.numpy(), values=BRATS), CLASSES)
    unsigned = LABEL.numpy().astype(np.uint16)
    assert torch.equal(values_to_classes(unsigned, values=BRATS), CLASSES)


def test_unknown_values_are_refused_with_their_histogram() -> None:
    label = torch.tensor([[[[0, 3, 5, 3]]]])
    with pytest.raises(ValueError, match=r"among \(0, 1, 2, 4\); found also 3: 2 voxels, 5: 1"):
        values_to_classes(label, values=BRATS)


def test_a_value_that_is_nearly_known_or_not_a_number_is_unknown() -> None:
    label = torch.tensor([[[[3.9999, float("nan"), float("nan")]]]])
    with pytest.raises(ValueError, match=r"nan: 2 voxels, 3\.9999: 1 voxels"):
        values_to_classes(label, values=BRATS)


def test_histogram_of_many_unknown_values_is_cut() -> None:
    with pytest.raises(ValueError, match=r"10: 1 voxels.*and 2 other values"):
        values_to_classes(torch.arange(16).reshape(1, 1, 4, 4), values=BRATS)


@pytest.mark.parametrize("values", [(), (0, 1, 1), range(257)])
def test_values_that_cannot_number_the_classes_are_refused(values: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="1 to 256 different integers"):
        values_to_classes(LABEL, values=values)
    with pytest.raises(ValueError, match="1 to 256 different integers"):
        LabelValuesToClasses(values)


@pytest.mark.parametrize("values", [BRATS, (0, 1, 2, 3), (5, 0, 300, -7)])
def test_round_trip_restores_every_voxel(values: tuple[int, ...]) -> None:
    classes = torch.randint(0, 4, (1, 4, 5, 6), dtype=torch.uint8)
    there = classes_to_values(classes, values=values)
    assert set(there.unique().tolist()) == set(values)
    assert torch.equal(values_to_classes(there, values=values), classes)


def test_values_are_uint8_where_they_fit() -> None:
    assert classes_to_values(CLASSES, values=BRATS).dtype == torch.uint8
    assert classes_to_values(CLASSES, values=(0, 1, 2, 256)).dtype == torch.int32
    assert classes_to_values(CLASSES, values=(-1, 1, 2, 3)).dtype == torch.int32


@pytest.mark.parametrize("index", [4, -1])
def test_class_without_a_value_is_refused(index: int) -> None:
    classes = torch.tensor([[[[0, index]]]])
    with pytest.raises(ValueError, match=rf"0 to 3, .*\(0, 1, 2, 4\); found .*{index}"):
        classes_to_values(classes, values=BRATS)


def test_regions_are_unions_of_classes_and_overlap() -> None:
    found = classes_to_regions(CLASSES, regions=REGIONS)
    assert found.dtype == torch.bool
    assert found.shape == (3, 1, 2, 3)
    assert found[0].flatten().tolist() == [False, True, True, True, True, False]
    assert found[1].flatten().tolist() == [False, True, False, True, True, False]
    assert found[2].flatten().tolist() == [False, False, False, True, True, False]


def test_regions_refuse_one_hot_input_and_empty_regions() -> None:
    with pytest.raises(ValueError, match=r"1 channel; found shape \(4, 2, 2, 2\)"):
        classes_to_regions(torch.zeros(4, 2, 2, 2), regions=REGIONS)
    with pytest.raises(ValueError, match="at least one class"):
        classes_to_regions(CLASSES, regions=((1,), ()))
    with pytest.raises(ValueError, match="at least one class"):
        classes_to_regions(CLASSES, regions=())


@pytest.mark.parametrize(("array_transform", "dict_transform", "label"), TRANSFORMS)
def test_dictionary_transform_equals_the_array_transform(
    array_transform: Transform, dict_transform: Transform, label: torch.Tensor
) -> None:
    result = dict_transform({"label": label, "image": label})
    assert torch.equal(result["label"], array_transform(label))
    assert result["image"] is label


@pytest.mark.parametrize(("array_transform", "dict_transform", "label"), TRANSFORMS)
def test_input_is_not_changed_and_metadata_is_kept(
    array_transform: Transform, dict_transform: Transform, label: torch.Tensor
) -> None:
    affine = torch.diag(torch.tensor([-1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    tracked = MetaTensor(label.clone(), affine=affine)
    result = array_transform(tracked)
    assert isinstance(result, MetaTensor)
    assert torch.equal(result.affine, affine)
    assert torch.equal(tracked.as_tensor(), label)
    assert tracked.dtype == label.dtype
