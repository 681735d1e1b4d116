"""Finding cases of all years, telling the numbering of their masks, and writing the list."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pipeline.data.case_inputs import cases_of_folder
from pipeline.data.datalist import read_datalist
from pipeline.data.discovery import find_cases
from pipeline.data.folds import assign_folds
from pipeline.errors import DataError, SettingsError
from pipeline.make_datalist import main

OLD = ("_flair", "_t1", "_t1ce", "_t2", "_seg")
NEW = ("-t2f", "-t1n", "-t1c", "-t2w", "-seg")
WITH_4 = (0, 1, 2, 4)
WITH_3 = (0, 1, 2, 3)
NOT_TOLD = (0, 1, 2)


def save(path: Path, values: tuple[float, ...] = (0,), *, dtype: Any = np.uint8) -> Path:
    """Write a 4x4x4 image in which each of `values` occurs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = np.resize(np.array(values, dtype=dtype), (4, 4, 4))
    nib.save(nib.Nifti1Image(volume, np.diag([-1.0, -1.0, 1.0, 1.0]), dtype=dtype), path)
    return path


def make_case(
    folder: Path,
    *,
    name: str | None = None,
    suffixes: tuple[str, ...] = OLD,
    extension: str = ".nii.gz",
    values: tuple[float, ...] | None = WITH_4,
) -> None:
    name = folder.name if name is None else name
    for suffix in suffixes[:4]:
        save(folder / f"{name}{suffix}{extension}")
    if values is not None:
        save(folder / f"{name}{suffixes[4]}{extension}", values)


def run(root: Path, *options: str, output: Path | None = None) -> int:
    return main([str(root), "-o", str(output or root / "list.json"), *options])


def written(root: Path) -> dict[str, Any]:
    return json.loads((root / "list.json").read_text(encoding="utf-8"))


# Finding


@pytest.mark.parametrize(
    ("folder", "suffixes", "extension"),
    [
        ("MICCAI_BraTS_2018/HGG/Brats18_2013_2_1", OLD, ".nii.gz"),
        ("MICCAI_BraTS_2019/LGG/BraTS19_2013_0_1", OLD, ".nii.gz"),
        ("BraTS20_Training_001", OLD, ".nii"),
        ("BraTS2021_00000", OLD, ".nii.gz"),
        ("BraTS-GLI-00000-000", NEW, ".nii.gz"),
        ("TCGA-02-0006", ("_flair", "_t1", "_t1Gd", "_t2", "_SEG"), ".nii.gz"),
    ],
)
def test_the_names_of_all_years_are_found(
    tmp_path: Path, folder: str, suffixes: tuple[str, ...], extension: str
) -> None:
    make_case(tmp_path / folder, suffixes=suffixes, extension=extension)
    discovery = find_cases(tmp_path)
    (case,) = discovery.cases
    assert case.id == Path(folder).name
    stem = tmp_path / folder / case.id
    expected = [Path(f"{stem}{suffix}{extension}") for suffix in suffixes]
    assert list(case.images) == ["flair", "t1", "t1ce", "t2"]
    assert [*case.images.values(), case.label] == expected
    assert not discovery.problems
    assert not discovery.ignored


def test_cases_in_one_folder_and_a_case_without_prefix_are_found(tmp_path: Path) -> None:
    make_case(tmp_path / "flat", name="B")
    make_case(tmp_path / "flat", name="A", values=None)
    make_case(tmp_path / "patient 7", name="", suffixes=("flair", "t1", "t1ce", "t2", "seg"))
    found = find_cases(tmp_path).cases
    assert [case.id for case in found] == ["A", "B", "patient 7"]
    assert [bool(case.label) for case in found] == [False, True, True]
    assert [case.id for case in find_cases(tmp_path / "patient 7").cases] == ["patient 7"]


@pytest.mark.parametrize("mask", ["W39_1998.09.19_Segm.nii", "W39_1998.09.19_seg.nii", "SEGM.nii"])
def test_the_mask_of_case_355_is_found(tmp_path: Path, mask: str) -> None:
    folder = tmp_path / "BraTS20_Training_355"
    make_case(folder, extension=".nii", values=None)
    save(folder / mask, WITH_4)
    save(folder / "brain.nii")
    discovery = find_cases(tmp_path)
    assert [case.label for case in discovery.cases] == [folder / mask]
    assert discovery.ignored == (folder / "brain.nii",)


def test_a_second_mask_beside_a_proper_one_is_not_used(tmp_path: Path) -> None:
    make_case(tmp_path / "A")
    other = save(tmp_path / "A" / "A_segmentation_old.nii")
    discovery = find_cases(tmp_path)
    assert discovery.cases[0].label == tmp_path / "A" / "A_seg.nii.gz"
    assert discovery.ignored == (other,)


def test_hidden_files_tables_and_macos_leftovers_are_passed_over(tmp_path: Path) -> None:
    make_case(tmp_path / "A")
    make_case(tmp_path / "__MACOSX" / "A")
    make_case(tmp_path / "lost+found" / "A")
    make_case(tmp_path / ".cache" / "B")
    (tmp_path / "A" / "._A_flair.nii.gz").write_text("")
    (tmp_path / "A" / "survival.csv").write_text("")
    discovery = find_cases(tmp_path)
    assert [case.folder for case in discovery.cases] == [tmp_path / "A"]
    assert not discovery.problems
    assert not discovery.ignored


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    make_case(tmp_path / "elsewhere" / "A")
    root = tmp_path / "root"
    root.mkdir()
    (root / "A").symlink_to(tmp_path / "elsewhere" / "A")
    (root / "again").symlink_to(root)
    assert [case.id for case in find_cases(root).cases] == ["A"]


def test_faults_of_the_tree_are_reported_and_keep_their_case_out(tmp_path: Path) -> None:
    make_case(tmp_path / "A")
    make_case(tmp_path / "HGG" / "B")
    make_case(tmp_path / "LGG" / "B")
    make_case(tmp_path / "C")
    (tmp_path / "C" / "C_t1ce.nii.gz").unlink()
    make_case(tmp_path / "D")
    save(tmp_path / "D" / "D_t2.nii")
    make_case(tmp_path / "E", values=None)
    save(tmp_path / "E" / "seg_one.nii")
    save(tmp_path / "E" / "seg_two.nii")
    save(tmp_path / "F" / "F_seg.nii")
    discovery = find_cases(tmp_path)
    assert [case.id for case in discovery.cases] == ["A"]
    assert [(problem.case, problem.kind, problem.found) for problem in discovery.problems] == [
        ("B", "duplicate-case", f"the same id in {tmp_path / 'HGG' / 'B'}"),
        ("C", "incomplete-case", "none for t1ce"),
        ("D", "ambiguous-file", "D_t2.nii and D_t2.nii.gz"),
        ("E", "ambiguous-file", "seg_one.nii and seg_two.nii"),
        ("F", "incomplete-case", "none for flair, t1, t1ce, t2"),
    ]


@pytest.fixture
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a second case that may not be entered; by patching, because root may."""
    make_case(tmp_path / "A")
    make_case(tmp_path / "HGG" / "B")
    folder = tmp_path / "HGG" / "B"
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    return folder


def test_a_folder_that_may_not_be_entered_is_reported(sealed: Path, tmp_path: Path) -> None:
    discovery = find_cases(tmp_path)
    assert [case.id for case in discovery.cases] == ["A"]
    (problem,) = discovery.problems
    assert (problem.case, problem.kind) == ("B", "unreadable-file")
    assert (problem.file, problem.found) == (str(sealed), "Permission denied")


def test_a_folder_that_may_not_be_entered_stops_the_verb(
    sealed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--folds", "1", "--skip-incomplete") == 3
    shown = capsys.readouterr().err
    assert "unreadable-file" in shown
    assert "problems: 1; nothing was written. Correct the folders" in shown
    assert not (tmp_path / "list.json").exists()


def test_a_folder_that_may_not_be_entered_stops_inference(sealed: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"B, {sealed}: unreadable-file: .*Permission denied"):
        cases_of_folder(tmp_path, modalities=("flair", "t1", "t1ce", "t2"))


# Folds


def test_folds_keep_subjects_together_and_are_equal_in_size() -> None:
    # 3 subjects of 4 cases, 12 of 1: 24 cases in 4 folds can be dealt as 6 each, and must be.
    subjects = {f"long{s}-{t}": f"long{s}" for s in range(3) for t in range(4)}
    subjects |= {f"short{s}": f"short{s}" for s in range(12)}
    folds = assign_folds(subjects, num_folds=4, seed=0)
    assert Counter(folds.values()) == {0: 6, 1: 6, 2: 6, 3: 6}
    assert all(len({folds[f"long{s}-{t}"] for t in range(4)}) == 1 for s in range(3))


def test_folds_depend_on_the_seed_and_on_nothing_else() -> None:
    subjects = {f"case{index}": f"case{index}" for index in range(20)}
    folds = assign_folds(subjects, num_folds=5, seed=0)
    assert folds == assign_folds(dict(reversed(subjects.items())), num_folds=5, seed=0)
    assert folds != assign_folds(subjects, num_folds=5, seed=1)
    # Written down, because published folds have to come out the same in years to come.
    assert [folds[f"case{index}"] for index in range(8)] == [0, 4, 3, 2, 0, 3, 4, 3]


@pytest.mark.parametrize("num_folds", [0, -1, 3])
def test_folds_that_cannot_be_dealt_are_refused(num_folds: int) -> None:
    with pytest.raises(SettingsError, match=rf"--folds {num_folds}: expected 1 to 2, the number"):
        assign_folds({"A": "A", "B": "B", "B2": "B"}, num_folds=num_folds, seed=0)


# The verb


def test_the_list_holds_the_majority_coding_and_the_exceptions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_case(tmp_path / "A")
    make_case(tmp_path / "B", values=NOT_TOLD)
    make_case(tmp_path / "BraTS-GLI-00001-000", suffixes=NEW, values=WITH_3)
    make_case(tmp_path / "BraTS-GLI-00001-001", suffixes=NEW, values=None)
    make_case(tmp_path / "C")
    assert run(tmp_path, "--folds", "2", "--name", "mixed") == 0
    document = written(tmp_path)
    assert list(document) == ["name", "modality", "labels", "regions", "training", "testing"]
    assert document["labels"]["enhancing_tumour"] == 4
    assert document["training"][2] == {
        "case": "BraTS-GLI-00001-000",
        "subject": "BraTS-GLI-00001",
        "fold": document["training"][2]["fold"],
        "flair": "BraTS-GLI-00001-000/BraTS-GLI-00001-000-t2f.nii.gz",
        "t1": "BraTS-GLI-00001-000/BraTS-GLI-00001-000-t1n.nii.gz",
        "t1ce": "BraTS-GLI-00001-000/BraTS-GLI-00001-000-t1c.nii.gz",
        "t2": "BraTS-GLI-00001-000/BraTS-GLI-00001-000-t2w.nii.gz",
        "seg": "BraTS-GLI-00001-000/BraTS-GLI-00001-000-seg.nii.gz",
        "labels": {"enhancing_tumour": 3},
    }
    datalist = read_datalist(tmp_path / "list.json")
    assert datalist.name == "mixed"
    values = {case.id: case.label_values for case in datalist.training}
    assert values == {"A": WITH_4, "B": WITH_4, "BraTS-GLI-00001-000": WITH_3, "C": WITH_4}
    assert [case.id for case in datalist.testing] == ["BraTS-GLI-00001-001"]
    shown = capsys.readouterr().out
    for line in ("labelled (training) │ 4", "unlabelled (testing) │ 1", "subjects │ 4",
                 "values 0, 1, 2, 4 │ 2", "values 0, 1, 2, 3 │ 1",
                 "fit any numbering, taken as 0, 1, 2, 4 │ 1", "in fold 0 │ 2"):  # fmt: skip
        assert line in " ".join(shown.split())
    assert f"Next: python -m pipeline.check {tmp_path / 'list.json'}\n" in shown


def test_the_coding_of_2023_may_be_the_majority(tmp_path: Path) -> None:
    make_case(tmp_path / "A", values=WITH_3)
    make_case(tmp_path / "B", values=(0, 3))
    make_case(tmp_path / "C", values=WITH_4)
    assert run(tmp_path, "--folds", "3") == 0
    document = written(tmp_path)
    assert document["labels"]["enhancing_tumour"] == 3
    assert [entry.get("labels") for entry in document["training"]] == [
        None, None, {"enhancing_tumour": 4}
    ]  # fmt: skip


def test_unlabelled_cases_alone_need_no_folds(tmp_path: Path) -> None:
    make_case(tmp_path / "A", values=None)
    assert run(tmp_path) == 0
    assert written(tmp_path)["training"] == []
    assert [entry["case"] for entry in written(tmp_path)["testing"]] == ["A"]


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ((0, 3, 4), np.uint8, "label-values: .*found 0 .22 voxels., 3 .21 voxels., 4 .21 voxels"),
        ((0, 5), np.uint8, r"label-values: .*found 0 .32 voxels., 5 .32 voxels"),
        ((0, 3.5), np.float32, "A, .*not-lossless"),
    ],
)
def test_a_mask_of_another_kind_stops_the_verb(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    values: tuple[float, ...],
    dtype: Any,
    message: str,
) -> None:
    make_case(tmp_path / "A", values=None)
    save(tmp_path / "A" / "A_seg.nii.gz", values, dtype=dtype)
    assert run(tmp_path, "--folds", "1") == 3
    assert not (tmp_path / "list.json").exists()
    assert re.search(message, capsys.readouterr().err)


def test_incomplete_cases_stop_the_verb_unless_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_case(tmp_path / "A")
    make_case(tmp_path / "B")
    (tmp_path / "B" / "B_t1ce.nii.gz").unlink()
    assert run(tmp_path, "--folds", "1") == 3
    shown = capsys.readouterr().err
    assert "none for t1ce" in shown
    assert "problems: 1; nothing was written" in shown
    assert "leave these cases out with --skip-incomplete" in shown
    assert not (tmp_path / "list.json").exists()
    assert run(tmp_path, "--folds", "1", "--skip-incomplete") == 0
    assert "none for t1ce" in capsys.readouterr().err  # still said
    assert [entry["case"] for entry in written(tmp_path)["training"]] == ["A"]


def test_an_ambiguous_case_is_not_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_case(tmp_path / "A")
    save(tmp_path / "A" / "A_t2.nii")
    assert run(tmp_path, "--folds", "1", "--skip-incomplete") == 3
    assert "Correct the folders as the table says" in capsys.readouterr().err


def test_the_same_tree_gives_the_same_bytes_and_another_needs_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "CABD":
        make_case(tmp_path / name)
    assert run(tmp_path, "--folds", "2") == 0
    path = tmp_path / "list.json"
    first, time = path.read_bytes(), path.stat().st_mtime_ns
    assert run(tmp_path, "--folds", "2") == 0
    assert "Nothing to do: the same list is already in" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == time
    assert run(tmp_path, "--folds", "4") == 2
    assert "with other content: nothing was written" in capsys.readouterr().err
    assert path.read_bytes() == first
    assert run(tmp_path, "--folds", "4", "--force") == 0
    assert path.read_bytes() != first
    assert not list(tmp_path.glob(".*.tmp.*"))


def test_a_list_outside_its_data_says_which_option_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_case(tmp_path / "data" / "A")
    output = tmp_path / "new folder" / "list.json"
    assert run(tmp_path / "data", "--folds", "1", output=output) == 0
    shown = capsys.readouterr().out
    assert f"Next: python -m pipeline.check '{output}' --allow-outside-root\n" in shown
    assert "with the list in the folder of the cases, none does" in shown
    case = read_datalist(output, allow_outside_root=True).training[0]
    assert case.images[0].samefile(tmp_path / "data" / "A" / "A_flair.nii.gz")


def test_paths_hold_when_root_and_output_are_reached_through_links(tmp_path: Path) -> None:
    make_case(tmp_path / "deep" / "down" / "A")
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "down")
    output = tmp_path / "link" / "list.json"
    assert run(tmp_path / "link", "--folds", "1", output=output) == 0
    case = read_datalist(output).training[0]
    assert case.images[0].samefile(tmp_path / "deep" / "down" / "A" / "A_flair.nii.gz")


def test_files_that_are_not_used_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_case(tmp_path / "A")
    save(tmp_path / "A" / "brain.nii")
    assert run(tmp_path, "--folds", "1") == 0
    assert f"not used: {tmp_path / 'A' / 'brain.nii'}" in capsys.readouterr().out


def test_wrong_places_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none") == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert run(tmp_path) == 3
    assert "no complete case found; expected files named like" in capsys.readouterr().err
    make_case(tmp_path / "A")
    assert run(tmp_path, "--folds", "1", output=tmp_path / "A") == 2
    assert "is a folder: name the file" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(tmp_path, "--folds", "1", output=tmp_path / "file" / "list.json") == 4
    assert "cannot be written" in capsys.readouterr().err


def test_a_name_that_no_file_may_have_is_refused_before_writing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_case(tmp_path / "A;B")
    assert run(tmp_path, "--folds", "1") == 3
    assert "training[0].case" in capsys.readouterr().err
    assert not (tmp_path / "list.json").exists()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.make_datalist import build_parser; build_parser().format_help();"
        "print(sorted({'numpy', 'nibabel', 'torch', 'monai', 'rich', 'tqdm'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.real
def test_the_real_cases(real_cases: Path, tmp_path: Path) -> None:
    output = tmp_path / "list.json"
    assert run(real_cases, output=output) == 0
    datalist = read_datalist(output, allow_outside_root=True)
    assert (len(datalist.training), len(datalist.testing)) == (18, 1)
    exceptions = [case.id for case in datalist.training if case.label_values == WITH_3]
    assert exceptions == ["BraTS-GLI-00000-000"]
    assert datalist.testing[0].id == "BraTS-GLI-00027-000"
    sizes = Counter(case.fold for case in datalist.training)
    assert sorted(sizes.values()) == [3, 3, 4, 4, 4]
