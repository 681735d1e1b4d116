from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import (
    AFFINE,
    LABELS,
    MODALITIES,
    SHAPE,
    CaseFactory,
    CohortFactory,
    nested_label,
    save_nifti,
)

from pipeline.data.case_checks import CHECKS
from pipeline.data.content import CaseContent, read_content
from pipeline.data.datalist import Case, DataList, read_datalist
from pipeline.data.integrity import check_case, check_datalist
from pipeline.errors import Problem

NO_CROP = ((0, 0), (0, 0), (0, 0))


def only(problems: list[Problem], kind: str, severity: str = "error") -> Problem:
    (problem,) = problems
    assert (problem.kind, problem.severity) == (kind, severity), problem
    assert problem.expected
    assert problem.remedy
    return problem


def change_label(case: Case, *, from_value: int, to_value: int) -> None:
    assert case.label is not None
    label = np.asarray(nib.load(case.label).dataobj).copy()
    label[label == from_value] = to_value
    save_nifti(case.label, label)


def datalist_of(*training: Case, **sections: tuple[Case, ...]) -> DataList:
    return DataList(
        path=Path("list.json"),
        name="tests",
        modalities=MODALITIES,
        labels=LABELS,
        regions={"WT": tuple(LABELS)[1:]},
        training=training,
        validation=sections.get("validation", ()),
        testing=sections.get("testing", ()),
    )


# --- one case ----------------------------------------------------------------------------------


def test_a_sound_case_has_no_problems(case_factory: CaseFactory) -> None:
    assert check_case(case_factory(), border_crop=NO_CROP) == []
    assert check_case(case_factory("unlabelled", labelled=False)) == []


def test_every_damaged_file_is_listed_and_the_others_are_still_checked(
    case_factory: CaseFactory,
) -> None:
    case = case_factory()
    case.images[0].unlink()
    case.images[1].write_bytes(b"")
    change_label(case, from_value=2, to_value=7)
    change_label(case, from_value=1, to_value=9)
    found = [(problem.kind, problem.file) for problem in check_case(case)]
    assert found == [
        ("missing-file", "case_000_flair.nii.gz"),
        ("file-type", "case_000_t1.nii.gz"),
        ("label-values", "case_000_seg.nii.gz"),
    ]


def test_a_case_of_which_nothing_can_be_read(case_factory: CaseFactory) -> None:
    case = case_factory()
    for path in (*case.images, case.label):
        assert path is not None
        path.unlink()
    assert [problem.kind for problem in check_case(case)] == ["missing-file"] * 5


def test_another_grid(case_factory: CaseFactory) -> None:
    case = case_factory()
    save_nifti(case.images[3], np.asarray(nib.load(case.images[3]).dataobj), np.diag([1, 1, 1, 1]))
    problem = only(check_case(case), "different-grid")
    assert problem.file == "case_000_t2.nii.gz"
    assert "LPS" in problem.expected
    assert "RAS" in problem.found


def test_non_finite_voxels(case_factory: CaseFactory) -> None:
    case = case_factory()
    volume = nib.load(case.images[1]).get_fdata()
    volume[0, 0, :3] = np.nan
    save_nifti(case.images[1], volume)
    assert only(check_case(case), "non-finite").found.startswith("3 of 1680 voxels")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_accepted_non_finite_voxels_are_a_warning(case_factory: CaseFactory, value: float) -> None:
    case = case_factory()
    volume = nib.load(case.images[1]).get_fdata()
    volume[0, 0, :3] = value
    save_nifti(case.images[1], volume)
    problem = only(
        check_datalist(datalist_of(case), mask_nonfinite=True), "non-finite", severity="warning"
    )
    assert problem.found == "3 of 1680 voxels are NaN or infinite, and are taken for 0"
    assert "--mask-nonfinite" in only(check_datalist(datalist_of(case)), "non-finite").remedy


def test_nothing_but_non_finite_voxels_is_never_accepted(case_factory: CaseFactory) -> None:
    case = case_factory()
    save_nifti(case.images[1], np.full(SHAPE, np.nan))
    problems = check_datalist(datalist_of(case), mask_nonfinite=True)
    assert [(problem.kind, problem.severity) for problem in problems] == [
        ("non-finite", "error"),
        ("constant-image", "warning"),
    ]
    assert problems[0].found == "1680 of 1680 voxels are NaN or infinite"
    assert "nothing else in it" in problems[0].remedy


def test_voxels_taken_for_0_are_what_the_other_checks_see(case_factory: CaseFactory) -> None:
    """NaN among zeros becomes a constant image; and two images that then agree are found."""
    case = case_factory()
    volume = np.zeros(SHAPE)
    volume[4, 4, 4] = np.nan
    save_nifti(case.images[0], volume)
    same = nib.load(case.images[2]).get_fdata()
    same[0, 0, 0] = np.inf  # where the other one has 0
    save_nifti(case.images[3], same)
    found = [
        (problem.kind, problem.file)
        for problem in check_datalist(datalist_of(case), mask_nonfinite=True)
    ]
    assert found == [
        ("same-content", "case_000_t2.nii.gz"),
        ("non-finite", "case_000_flair.nii.gz"),
        ("non-finite", "case_000_t2.nii.gz"),
        ("constant-image", "case_000_flair.nii.gz"),
    ]


def test_one_constant_image_is_a_warning(case_factory: CaseFactory) -> None:
    case = case_factory()
    save_nifti(case.images[2], np.full(SHAPE, 7, dtype=np.int16))
    problem = only(check_case(case), "constant-image", "warning")
    assert problem.file == "case_000_t1ce.nii.gz"
    assert problem.found == "7 in every voxel"


def test_constant_images_alone_are_an_error(case_factory: CaseFactory) -> None:
    case = case_factory()
    for path in case.images:
        save_nifti(path, np.zeros(SHAPE, dtype=np.int16))
    problems = check_case(case)
    assert [problem.kind for problem in problems] == ["constant-image"] * 4
    assert {problem.severity for problem in problems} == {"error"}
    assert "as in all modalities" in problems[0].found


@pytest.mark.parametrize(
    ("listed", "stored"), [((0, 1, 2, 4), 3), ((0, 1, 2, 3), 4)], ids=["3 for 4", "4 for 3"]
)
def test_enhancing_tumour_in_the_other_numbering(
    cohort_factory: CohortFactory, tmp_path: Path, listed: tuple[int, ...], stored: int
) -> None:
    path = cohort_factory(num_cases=1, num_folds=None, label_values=listed)
    document = json.loads(path.read_text())
    document["labels"]["enhancing_tumour"] = listed[3]
    path.write_text(json.dumps(document))
    datalist = read_datalist(path)
    change_label(datalist.training[0], from_value=listed[3], to_value=stored)
    problem = only(check_datalist(datalist), "label-coding")
    assert problem.expected == f"enhancing_tumour coded {listed[3]}, as the data list says"
    assert problem.found == (
        f"no {listed[3]}, but {stored}: enhancing_tumour seems to be coded {stored}"
    )
    # The remedy, taken at its word, is one.
    document["training"][0]["labels"] = {"enhancing_tumour": stored}
    path.write_text(json.dumps(document))
    assert check_datalist(read_datalist(path)) == []


def test_the_nearest_missing_label_is_meant(case_factory: CaseFactory) -> None:
    """With no core (1) either, a 3 still stands for enhancing tumour (4), not for the core."""
    case = case_factory()
    change_label(case, from_value=1, to_value=0)
    change_label(case, from_value=4, to_value=3)
    problem = only(check_case(case), "label-coding")
    assert problem.found == "no 4, but 3: label 3 seems to be coded 3"


def test_unknown_label_values_come_with_a_histogram(case_factory: CaseFactory) -> None:
    case = case_factory()
    assert case.label is not None
    label = nested_label(SHAPE)  # 0..3, and no 4
    label[label == 3] = 4
    label[0, 0, :5] = 3
    label[0, 1, :2] = 250
    save_nifti(case.label, label)
    problem = only(check_case(case), "label-values")
    assert problem.expected == "the values 0, 1, 2, 4"
    assert problem.found == "also 3 in 5 voxels, 250 in 2 voxels"


def test_the_histogram_stays_short(case_factory: CaseFactory) -> None:
    case = case_factory()
    assert case.label is not None
    save_nifti(case.label, np.arange(1680, dtype=np.int16).reshape(SHAPE))
    assert only(check_case(case), "label-values").found.endswith("and 1666 other values")


def test_a_label_that_is_no_whole_number(case_factory: CaseFactory) -> None:
    case = case_factory()
    assert case.label is not None
    label = nib.load(case.label).get_fdata()
    label[label == 4] = 3.9999
    save_nifti(case.label, label)
    assert "3.9999" in only(check_case(case), "not-lossless").found


def test_an_empty_label_is_no_problem(case_factory: CaseFactory) -> None:
    """Cases without tumour exist, and so do cases without enhancing tumour."""
    case = case_factory()
    assert case.label is not None
    save_nifti(case.label, np.zeros(SHAPE, dtype=np.uint8))
    assert check_case(case, border_crop=((1, 1), (1, 1), (1, 1))) == []


def test_tumour_lost_to_the_border_crop(case_factory: CaseFactory) -> None:
    """The tumour is a box of 8 x 10 x 6 voxels from (2, 2, 2); three X-layers of it are cut."""
    problem = only(
        check_case(case_factory(), border_crop=((5, 0), (0, 0), (0, 0))),
        "tumour-cropped",
        "warning",
    )
    ceiling = 2 * 300 / (300 + 480)
    assert problem.found == (
        f"180 of 480 tumour voxels are lost: the whole tumour's Dice can reach {ceiling:.4f} "
        "at most"
    )


def test_the_border_crop_is_meant_in_our_orientation(case_factory: CaseFactory) -> None:
    """Stored the other way round along X, the margin at the start of X cuts the array's end."""
    flipped = AFFINE @ np.diag([-1, 1, 1, 1])
    case = case_factory(affine=flipped)
    assert case.label is not None
    label = np.zeros(SHAPE, dtype=np.uint8)
    label[0, 5, 5] = label[-1, 6, 6] = label[-2, 5, 5] = 1
    save_nifti(case.label, label, flipped)
    start = only(
        check_case(case, border_crop=((2, 0), (0, 0), (0, 0))), "tumour-cropped", "warning"
    )
    assert start.found.startswith("2 of 3 tumour voxels")
    end = only(check_case(case, border_crop=((0, 2), (0, 0), (0, 0))), "tumour-cropped", "warning")
    assert end.found.startswith("1 of 3 tumour voxels")


def test_a_border_crop_that_leaves_nothing(case_factory: CaseFactory) -> None:
    problem = only(check_case(case_factory(), border_crop=((8, 8), (8, 8), (6, 5))), "border-crop")
    assert "(12, 14, 10)" in problem.found


def test_two_modalities_with_the_same_voxels(case_factory: CaseFactory) -> None:
    """Stored with another type, so that only the content can tell."""
    case = case_factory()
    same = nib.load(case.images[0]).get_fdata().astype(np.float32)
    save_nifti(case.images[2], same)
    problem = only(check_case(case), "same-content")
    assert problem.file == "case_000_t1ce.nii.gz"
    assert problem.found == "the same voxels as case_000_flair.nii.gz"


def vessels_in(case: Case, index: int, *, shape: tuple[int, int, int] = (64, 64, 64)) -> None:
    """Write four images of noise of which number `index` has very bright voxels in its middle."""
    random = np.random.default_rng(0)
    for position, path in enumerate(case.images):
        volume = np.zeros(shape, dtype=np.int16)
        volume[2:-2, 2:-2, 2:-2] = random.normal(1000, 100, volume[2:-2, 2:-2, 2:-2].shape)
        if position == index:
            volume[32, 32, 22:42] = volume[33, 32, 22:42] = volume[32, 33, 22:42] = 3000
        save_nifti(path, volume)


@pytest.mark.parametrize("labelled", [True, False])
def test_t1_and_t1ce_exchanged(case_factory: CaseFactory, labelled: bool) -> None:
    case = case_factory(shape=(64, 64, 64), labelled=labelled)
    vessels_in(case, 1)
    problem = only(check_datalist(datalist_of(case)), "modalities-swapped", severity="warning")
    assert problem.file == "case_000_t1ce.nii.gz"
    assert "case_000_t1.nii.gz" in problem.expected
    first, t1, t1ce, last = case.images
    exchanged = replace(case, images=(first, t1ce, t1, last))
    assert check_datalist(datalist_of(exchanged)) == []


def test_exchanged_images_in_one_4d_file(case_factory: CaseFactory) -> None:
    case = case_factory(shape=(64, 64, 64))
    vessels_in(case, 1)
    volumes = np.stack([np.asarray(nib.load(path).dataobj) for path in case.images], axis=-1)
    case = replace(case, images=(save_nifti(case.images[0].with_name("all.nii.gz"), volumes),))
    problem = only(check_datalist(datalist_of(case)), "modalities-swapped", severity="warning")
    assert problem.file == "all.nii.gz[2]"


@pytest.mark.parametrize("index", [0, 2, 3])
def test_bright_voxels_elsewhere_are_no_exchange(case_factory: CaseFactory, index: int) -> None:
    case = case_factory(shape=(64, 64, 64))
    vessels_in(case, index)
    assert check_datalist(datalist_of(case)) == []


def test_an_exchange_is_not_guessed_where_an_image_is_missing_or_differs(
    case_factory: CaseFactory,
) -> None:
    """Without flair, what is second in the list is third in the header."""
    case = case_factory(shape=(64, 64, 64))
    vessels_in(case, 1)
    save_nifti(case.images[1], np.asarray(nib.load(case.images[1]).dataobj)[:-1])
    assert only(check_datalist(datalist_of(case)), "different-grid").file == "case_000_t1.nii.gz"
    case.images[0].unlink()
    kinds = {problem.kind for problem in check_datalist(datalist_of(case))}
    assert kinds == {"missing-file", "different-grid"}


def test_other_modalities_have_no_such_pair(case_factory: CaseFactory) -> None:
    case = case_factory(shape=(64, 64, 64))
    vessels_in(case, 1)
    datalist = replace(datalist_of(case), modalities=("flair", "t1", "adc", "t2"))
    assert check_datalist(datalist) == []


@pytest.mark.parametrize("num_volumes", [3, 5])
def test_a_4d_file_has_one_volume_per_modality(case_factory: CaseFactory, num_volumes: int) -> None:
    case = case_factory()
    volumes = np.random.default_rng(0).integers(0, 9, (*SHAPE, num_volumes)).astype(np.int16)
    case = replace(case, images=(save_nifti(case.images[0].with_name("all.nii.gz"), volumes),))
    problem = only(check_datalist(datalist_of(case)), "modalities")
    assert problem.expected == "4 volumes (flair, t1, t1ce, t2)"
    assert problem.found == str(num_volumes)


def test_each_check_is_listed_once() -> None:
    assert len(set(CHECKS)) == len(CHECKS)


# --- the cases against each other --------------------------------------------------------------


def test_a_sound_list_has_no_problems(cohort_factory: CohortFactory) -> None:
    assert check_datalist(read_datalist(cohort_factory())) == []


def test_a_subject_in_two_folds(case_factory: CaseFactory) -> None:
    first = replace(case_factory("a_0"), subject="anna", fold=0)
    second = replace(case_factory("a_1"), subject="anna", fold=1)
    problem = only(check_datalist(datalist_of(first, second)), "subject-leak")
    assert problem.case == "a_0, a_1"
    assert problem.expected == "all cases of subject anna in one fold or section"
    assert problem.found == "a_0 in fold 0, a_1 in fold 1"


def test_a_subject_twice_in_one_fold_is_fine(case_factory: CaseFactory) -> None:
    first = replace(case_factory("a_0"), subject="anna", fold=1)
    second = replace(case_factory("a_1"), subject="anna", fold=1)
    assert check_datalist(datalist_of(first, second)) == []


@pytest.mark.parametrize("section", ["validation", "testing"])
def test_a_subject_in_training_and_elsewhere(case_factory: CaseFactory, section: str) -> None:
    first = replace(case_factory("a_0"), subject="anna", fold=0)
    second = replace(case_factory("a_1"), subject="anna")
    problem = only(check_datalist(datalist_of(first, **{section: (second,)})), "subject-leak")
    assert problem.found == f"a_0 in fold 0, a_1 in {section}"


def test_the_same_case_under_two_ids(case_factory: CaseFactory) -> None:
    case = case_factory("one")
    copy = replace(case, id="two", subject="two")
    other = case_factory("three")
    problem = only(check_datalist(datalist_of(case, other, copy)), "duplicate-case")
    assert problem.case == "two"
    assert problem.found.startswith(
        "the same voxels as case one: one_flair.nii.gz = one_flair.nii.gz, "
    )
    assert problem.found.count(" = ") == 4


def test_one_shared_image_is_found(case_factory: CaseFactory) -> None:
    first, second = case_factory("one"), case_factory("two")
    second.images[2].write_bytes(first.images[2].read_bytes())
    problem = only(check_datalist(datalist_of(first, second)), "duplicate-case")
    assert problem.found == "the same voxels as case one: two_t1ce.nii.gz = one_t1ce.nii.gz"


def test_constant_images_are_no_duplicates(case_factory: CaseFactory) -> None:
    cases = [case_factory("one"), case_factory("two")]
    for case in cases:
        save_nifti(case.images[0], np.zeros(SHAPE, dtype=np.int16))
    found = [(problem.case, problem.kind) for problem in check_datalist(datalist_of(*cases))]
    assert found == [("one", "constant-image"), ("two", "constant-image")]


def test_errors_come_first_and_all_sections_are_read(case_factory: CaseFactory) -> None:
    warned, missing, empty = (case_factory(name) for name in ("warned", "missing", "empty"))
    save_nifti(warned.images[0], np.zeros(SHAPE, dtype=np.int16))
    missing.images[0].unlink()
    empty.images[0].write_bytes(b"")
    datalist = datalist_of(warned, validation=(missing,), testing=(empty,))
    found = [(problem.case, problem.severity) for problem in check_datalist(datalist)]
    assert found == [("missing", "error"), ("empty", "error"), ("warned", "warning")]


@pytest.mark.parametrize("num_workers", [1, 3, None])
def test_workers_change_nothing(cohort_factory: CohortFactory, num_workers: int | None) -> None:
    datalist = read_datalist(cohort_factory(num_cases=5))
    datalist.training[3].images[0].unlink()
    seen: list[tuple[str, bool]] = []
    problems = check_datalist(
        datalist,
        num_workers=num_workers,
        on_progress=lambda case: seen.append(
            (case.id, threading.current_thread() is threading.main_thread())
        ),
    )
    assert [problem.case for problem in problems] == ["case_003"]
    assert seen == [(case.id, True) for case in datalist.training]


def test_an_interruption_does_not_wait_for_all_cases(
    cohort_factory: CohortFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the first of 20 cases; were all awaited, 20 would have been started."""
    datalist = read_datalist(cohort_factory(num_cases=20))
    started: list[str] = []

    def slow(case: Case, **options: bool) -> tuple[CaseContent, list[Problem]]:
        started.append(case.id)
        time.sleep(0.05)
        return read_content(case, **options)

    def interrupt(case: Case) -> None:
        raise KeyboardInterrupt(case.id)

    monkeypatch.setattr("pipeline.data.integrity.read_content", slow)
    with pytest.raises(KeyboardInterrupt, match="case_000"):
        check_datalist(datalist, num_workers=1, on_progress=interrupt)
    assert len(started) < 20
