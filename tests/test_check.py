from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MODALITIES, SHAPE, CohortFactory, save_nifti, write_datalist

from pipeline import check
from pipeline.cli import ExitCode
from pipeline.data.checking import check_visibly
from pipeline.data.datalist import read_datalist

ROOT = Path(__file__).resolve().parents[1]
NO_CROP = ("--border-crop", "0", "0", "0", "0", "0", "0")


def run(path: Path, *options: str, crop: tuple[str, ...] = NO_CROP) -> int:
    return check.main([str(path), *crop, *options])


def spoil(path: Path) -> None:
    """Damage a file of the second case, and make one image of the first constant."""
    datalist = read_datalist(path)
    image = datalist.training[1].images[1]
    image.write_bytes(image.read_bytes()[:-8])
    save_nifti(datalist.training[0].images[0], np.zeros(SHAPE, dtype=np.int16))


def test_a_sound_list(cohort_factory: CohortFactory, capsys: pytest.CaptureFixture[str]) -> None:
    path = cohort_factory(num_cases=3)
    files = list(path.parent.rglob("*.nii.gz"))
    assert run(path, "--workers", "2") == ExitCode.DONE
    output = capsys.readouterr().out.splitlines()
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    assert output == [
        f"tests: 3 cases, 15 files, {megabytes:.1f} MB",
        "3 cases: 0 errors, 0 warnings",
    ]


def test_all_problems_in_one_table_errors_first(
    cohort_factory: CohortFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cohort_factory(num_cases=2)
    spoil(path)
    assert run(path) == ExitCode.DATA
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    (error,) = [i for i, line in enumerate(lines) if "error" in line and "case_001" in line]
    (warning,) = [i for i, line in enumerate(lines) if "warning" in line and "case_000" in line]
    assert error < warning
    assert "checksum" in lines[error]
    assert "constant-image" in lines[warning]
    assert "DataError: cohort.json: 2 cases: 1 errors, 1 warnings." in captured.err


def test_warnings_alone_are_no_failure(
    cohort_factory: CohortFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cohort_factory(num_cases=2)
    save_nifti(read_datalist(path).training[0].images[0], np.zeros(SHAPE, dtype=np.int16))
    assert run(path) == ExitCode.DONE
    output = capsys.readouterr().out
    assert "constant-image" in output
    assert output.splitlines()[-1] == "2 cases: 0 errors, 1 warnings"


def test_problems_as_json(cohort_factory: CohortFactory, tmp_path: Path) -> None:
    path = cohort_factory(num_cases=2)
    spoil(path)
    target = tmp_path / "problems.json"
    assert run(path, "--json", str(target)) == ExitCode.DATA
    written = json.loads(target.read_text())
    assert written["summary"] == {
        "list": "tests",
        "cases": 2,
        "files": 10,
        "errors": 1,
        "warnings": 1,
        "cases_with_errors": 1,
    }
    assert [(problem["case"], problem["severity"]) for problem in written["problems"]] == [
        ("case_001", "error"),
        ("case_000", "warning"),
    ]
    assert written["problems"][0]["file"] == "case_001_t1.nii.gz"


def test_a_missing_file_does_not_stop_the_count(
    cohort_factory: CohortFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cohort_factory(num_cases=1, num_folds=None)
    read_datalist(path).training[0].images[2].unlink()
    assert run(path) == ExitCode.DATA
    assert "tests: 1 cases, 5 files" in capsys.readouterr().out


def test_a_closed_folder_is_a_problem_of_its_case(
    cohort_factory: CohortFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too long a name stands for it, as nothing is closed to root: Path.is_dir raises on both."""
    path = cohort_factory(num_cases=2, num_folds=None)
    document = json.loads(path.read_text())
    document["training"][0]["t1"] = f"{'x' * 300}/t1.nii.gz"
    path.write_text(json.dumps(document))
    assert run(path) == ExitCode.DATA
    captured = capsys.readouterr()
    assert "tests: 2 cases, 10 files" in captured.out
    assert "unreadable-file" in captured.out
    assert "2 cases: 1 errors, 0 warnings" in captured.err


def test_brackets_in_an_id_are_shown_as_they_are(
    cohort_factory: CohortFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rich would take them for markup, and drop them or fail."""
    path = cohort_factory(num_cases=1, num_folds=None)
    document = json.loads(path.read_text())
    document["name"] = "[red]list"
    image = tmp_path / document["training"][0]["t1"]
    odd = image.with_name("[bold]t1[red].nii.gz")
    odd.write_bytes(image.read_bytes()[:-1])
    document["training"][0]["t1"] = odd.relative_to(tmp_path).as_posix()
    path.write_text(json.dumps(document))
    assert run(path) == ExitCode.DATA
    output = capsys.readouterr().out
    assert output.startswith("[red]list: 1 cases")
    assert "[bold]t1[red].nii.gz" in output


@pytest.mark.parametrize(
    ("crop", "words"),
    [
        ((), "border-crop"),  # the article's margins leave nothing of 12 x 14 x 10 voxels
        (("--preset", "original"), "border-crop"),
        (("--preset", "quick"), "0 errors, 0 warnings"),  # which crops nothing
        (("--border-crop", "5", "0", "0", "0", "0", "0"), "tumour-cropped"),
    ],
)
def test_border_crop_comes_from_preset_or_option(
    cohort_factory: CohortFactory,
    capsys: pytest.CaptureFixture[str],
    crop: tuple[str, ...],
    words: str,
) -> None:
    run(cohort_factory(num_cases=1, num_folds=None), crop=crop)
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("crop", "words"),
    [
        (("--border-crop", "-1", "0", "0", "0", "0", "0"), "expected voxels from 0 up"),
        (("--preset", "orginal"), "expected one of original"),
    ],
)
def test_wrong_settings(
    cohort_factory: CohortFactory,
    capsys: pytest.CaptureFixture[str],
    crop: tuple[str, ...],
    words: str,
) -> None:
    assert run(cohort_factory(num_cases=1), crop=crop) == ExitCode.SETTINGS
    assert words in capsys.readouterr().err


def test_no_workers_is_refused(
    cohort_factory: CohortFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(cohort_factory(num_cases=1), "--workers", "0")
    assert "expected at least 1, found 0" in capsys.readouterr().err


def test_non_finite_voxels_are_accepted_on_request(
    cohort_factory: CohortFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cohort_factory(num_cases=1, num_folds=None)
    volume = np.ones(SHAPE, dtype=np.float32)
    volume[2, 2, :4] = np.nan
    save_nifti(read_datalist(path).training[0].images[1], volume)
    assert run(path) == ExitCode.DATA
    assert "--mask-nonfinite" in capsys.readouterr().out
    assert run(path, "--mask-nonfinite") == ExitCode.DONE
    output = capsys.readouterr().out
    assert "found 4 of 1680 voxels" in output  # the table breaks the line after it
    assert output.splitlines()[-1] == "1 cases: 0 errors, 1 warnings"


def test_digests_save_reading_and_change_no_result(
    cohort_factory: CohortFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipeline.data.file_state.SETTLED_NS", 0)
    path = cohort_factory(num_cases=4)
    spoil(path)
    digests = ("--digests", str(tmp_path / "digests.json"))
    written = []
    for index, options in enumerate([(), digests, digests, (*digests, "--recheck")]):
        target = tmp_path / f"{index}.json"
        assert run(path, "--json", str(target), *options) == ExitCode.DATA
        written.append(target.read_bytes())
    assert written == [written[0]] * 4
    lines = capsys.readouterr().out.splitlines()
    # The second case is damaged, and so is read each time.
    said = [line for line in lines if line.endswith("cases are as they were when they were read")]
    assert [line.split()[0] for line in said] == ["0", "3", "0"]


def test_a_digest_file_that_is_not_believed_is_told(
    cohort_factory: CohortFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "digests.json").write_text("{}")
    assert run(cohort_factory(num_cases=1), "--digests", str(tmp_path / "digests.json")) == 0
    assert "digests.json is not believed: expected the format" in capsys.readouterr().out


def test_an_interruption_keeps_what_was_read(
    cohort_factory: CohortFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.file_state.SETTLED_NS", 0)
    datalist = read_datalist(cohort_factory(num_cases=3))
    path = tmp_path / "digests.json"

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("after the first case")

    monkeypatch.setattr("rich.progress.Progress.advance", interrupt)
    with pytest.raises(KeyboardInterrupt, match="after the first case"):
        check_visibly(datalist, border_crop=None, num_workers=1, digests=path)
    assert "case_000" in json.loads(path.read_text())["cases"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--recheck"], "expected --digests FILE too"),
        (["--json", "LIST"], "--json: expected a file of its own; found that of LIST"),
        (["--digests", "LIST"], "--digests: expected a file of its own; found that of LIST"),
        (["--json", "new", "--digests", "new"], "--digests: .* found that of --json"),
    ],
)
def test_options_that_would_harm_each_other(
    cohort_factory: CohortFactory,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    """A list that its own check overwrites is lost."""
    path = cohort_factory(num_cases=1)
    content = path.read_bytes()
    assert run(path, *[str(path) if word == "LIST" else word for word in options]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert path.read_bytes() == content


def test_json_that_cannot_be_written(
    cohort_factory: CohortFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "nowhere" / "problems.json"
    assert run(cohort_factory(num_cases=1), "--json", str(target)) == ExitCode.RESOURCES
    assert "problems.json: cannot be written" in capsys.readouterr().err


def test_files_outside_the_list_s_folder(
    cohort_factory: CohortFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cohort_factory(num_cases=1, num_folds=None)
    (tmp_path / "lists").mkdir()
    document = json.loads(path.read_text())
    for key in (*MODALITIES, "seg"):
        document["training"][0][key] = f"../{document['training'][0][key]}"
    moved = tmp_path / "lists" / "cohort.json"
    moved.write_text(json.dumps(document))
    assert run(moved) == ExitCode.DATA
    assert "--allow-outside-root" in capsys.readouterr().err
    assert run(moved, "--allow-outside-root") == ExitCode.DONE


@pytest.mark.real
def test_two_real_cases(real_cases: Path, tmp_path: Path) -> None:
    """One is sound under its own numbering; the other has a 3 where the list says 4."""
    entries: list[dict[str, Any]] = []
    for case in ("BraTS2021_00003", "BraTS-GLI-00000-000"):
        files = {name: str(real_cases / case / f"{case}_{name}.nii.gz") for name in MODALITIES}
        entries.append(
            {"case": case, **files, "seg": str(real_cases / case / f"{case}_seg.nii.gz")}
        )
    path = write_datalist(tmp_path / "real.json", {"training": entries})
    target = tmp_path / "problems.json"
    assert run(path, "--allow-outside-root", "--json", str(target), crop=()) == ExitCode.DATA
    (problem,) = json.loads(target.read_text())["problems"]
    assert (problem["case"], problem["kind"]) == ("BraTS-GLI-00000-000", "label-coding")
