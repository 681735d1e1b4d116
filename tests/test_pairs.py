"""Which cases are evaluated, and which files are taken for their predictions."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CohortFactory, make_case
from prediction_files import write_prediction

from pipeline.data.datalist import Case, DataList, read_datalist
from pipeline.errors import DataError, SettingsError
from pipeline.evaluation.pairs import find_pairs, select_cases


@pytest.fixture
def datalist(cohort_factory: CohortFactory) -> DataList:
    return read_datalist(cohort_factory(num_cases=4, num_folds=2))


@pytest.fixture
def case(datalist: DataList) -> Case:
    return datalist.training[0]


def ids(cases: tuple[Case, ...]) -> list[str]:
    return [case.id for case in cases]


# ---- Which cases --------------------------------------------------------------------------------


def test_a_fold_has_its_validation_cases(datalist: DataList) -> None:
    selection = select_cases(datalist, fold=1)
    assert ids(selection.cases) == ["case_001", "case_003"]
    assert selection.description == "the validation cases of fold 1"


def test_cases_that_are_named_come_in_their_order(datalist: DataList) -> None:
    selection = select_cases(datalist, ids=["case_003", "case_000"])
    assert ids(selection.cases) == ["case_003", "case_000"]
    assert selection.description == "the cases that were named"


def test_else_every_labelled_case_of_every_section(datalist: DataList) -> None:
    first, second, third, fourth = datalist.training
    unlabelled = replace(fourth, label=None)
    mixed = replace(datalist, training=(first,), validation=(second,), testing=(unlabelled, third))
    selection = select_cases(mixed)
    assert ids(selection.cases) == ["case_000", "case_001", "case_002"]
    assert selection.description == "every labelled case of the data list"


def test_no_labelled_case_is_an_error(datalist: DataList) -> None:
    unlabelled = tuple(replace(case, label=None) for case in datalist.training)
    nothing = replace(datalist, training=(), testing=unlabelled)
    with pytest.raises(DataError, match=r"cohort\.json: expected labelled cases; found none"):
        select_cases(nothing)


def test_ids_that_are_not_in_the_list(datalist: DataList) -> None:
    with pytest.raises(SettingsError, match=r"ids of cohort\.json; found also a, b\."):
        select_cases(datalist, ids=["b", "case_000", "a"])


def test_an_id_given_twice_would_count_twice(datalist: DataList) -> None:
    with pytest.raises(SettingsError, match=r"each id once; found again case_000\."):
        select_cases(datalist, ids=["case_000", "case_001", "case_000"])


# ---- Which files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{case}_seg.nii.gz", "{case}.nii.gz"])
def test_both_names_of_a_mask(case: Case, tmp_path: Path, name: str) -> None:
    mask = write_prediction(tmp_path / "out", case.id, name=name)
    (pair,) = find_pairs(tmp_path / "out", [case])
    assert (pair.case, pair.reference, pair.mask) == (case, case.label, mask)
    assert pair.probabilities is None
    assert pair.provenance == tmp_path / "out" / "case_000.json"


def test_probabilities_are_found(case: Case, tmp_path: Path) -> None:
    mask = write_prediction(tmp_path / "out", case.id)
    probabilities = mask.with_name("case_000_probabilities.nii.gz")
    probabilities.touch()
    (pair,) = find_pairs(tmp_path / "out", [case])
    assert pair.probabilities == probabilities


def test_every_problem_of_every_case_at_once(datalist: DataList, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_prediction(folder, "case_000")
    write_prediction(folder, "case_001")
    write_prediction(folder, "case_001", name="{case}.nii.gz")
    cases = (*datalist.training[:3], replace(datalist.training[3], label=None))
    with pytest.raises(DataError) as caught:
        find_pairs(folder, cases)
    assert [(problem.case, problem.kind) for problem in caught.value.problems] == [
        ("case_001", "two-predictions"),
        ("case_002", "missing-prediction"),
        ("case_003", "missing-label"),
    ]


def test_a_missing_prediction_names_the_ways_out(case: Case, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"case_000_seg\.nii\.gz or case_000\.nii\.gz in .*; found neither\. .*"
        r"left out silently\. --fold N .* --cases ID",
    ):
        find_pairs(tmp_path, [case])


def test_the_reference_is_no_prediction_of_itself(tmp_path: Path) -> None:
    """Its name is that of a prediction: the folder of the case would score 1 everywhere."""
    case = make_case(tmp_path, "case_000")
    with pytest.raises(DataError, match=r"found case_000_seg\.nii\.gz, the reference itself"):
        find_pairs(tmp_path / "case_000", [case])


def test_a_reference_that_is_not_there_is_left_to_the_reader(case: Case, tmp_path: Path) -> None:
    write_prediction(tmp_path / "out", case.id)
    assert case.label is not None
    case.label.unlink()
    assert len(find_pairs(tmp_path / "out", [case])) == 1


# Nothing is closed to root. Too long a name is an error that, as that of a closed folder,
# `Path.exists` and `Path.is_dir` of Python 3.11 raise.
CLOSED = "x" * 300


def test_a_reference_in_a_closed_folder_is_left_to_the_reader(case: Case, tmp_path: Path) -> None:
    write_prediction(tmp_path / "out", case.id)
    closed = replace(case, label=tmp_path / CLOSED / "seg.nii.gz")
    (pair,) = find_pairs(tmp_path / "out", [closed])
    assert pair.reference == closed.label


def test_predictions_in_a_closed_folder(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="expected a folder of predictions"):
        find_pairs(tmp_path / CLOSED / "out", [case])
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(SettingsError, match=r"cannot be entered\. Check its permissions"):
        find_pairs(tmp_path, [case])


def test_a_folder_that_is_not_there(case: Case, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nowhere: expected a folder of predictions"):
        find_pairs(tmp_path / "nowhere", [case])
