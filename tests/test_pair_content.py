"""A prediction against its reference: what fits comes as class indices, what does not is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import AFFINE, LABELS, SHAPE, CaseFactory, nested_label, save_nifti
from image_files import save_itk
from prediction_files import (
    classes_of,
    probabilities_of,
    write_prediction,
    write_probabilities,
    write_record,
)

from pipeline.data.datalist import Case
from pipeline.errors import DataError, Problem
from pipeline.evaluation.pair_content import PairContent, read_pair
from pipeline.evaluation.pairs import find_pairs

# Half precision and float32 headers round.
FLOAT32 = 1e-6
LABEL_VALUES = np.array(tuple(LABELS.values()), dtype=np.int16)


@pytest.fixture
def case(case_factory: CaseFactory) -> Case:
    return case_factory()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "predicted"
    path.mkdir()
    return path


def read(folder: Path, case: Case) -> PairContent:
    (pair,) = find_pairs(folder, [case])
    return read_pair(pair, labels=LABELS)


def problems_of(folder: Path, case: Case) -> tuple[Problem, ...]:
    with pytest.raises(DataError, match=case.id) as caught:
        read(folder, case)
    return caught.value.problems


def test_class_indices_spacing_and_volume(folder: Path, case: Case) -> None:
    write_prediction(folder, case.id, "shifted")
    content = read(folder, case)
    np.testing.assert_array_equal(content.prediction, classes_of("shifted"))
    np.testing.assert_array_equal(content.reference, nested_label(SHAPE))
    assert content.prediction.dtype == content.reference.dtype == np.uint8
    assert (content.num_classes, content.probabilities) == (4, None)
    assert content.spacing_mm == pytest.approx((1.2, 0.9, 2.5), abs=FLOAT32)
    assert content.voxel_ml == pytest.approx(1.2 * 0.9 * 2.5 / 1000, abs=FLOAT32)


def test_a_reference_in_another_format(folder: Path, case: Case, tmp_path: Path) -> None:
    path = save_itk(tmp_path / "reference.nrrd", LABEL_VALUES[nested_label(SHAPE)], AFFINE)
    write_prediction(folder, case.id)
    content = read(folder, replace(case, label=path))
    np.testing.assert_array_equal(content.reference, nested_label(SHAPE))


def test_a_sheared_voxel_has_the_volume_of_its_determinant(
    folder: Path, case_factory: CaseFactory
) -> None:
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5  # makes the second axis longer, and no voxel larger
    case = case_factory(affine=sheared)
    write_prediction(folder, case.id, affine=sheared)
    assert read(folder, case).voxel_ml == pytest.approx(2.7 / 1000, abs=FLOAT32)


def test_a_case_with_its_own_coding(folder: Path, case_factory: CaseFactory) -> None:
    """The reference is in the case's values, the prediction in the header's."""
    case = case_factory(label_values=(0, 1, 2, 3))
    write_prediction(folder, case.id)
    content = read(folder, case)
    np.testing.assert_array_equal(content.prediction, content.reference)


def test_another_coding_of_the_prediction_is_named(folder: Path, case: Case) -> None:
    write_prediction(folder, case.id, values=(0, 1, 2, 3))
    (problem,) = problems_of(folder, case)
    assert (problem.kind, problem.file) == ("label-coding", "predicted/case_000_seg.nii.gz")
    assert problem.expected == "enhancing_tumour coded 4, as the data list says"
    assert problem.found == "no 4, but 3: enhancing_tumour seems to be coded 3"
    assert problem.remedy.startswith("Write the prediction in the values of the data list's header")


def test_the_case_s_own_coding_is_not_the_prediction_s(
    folder: Path, case_factory: CaseFactory
) -> None:
    case = case_factory(label_values=(0, 1, 2, 3))
    write_prediction(folder, case.id, values=(0, 1, 2, 3))
    (problem,) = problems_of(folder, case)
    assert problem.kind == "label-coding"


def test_another_coding_of_the_reference_is_named(folder: Path, case_factory: CaseFactory) -> None:
    case = replace(case_factory(label_values=(0, 1, 2, 3)), label_values=(0, 1, 2, 4))
    write_prediction(folder, case.id)
    (problem,) = problems_of(folder, case)
    assert (problem.kind, problem.file) == ("label-coding", "case_000_seg.nii.gz")
    assert "`labels` of this case in the data list" in problem.remedy


def test_unknown_values_of_the_prediction(folder: Path, case: Case) -> None:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[0, 0, :3] = 7, 7, 9
    save_nifti(folder / "case_000.nii.gz", mask)
    (problem,) = problems_of(folder, case)
    assert problem.kind == "label-values"
    assert problem.found == "also 7 in 2 voxels, 9 in 1 voxels"


@pytest.mark.parametrize(
    ("shape", "shift_mm", "fits"),
    [(SHAPE, 0.0009, True), (SHAPE, 0.002, False), ((12, 14, 9), 0.0, False)],
)
def test_the_grid(
    folder: Path, case: Case, shape: tuple[int, int, int], shift_mm: float, fits: bool
) -> None:
    affine = AFFINE.copy()
    affine[0, 3] += shift_mm
    save_nifti(folder / "case_000.nii.gz", np.zeros(shape, dtype=np.uint8), affine)
    if fits:
        assert read(folder, case).prediction.shape == shape
        return
    (problem,) = problems_of(folder, case)
    assert (problem.kind, problem.file) == ("different-grid", "predicted/case_000.nii.gz")
    assert problem.expected.startswith("the grid of case_000_seg.nii.gz: 12x14x10 voxels")


def test_probabilities_come_channels_first(folder: Path, case: Case) -> None:
    write_prediction(folder, case.id)
    expected = probabilities_of(nested_label(SHAPE), certainty=0.7)
    write_probabilities(folder, case.id, expected)
    found = read(folder, case).probabilities
    assert found is not None
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("certainty", "change", "found"),
    [
        (1.5, None, "1680 of 1680 voxels without"),  # sums to 1, but the rest is negative
        (0.7, np.nan, "1 of 1680 voxels without"),
        (0.7, np.inf, "1 of 1680 voxels without"),
        (0.7, 0.8, "1 of 1680 voxels without"),
    ],
)
def test_values_that_are_no_probabilities(
    folder: Path, case: Case, certainty: float, change: float | None, found: str
) -> None:
    write_prediction(folder, case.id)
    probabilities = probabilities_of(nested_label(SHAPE), certainty=certainty)
    if change is not None:
        probabilities[0, 0, 0, 0] = change
    write_probabilities(folder, case.id, probabilities)
    (problem,) = problems_of(folder, case)
    assert (problem.kind, problem.found) == ("probabilities", found)
    assert problem.file == "predicted/case_000_probabilities.nii.gz"


def test_infinities_that_cancel_are_no_probabilities(folder: Path, case: Case) -> None:
    write_prediction(folder, case.id)
    probabilities = probabilities_of(nested_label(SHAPE), certainty=0.7)
    probabilities[:2, 0, 0, 0] = np.inf, -np.inf
    write_probabilities(folder, case.id, probabilities)
    (problem,) = problems_of(folder, case)
    assert problem.found == "1 of 1680 voxels without"


def test_another_number_of_classes(folder: Path, case: Case) -> None:
    write_prediction(folder, case.id)
    probabilities = probabilities_of(nested_label(SHAPE), certainty=0.7)
    write_probabilities(folder, case.id, probabilities[:3])
    (problem,) = problems_of(folder, case)
    assert (problem.expected, problem.found) == ("4 volumes, one a class", "3")


def test_provenance_comes_along(folder: Path, case: Case) -> None:
    write_prediction(folder, case.id)
    write_record(folder, case.id, True)
    assert read(folder, case).provenance.seen_in_training is True


def test_all_problems_of_a_case_at_once(folder: Path, case: Case) -> None:
    mask = write_prediction(folder, case.id)
    mask.write_bytes(mask.read_bytes()[:-8])
    assert case.label is not None
    case.label.unlink()
    (folder / "case_000_probabilities.nii.gz").write_bytes(b"")
    write_record(folder, case.id, case="another")
    found = [(problem.case, problem.kind, problem.file) for problem in problems_of(folder, case)]
    assert found == [
        ("case_000", "missing-file", "case_000_seg.nii.gz"),
        ("case_000", "checksum", "predicted/case_000_seg.nii.gz"),
        ("case_000", "file-type", "predicted/case_000_probabilities.nii.gz"),
        ("case_000", "prediction-case", "predicted/case_000.json"),
    ]
