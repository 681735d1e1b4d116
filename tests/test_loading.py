from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import AFFINE, MODALITIES, SHAPE, CaseFactory, nested_label, save_nifti
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose, LoadImage, Orientationd

from pipeline.data.content import ImageFile, read_content
from pipeline.data.datalist import Case
from pipeline.data.loading import LoadCase, class_indices
from pipeline.data.reading import copy_into_zeros
from pipeline.errors import DataError, Problem
from transforms.labels import values_to_classes


def problems_of(case: Case, *, labels: bool = True) -> tuple[Problem, ...]:
    with pytest.raises(DataError, match=case.id) as caught:
        LoadCase(labels=labels)(case)
    return caught.value.problems


def rewrite(path: Path | None, change: np.ndarray | float, affine: np.ndarray = AFFINE) -> None:
    """Put `change` (a whole volume, or one value for voxel 5, 6, 7) into the file."""
    assert path is not None
    volume = np.asarray(nib.load(path).dataobj)
    if isinstance(change, np.ndarray):
        volume = change
    else:
        volume = volume.astype(np.float32)
        volume[5, 6, 7] = change
    save_nifti(path, volume, affine)


def test_stacks_the_modalities_in_order(case_factory: CaseFactory) -> None:
    case = case_factory()
    item = LoadCase(labels=True)(case)
    assert item["case"] == "case_000"
    assert isinstance(item["image"], MetaTensor)
    assert item["image"].dtype == torch.float32
    assert item["image"].is_contiguous()
    expected = [nib.load(path).get_fdata() for path in case.images]
    np.testing.assert_array_equal(item["image"].numpy(), expected)


def test_the_label_is_class_indices(case_factory: CaseFactory) -> None:
    item = LoadCase(labels=True)(case_factory(label_values=(0, 1, 2, 4)))
    assert isinstance(item["label"], MetaTensor)
    assert item["label"].dtype == torch.uint8
    np.testing.assert_array_equal(item["label"].numpy(), nested_label(SHAPE)[None])


# MONAI makes all its readers; where pydicom is there, that of DICOM misses an optional decoder.
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")
def test_meta_is_what_monai_s_loader_gives(case_factory: CaseFactory) -> None:
    case = case_factory()
    item = LoadCase(labels=True)(case)
    for key, path in (("image", case.images[0]), ("label", case.label)):
        reference = LoadImage(image_only=True, ensure_channel_first=True)(path)
        ours = item[key]
        assert torch.equal(ours.affine, reference.affine)
        assert ours.affine.dtype == reference.affine.dtype
        assert torch.equal(
            torch.as_tensor(ours.meta["original_affine"]),
            torch.as_tensor(reference.meta["original_affine"]),
        )
        assert tuple(ours.meta["spatial_shape"]) == tuple(reference.meta["spatial_shape"])
        assert ours.meta["space"] == reference.meta["space"]


def test_no_path_is_kept(case_factory: CaseFactory, tmp_path: Path) -> None:
    item = LoadCase(labels=True)(case_factory())
    assert item["image"].meta["filename_or_obj"] == "case_000_flair.nii.gz"
    assert item["label"].meta["filename_or_obj"] == "case_000_seg.nii.gz"
    assert str(tmp_path) not in repr(item["image"].meta) + repr(item["label"].meta)


def test_items_collate_and_transform_as_monai_s_do(case_factory: CaseFactory) -> None:
    """RAS is not the files' orientation (LPS): the transform must have the affine to know."""
    orient = Orientationd(
        keys=("image", "label"), axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))
    )
    chain = Compose([LoadCase(labels=True), orient])
    cases = [case_factory("case_a"), case_factory("case_b")]
    batch = list_data_collate([chain(case) for case in cases])
    assert batch["image"].shape == (2, 4, *SHAPE)
    assert batch["label"].shape == (2, 1, *SHAPE)
    assert batch["case"] == ["case_a", "case_b"]
    expected = nib.load(cases[0].images[0]).get_fdata()[::-1, ::-1]
    np.testing.assert_array_equal(batch["image"][0, 0].numpy(), expected)


@pytest.mark.parametrize("num_threads", [1, 2, 7])
@pytest.mark.parametrize("labels", [True, False])
def test_threads_change_nothing(case_factory: CaseFactory, labels: bool, num_threads: int) -> None:
    case = case_factory()
    rewrite(case.images[1], 3.5)
    case.images[2].unlink()
    case.images[3].write_bytes(case.images[3].read_bytes()[:-3])
    content, problems = read_content(case, labels=labels, num_threads=num_threads)
    names = [case.images[0].name, case.images[1].name]
    assert [file.name for file in content.images] == names
    assert [problem.file for problem in problems] == [path.name for path in case.images[2:]]
    assert (content.label is not None) == labels
    for image, path in zip(content.images, case.images, strict=False):
        np.testing.assert_array_equal(image.volume, nib.load(path).get_fdata())
    before = threading.active_count()
    read_content(case, labels=labels, num_threads=num_threads)
    assert threading.active_count() == before


def test_an_error_of_our_own_leaves_a_thread(
    case_factory: CaseFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("pipeline.data.content.read_image", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        read_content(case_factory(), labels=True, num_threads=2)


@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
@pytest.mark.parametrize(
    "dtypes", [("int16", "float32"), (">i2", "float32"), ("float64", "float32"), ("int32",) * 2]
)
@pytest.mark.parametrize("box", [np.s_[1:3, 2:5, 3:4], np.s_[0:0], np.s_[:], np.s_[::3, ::5, ::2]])
def test_copying_into_zeros(
    orders: str, dtypes: tuple[str, str], box: tuple[slice, ...] | slice
) -> None:
    source = np.zeros((4, 6, 5), dtype=dtypes[0], order=orders[0])
    source[box] = np.arange(-60, 60).reshape(source.shape)[box]
    target = np.zeros(source.shape, dtype=dtypes[1], order=orders[1])
    copy_into_zeros(source, target)
    np.testing.assert_array_equal(target, source)


@pytest.mark.parametrize("value", [-0.0, np.nan, 1e-300])
def test_what_is_nearly_zero_is_copied(value: float) -> None:
    source, target = np.zeros((2, 3, 4)), np.zeros((2, 3, 4))
    source[1, 2, 3] = value
    copy_into_zeros(source, target)
    assert target.tobytes() == source.tobytes()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("stored", ["uint8", ">i2", "float32", "float64"])
def test_the_digest_is_that_of_all_voxels_in_the_order_of_a_file(order: str, stored: str) -> None:
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(stored, order=order)
    expected = hashlib.sha256(volume.astype(np.float32).tobytes(order="F")).hexdigest()
    assert ImageFile("a.nii", volume, AFFINE).digest == expected


@pytest.mark.parametrize("values", [(0, 1, 2, 4), (4, 2, 0, 1), (1, 2, 4), (300, -1)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_class_indices_of_the_box_are_those_of_the_whole(
    values: tuple[int, ...], order: str
) -> None:
    inside = np.random.default_rng(0).choice(values, (3, 4, 5))
    mask = np.full((7, 6, 9), 0 if 0 in values else values[1], dtype=np.int32, order=order)
    mask[2:5, 1:5, 3:8] = inside
    for volume in (mask, np.full_like(mask, values[0])):
        found = class_indices(volume, values=values)
        expected = values_to_classes(volume[None], values=values)[0]
        assert (found.dtype, found.flags.c_contiguous) == (np.uint8, True)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("values", [(0, 1), (1, 2)])
def test_unknown_values_are_those_of_the_whole(values: tuple[int, ...]) -> None:
    mask = np.array([0, 0, 1, 7, 7, 0, -3, 0], dtype=np.int32).reshape(2, 2, 2)
    with pytest.raises(ValueError, match="7: 2 voxels") as expected:
        values_to_classes(mask[None], values=values)
    with pytest.raises(ValueError, match="7: 2 voxels") as found:
        class_indices(mask, values=values)
    assert str(found.value) == str(expected.value)


def test_without_labels_the_mask_is_not_opened(case_factory: CaseFactory) -> None:
    case = case_factory()
    assert case.label is not None
    case.label.unlink()
    assert set(LoadCase(labels=False)(case)) == {"image", "case"}


def test_one_4d_file_holds_all_modalities(case_factory: CaseFactory) -> None:
    case = case_factory()
    separate = LoadCase(labels=True)(case)
    volumes = np.stack([np.asarray(nib.load(path).dataobj) for path in case.images], axis=-1)
    path = save_nifti(case.images[0].with_name("all.nii.gz"), volumes)
    item = LoadCase(labels=True)(replace(case, images=(path,)))
    assert torch.equal(item["image"], separate["image"])
    assert item["image"].meta["filename_or_obj"] == "all.nii.gz"


def test_all_missing_and_damaged_files_are_listed(case_factory: CaseFactory) -> None:
    case = case_factory()
    case.images[1].unlink()
    case.images[3].write_bytes(case.images[3].read_bytes()[:-3])
    found = [(problem.case, problem.kind, problem.file) for problem in problems_of(case)]
    assert found == [
        ("case_000", "missing-file", "case_000_t1.nii.gz"),
        ("case_000", "checksum", "case_000_t2.nii.gz"),
    ]


def test_a_case_without_a_label(case_factory: CaseFactory) -> None:
    (problem,) = problems_of(case_factory(labelled=False))
    assert (problem.case, problem.kind) == ("case_000", "missing-label")


@pytest.mark.parametrize("index", [1, 4])
def test_another_shape(case_factory: CaseFactory, index: int) -> None:
    case = case_factory()
    path = (*case.images, case.label)[index]
    rewrite(path, np.zeros((12, 14, 11), dtype=np.uint8))
    (problem,) = problems_of(case)
    assert (problem.case, problem.kind) == ("case_000", "different-grid")
    assert "12x14x10 voxels of 1.2x0.9x2.5 mm, LPS" in problem.expected
    assert "12x14x11 voxels" in problem.found


@pytest.mark.parametrize(
    ("row", "column", "change", "words"),
    [
        (0, 3, 0.01, "origin (31.51, -17.25, 8.00)"),
        (2, 2, 0.1, "1.2x0.9x2.6 mm"),
        (0, 0, 2.4, "RPS"),
    ],
)
@pytest.mark.parametrize("index", [2, 4])
def test_another_affine(
    case_factory: CaseFactory, row: int, column: int, change: float, words: str, index: int
) -> None:
    case = case_factory()
    moved = AFFINE.copy()
    moved[row, column] += change
    path = (*case.images, case.label)[index]
    assert path is not None
    rewrite(path, np.asarray(nib.load(path).dataobj), moved)
    (problem,) = problems_of(case)
    assert problem.kind == "different-grid"
    assert problem.file == path.name
    assert words in problem.found


def test_affines_may_differ_by_rounding(case_factory: CaseFactory) -> None:
    """0.0009 mm is within the tolerance of 0.001 mm, which rewritten headers need."""
    case = case_factory()
    moved = AFFINE.copy()
    moved[0, 3] += 0.0009
    rewrite(case.images[1], np.asarray(nib.load(case.images[1]).dataobj), moved)
    assert LoadCase(labels=True)(case)["image"].shape == (4, *SHAPE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_voxels(case_factory: CaseFactory, value: float) -> None:
    case = case_factory()
    rewrite(case.images[2], value)
    (problem,) = problems_of(case)
    assert (problem.kind, problem.file) == ("non-finite", "case_000_t1ce.nii.gz")
    assert problem.found == "1 of 1680 voxels are NaN or infinite"


def test_values_beyond_float32_are_not_finite(case_factory: CaseFactory) -> None:
    case = case_factory()
    volume = np.full(SHAPE, 1e300)
    rewrite(case.images[0], volume)
    (problem,) = problems_of(case)
    assert problem.found == "1680 of 1680 voxels are NaN or infinite"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_accepted_non_finite_voxels_become_0_and_are_told(
    case_factory: CaseFactory, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    case = case_factory()
    sound = LoadCase(labels=True)(case)["image"]
    rewrite(case.images[2], value)
    item = LoadCase(labels=True, mask_nonfinite=True)(case)
    expected = sound.numpy().copy()
    expected[2, 5, 6, 7] = 0
    np.testing.assert_array_equal(item["image"].numpy(), expected)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "case_000_t1ce.nii.gz: non-finite" in record.message
    assert "1 of 1680 voxels are NaN or infinite, and are taken for 0" in record.message


def test_an_image_of_nothing_else_is_refused_all_the_same(case_factory: CaseFactory) -> None:
    case = case_factory()
    rewrite(case.images[0], np.full(SHAPE, np.nan))
    with pytest.raises(DataError, match="1680 of 1680 voxels are NaN") as caught:
        LoadCase(labels=True, mask_nonfinite=True)(case)
    assert [problem.kind for problem in caught.value.problems] == ["non-finite"]


def test_sound_images_are_not_changed_by_accepting(
    case_factory: CaseFactory, caplog: pytest.LogCaptureFixture
) -> None:
    case = case_factory()
    rewrite(case.images[1], 3.5)  # float32, the others are integers
    strict = LoadCase(labels=True)(case)["image"]
    assert torch.equal(LoadCase(labels=True, mask_nonfinite=True)(case)["image"], strict)
    assert caplog.records == []


def test_an_error_hides_what_was_accepted(case_factory: CaseFactory) -> None:
    """The error lists what is wrong, and not what was asked for."""
    case = case_factory()
    rewrite(case.images[0], np.nan)
    case.images[1].unlink()
    with pytest.raises(DataError, match="missing-file") as caught:
        LoadCase(labels=True, mask_nonfinite=True)(case)
    assert [problem.kind for problem in caught.value.problems] == ["missing-file"]


def test_constant_images_are_told_by_their_modalities(
    case_factory: CaseFactory, caplog: pytest.LogCaptureFixture
) -> None:
    case = case_factory()
    folder = case.images[0].parent / "same_name"
    folder.mkdir()
    # Of the same name as the constant one: only the modality tells which one is meant.
    first = case.images[0].rename(folder / case.images[2].name)
    case = replace(case, images=(first, *case.images[1:]))
    rewrite(case.images[2], np.full(SHAPE, 7, dtype=np.int16))
    LoadCase(labels=False)(case)
    assert caplog.records == []
    item, (warning,) = LoadCase(labels=False, modalities=MODALITIES).with_warnings(case)
    assert set(item) == {"image", "case"}
    assert (warning.case, warning.kind, warning.severity) == (
        "case_000",
        "constant-image",
        "warning",
    )
    assert warning.expected == "more than one intensity in t1ce"
    assert [record.message for record in caplog.records] == [str(warning)]


def test_nothing_but_constant_images_is_an_error(case_factory: CaseFactory) -> None:
    case = case_factory()
    for path in case.images:
        rewrite(path, np.zeros(SHAPE, dtype=np.int16))
    with pytest.raises(DataError, match="found 0 in every voxel, as in all modalities") as caught:
        LoadCase(labels=False, modalities=MODALITIES)(case)
    assert len(caught.value.problems) == 4


def test_a_label_is_never_masked(case_factory: CaseFactory) -> None:
    case = case_factory()
    rewrite(case.label, np.nan)
    with pytest.raises(DataError, match="not-lossless"):
        LoadCase(labels=True, mask_nonfinite=True)(case)


def test_a_label_that_is_no_whole_number(case_factory: CaseFactory) -> None:
    case = case_factory()
    rewrite(case.label, 3.9999)
    (problem,) = problems_of(case)
    assert (problem.case, problem.kind) == ("case_000", "not-lossless")
    assert problem.file == "case_000_seg.nii.gz"
    assert "3.9999" in problem.found


def test_a_float_label_of_whole_numbers_is_read(case_factory: CaseFactory) -> None:
    case = case_factory()
    rewrite(case.label, 4.0)
    assert LoadCase(labels=True)(case)["label"][0, 5, 6, 7] == 3


def test_a_label_value_that_the_list_does_not_have(case_factory: CaseFactory) -> None:
    case = case_factory()
    rewrite(case.label, 5.0)
    (problem,) = problems_of(case)
    assert (problem.case, problem.kind) == ("case_000", "label-values")
    assert problem.file == "case_000_seg.nii.gz"
    assert problem.expected == "the values [0, 1, 2, 4], as the data list says"
    assert "5: 1 voxels" in problem.found


# Resampling


def test_only_images_on_another_grid_are_resampled(case_factory: CaseFactory) -> None:
    """t1 has every second slice only, from the second one on."""
    case = case_factory()
    t1 = np.asarray(nib.load(case.images[1]).dataobj).astype(np.float32)
    coarse = AFFINE @ np.diag([1, 1, 2, 1])
    coarse[:3, 3] = (AFFINE @ (0, 0, 1, 1))[:3]
    save_nifti(case.images[1], t1[:, :, 1::2], coarse)
    assert [problem.kind for problem in problems_of(case, labels=False)] == ["different-grid"]

    item = LoadCase(labels=False, resample_to=0)(case)
    assert item["image"].shape == (4, *SHAPE)
    assert item["image"].is_contiguous()
    found = item["image"][1].numpy()
    # Coordinates come from headers in float32, which move values of 1000 by less than 1e-3.
    np.testing.assert_allclose(found[:, :, 1::2], t1[:, :, 1::2], rtol=0, atol=1e-3)
    between = (t1[:, :, 1:-2:2] + t1[:, :, 3::2]) / 2
    np.testing.assert_allclose(found[:, :, 2::2], between, rtol=0, atol=1e-3)
    # Slice 0 is where t1's first one ends.
    np.testing.assert_allclose(found[:, :, 0], t1[:, :, 1], rtol=0, atol=1e-3)
    for index in (0, 2, 3):
        untouched = np.asarray(nib.load(case.images[index]).dataobj)
        np.testing.assert_array_equal(item["image"][index].numpy(), untouched)


def test_the_result_lies_on_the_grid_of_the_chosen_modality(case_factory: CaseFactory) -> None:
    case = case_factory()
    moved = AFFINE.copy()
    moved[0, 3] += 2.4  # two voxels
    t1 = np.asarray(nib.load(case.images[1]).dataobj)
    save_nifti(case.images[1], t1[:8], moved)
    item = LoadCase(labels=False, resample_to=1)(case)
    assert item["image"].shape == (4, 8, 14, 10)
    np.testing.assert_array_equal(item["image"].affine, nib.load(case.images[1]).affine)
    np.testing.assert_array_equal(item["image"][1].numpy(), t1[:8])
    flair = np.asarray(nib.load(case.images[0]).dataobj)
    # X runs to the left, so the moved grid begins two voxels before flair does.
    np.testing.assert_array_equal(item["image"][0, 2:].numpy(), flair[:6])
    assert not item["image"][0, :2].any()


def test_damaged_voxels_are_refused_before_they_are_resampled(case_factory: CaseFactory) -> None:
    case = case_factory()
    moved = AFFINE.copy()
    moved[0, 3] += 0.5
    rewrite(case.images[2], np.nan, moved)
    with pytest.raises(DataError, match="non-finite") as caught:
        LoadCase(labels=False, resample_to=0)(case)
    assert [problem.kind for problem in caught.value.problems] == ["non-finite"]


def test_accepted_voxels_are_0_before_they_are_resampled(case_factory: CaseFactory) -> None:
    """Interpolated first, one NaN would take its neighbours along."""
    case = case_factory()
    moved = AFFINE.copy()
    moved[0, 3] -= 0.6  # half a voxel, so that each value is the mean of two
    rewrite(case.images[2], np.nan, moved)
    item = LoadCase(labels=False, resample_to=0, mask_nonfinite=True)(case)
    rewrite(case.images[2], 0.0, moved)
    expected = LoadCase(labels=False, resample_to=0)(case)
    assert torch.equal(item["image"], expected["image"])
    assert item["image"].isfinite().all()


def test_labels_are_never_resampled() -> None:
    with pytest.raises(ValueError, match="labels are not resampled"):
        LoadCase(labels=True, resample_to=0)


@pytest.mark.parametrize("index", [-1, 4])
def test_a_modality_that_the_case_does_not_have(case_factory: CaseFactory, index: int) -> None:
    with pytest.raises(ValueError, match=f"case_000: there is no image {index}"):
        LoadCase(labels=False, resample_to=index)(case_factory())


def test_the_error_of_different_grids_names_the_way_out(case_factory: CaseFactory) -> None:
    case = case_factory()
    rewrite(case.images[1], np.zeros((12, 14, 11), dtype=np.uint8))
    (problem,) = problems_of(case, labels=False)
    assert "--resample-to" in problem.remedy


@pytest.mark.real
def test_a_real_case(real_cases: Path) -> None:
    case_id = "BraTS2021_00003"
    paths = [real_cases / case_id / f"{case_id}_{name}.nii.gz" for name in (*MODALITIES, "seg")]
    case = Case(case_id, case_id, tuple(paths[:4]), paths[4], None, (0, 1, 2, 4))
    item = LoadCase(labels=True)(case)
    expected = np.stack([np.asarray(nib.load(path).dataobj) for path in paths[:4]])
    np.testing.assert_array_equal(item["image"].numpy(), expected)
    values = np.asarray(nib.load(paths[4]).dataobj)
    np.testing.assert_array_equal(item["label"][0].numpy() == 3, values == 4)
