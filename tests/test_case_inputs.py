"""Cases from folders and from single files: modalities by name, and every fault at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import MODALITIES, SHAPE, make_case, save_nifti
from image_files import phantom, save_dicom, save_itk

from pipeline.data.case_inputs import case_of_files, cases_of_folder, cases_of_folders
from pipeline.data.datalist import Case
from pipeline.data.loading import LoadCase
from pipeline.data.naming import CASE_ID, safe_case_id
from pipeline.errors import DataError, Problem


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names_of(case: Case, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in case.images]


def problems_of_folder(
    folder: Path, modalities: tuple[str, ...] = MODALITIES
) -> tuple[Problem, ...]:
    with pytest.raises(DataError, match=r"expected .*; found ") as caught:
        cases_of_folder(folder, modalities=modalities)
    assert all(problem.remedy for problem in caught.value.problems)
    return caught.value.problems


# Folders


def test_a_case_folder(tmp_path: Path) -> None:
    make_case(tmp_path, "BraTS-GLI-00001-000")
    folder = tmp_path / "BraTS-GLI-00001-000"
    (case,) = cases_of_folder(folder, modalities=MODALITIES)
    assert case.id == "BraTS-GLI-00001-000"
    assert case.subject == "BraTS-GLI-00001"
    assert names_of(case, folder) == [f"{case.id}_{name}.nii.gz" for name in MODALITIES]
    assert (case.label, case.fold, case.label_values) == (None, None, ())
    assert LoadCase(labels=False)(case)["image"].shape == (4, *SHAPE)


def test_images_come_in_the_order_of_the_model_and_not_of_their_names(tmp_path: Path) -> None:
    touch(*(tmp_path / f"X-{name}.nii.gz" for name in ("t1c", "t1n", "t2f", "t2w", "seg")))
    (case,) = cases_of_folder(tmp_path, modalities=("t2", "T1Gd", "flair"))
    assert names_of(case, tmp_path) == ["X-t2w.nii.gz", "X-t1c.nii.gz", "X-t2f.nii.gz"]


def test_all_formats_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "patient 7"
    folder.mkdir()
    save_nifti(folder / "FLAIR.nii", phantom(seed=0))
    save_itk(folder / "t1n.nrrd", phantom(seed=1))
    save_dicom(folder / "T1ce", phantom(seed=2))
    save_itk(folder / "t2.MHA".lower(), phantom(seed=3))
    (case,) = cases_of_folder(folder, modalities=MODALITIES)
    assert case.id == "patient 7"
    assert names_of(case, folder) == ["FLAIR.nii", "t1n.nrrd", "T1ce", "t2.mha"]


def test_a_folder_of_dicom_series(tmp_path: Path) -> None:
    volumes = [phantom(seed=index) for index in range(4)]
    for name, volume in zip(("t2-FLAIR", "t1w", "t1gd", "t2w"), volumes, strict=True):
        save_dicom(tmp_path / "A" / f"scan_{name.replace('t2-', '')}", volume)
    (case,) = cases_of_folder(tmp_path, modalities=MODALITIES)
    assert case.id == "scan"
    np.testing.assert_array_equal(LoadCase(labels=False)(case)["image"].numpy(), volumes)


def test_a_tree_of_cases_is_sorted_by_id(tmp_path: Path) -> None:
    for name in ("sub/b", "a", "sub/deep/c"):
        touch(*(tmp_path / name / f"{modality}.mha" for modality in MODALITIES))
    cases = cases_of_folder(tmp_path, modalities=MODALITIES)
    assert [case.id for case in cases] == ["a", "b", "c"]


def test_modalities_that_are_not_brats_s(tmp_path: Path) -> None:
    touch(tmp_path / "X_ADC.nrrd", tmp_path / "X_t2.nrrd", tmp_path / "X_swi.nrrd")
    (case,) = cases_of_folder(tmp_path, modalities=("adc", "t2"))
    assert names_of(case, tmp_path) == ["X_ADC.nrrd", "X_t2.nrrd"]


def test_results_masks_and_folders_without_slices_are_passed_over(tmp_path: Path) -> None:
    touch(*(tmp_path / f"X_{name}.nii" for name in MODALITIES))
    touch(*(tmp_path / name for name in ("X_seg.nii", "a_seg.nii", "X_probabilities.nii", "x.txt")))
    touch(tmp_path / "flair" / "notes.txt", tmp_path / ".t1" / "a.dcm")
    (case,) = cases_of_folder(tmp_path, modalities=MODALITIES)
    assert case.images[0] == tmp_path / "X_flair.nii"


def test_the_folder_we_are_in_names_its_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "patient"
    touch(*(folder / f"{name}.nii" for name in MODALITIES))
    monkeypatch.chdir(folder)
    (case,) = cases_of_folder(Path(), modalities=MODALITIES)
    assert case.id == "patient"
    assert case.images[0] == folder / "flair.nii"


def test_everything_that_is_missing_is_listed_per_case(tmp_path: Path) -> None:
    touch(tmp_path / "A" / "flair.nii", tmp_path / "A" / "t2.nii")
    touch(*(tmp_path / "B" / f"B_{name}.nii" for name in MODALITIES[:3]))
    touch(*(tmp_path / "C" / f"C_{name}.nii" for name in MODALITIES))
    touch(tmp_path / "C" / "C_t1.nrrd")
    found = [
        (problem.case, problem.kind, problem.found) for problem in problems_of_folder(tmp_path)
    ]
    assert found == [
        ("A", "incomplete-case", "none for t1, t1ce"),
        ("B", "incomplete-case", "none for t2"),
        ("C", "ambiguous-file", "C_t1.nii and C_t1.nrrd"),
    ]
    assert "--flair" in problems_of_folder(tmp_path)[0].remedy


def test_a_file_and_a_series_for_one_modality(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{name}.nii" for name in MODALITIES))
    save_dicom(tmp_path / "T2w", phantom())
    (problem,) = problems_of_folder(tmp_path)
    assert (problem.kind, problem.found) == ("ambiguous-file", "t2.nii and T2w")


def test_two_cases_with_one_id(tmp_path: Path) -> None:
    for folder in ("one/X", "two/X"):
        touch(*(tmp_path / folder / f"{name}.nii" for name in MODALITIES))
    (problem,) = problems_of_folder(tmp_path)
    assert (problem.case, problem.kind) == ("X", "duplicate-case")


def test_two_ids_that_would_name_one_file(tmp_path: Path) -> None:
    """On a disk that does not tell capitals, and once odd characters are replaced."""
    for prefix in ("a", "A", "b,c", "b;c"):
        touch(*(tmp_path / f"{prefix}_{name}.nii" for name in MODALITIES))
    problems = problems_of_folder(tmp_path)
    assert [(problem.case, problem.kind) for problem in problems] == [
        ("a", "duplicate-case"),
        ("b_c", "duplicate-case"),
    ]


def test_no_folder_and_no_case(tmp_path: Path) -> None:
    (problem,) = problems_of_folder(tmp_path / "none")
    assert (problem.case, problem.kind) == ("none", "missing-folder")
    touch(tmp_path / "X_seg.nii")
    (problem,) = problems_of_folder(tmp_path)
    assert problem.kind == "no-case"
    assert problem.expected == "images called X_flair, X_t1, X_t1ce, X_t2"


def test_a_series_that_cannot_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By patching, because nothing is forbidden to root."""
    (tmp_path / "flair").mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    (problem,) = problems_of_folder(tmp_path)
    assert (problem.kind, problem.found) == ("unreadable-file", "Permission denied")


def test_the_other_cases_of_several_folders_and_trees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in ("tree/A", "tree/B", "more/C", "more/D", "again/c", "closed/E"):
        touch(*(tmp_path / case / f"{name}.nii" for name in MODALITIES))
    (tmp_path / "tree" / "B" / "t2.nii").unlink()
    (tmp_path / "closed" / "T2").mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    folders = [tmp_path / name for name in ("tree", "more", "again", "closed", "none")]
    cases, problems = cases_of_folders(folders, modalities=MODALITIES)
    assert [case.id for case in cases] == ["A", "D"]
    assert [(problem.case, problem.kind) for problem in problems] == [
        ("B", "incomplete-case"),
        ("closed", "unreadable-file"),
        ("none", "missing-folder"),
        ("c", "duplicate-case"),
    ]


# Files


def files_of(folder: Path, *names: str) -> dict[str, Path]:
    return {name: folder / f"X_{name}.nii.gz" for name in names}


def test_files_by_name_and_not_by_position(tmp_path: Path) -> None:
    files = files_of(tmp_path, "t2", "t1gd", "FLAIR", "t1n")
    case = case_of_files(files, modalities=MODALITIES)
    assert case.id == "X"
    assert [path.name for path in case.images] == [
        f"X_{name}.nii.gz" for name in ("FLAIR", "t1n", "t1gd", "t2")
    ]
    assert (case.label, case.fold, case.label_values) == (None, None, ())


def test_the_id_is_given_or_comes_from_the_names(tmp_path: Path) -> None:
    files = files_of(tmp_path, *MODALITIES)
    assert case_of_files(files, modalities=MODALITIES, case_id="mine").id == "mine"
    series = {name: tmp_path / "Müller, J" / name for name in MODALITIES}
    assert case_of_files(series, modalities=MODALITIES).id == "Müller_ J"
    assert case_of_files(series, modalities=MODALITIES, case_id="A").subject == "A"


def problems_of_files(
    files: dict[str, Path], *, case_id: str | None = None
) -> list[tuple[str, str, str]]:
    with pytest.raises(DataError, match=r"expected .*; found ") as caught:
        case_of_files(files, modalities=MODALITIES, case_id=case_id)
    assert all(problem.remedy for problem in caught.value.problems)
    return [(problem.case, problem.kind, problem.found) for problem in caught.value.problems]


def test_missing_and_unknown_modalities_are_all_listed(tmp_path: Path) -> None:
    assert problems_of_files(files_of(tmp_path, "t1", "t2", "dwi", "adc")) == [
        ("X", "missing-modality", "missing: flair, t1ce"),
        ("X", "unknown-modality", "unknown: dwi, adc"),
    ]
    assert problems_of_files({}) == [
        ("case", "missing-modality", "missing: flair, t1, t1ce, t2"),
    ]


def test_two_files_for_one_modality(tmp_path: Path) -> None:
    files = files_of(tmp_path, *MODALITIES, "t1c")
    assert problems_of_files(files) == [("X", "repeated-modality", "repeated: t1ce")]


def test_one_file_for_two_modalities(tmp_path: Path) -> None:
    files = files_of(tmp_path, *MODALITIES)
    (tmp_path / "link.nii.gz").symlink_to(files["t1"])
    files["t1ce"] = tmp_path / "link.nii.gz"
    (problem,) = problems_of_files(files, case_id="X")
    assert problem == ("X", "repeated-file", "the same file for t1 and t1ce")


@pytest.mark.parametrize("case_id", ["../X", "", "a/b", ".hidden", "x" * 200])
def test_a_given_id_that_cannot_name_files(tmp_path: Path, case_id: str) -> None:
    (problem,) = problems_of_files(files_of(tmp_path, *MODALITIES), case_id=case_id)
    assert problem[1:] == ("case-id", repr(case_id))


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("../../etc/passwd", "_._.._etc_passwd"),
        ("-rf", "_rf"),
        ("a.", "a_"),
        ("", "case"),
        ("x" * 300, "x" * 128),
        ("a\nb\0c", "a_b_c"),
    ],
)
def test_ids_are_made_safe(text: str, safe: str) -> None:
    assert safe_case_id(text) == safe
    assert CASE_ID.fullmatch(safe)
