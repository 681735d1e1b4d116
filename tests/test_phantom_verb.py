"""`python -m pipeline.phantom`: what it says, what it writes, and its exit codes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest

from pipeline.make_datalist import main as make_datalist
from pipeline.phantom import main

SMALL = ("--shape", "32", "32", "24", "--spacing", "6", "--workers", "1")


def words(text: str) -> str:
    return " ".join(text.split())


def test_it_says_what_it_needs_makes_the_cases_and_names_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "my phantoms"
    assert main([str(out), "--cases", "1", *SMALL]) == 0
    text = words(capsys.readouterr().out)
    assert "1 cases of 32 x 32 x 24 voxels at 6 mm in" in text
    assert "0.0 MB of disk and 1 s, with 1 processes of" in text
    assert "100%" in text
    datalist = shlex.quote(str(out / "datalist.json"))
    command = f"python -m pipeline.make_datalist {shlex.quote(str(out))} -o {datalist}"
    assert f"{command} --folds 1" in text, "one case cannot make the usual five folds"
    assert (out / "Phantom_00000" / "Phantom_00000_seg.nii.gz").is_file()


def test_the_next_step_works_as_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "my phantoms"
    assert main([str(out), "--cases", "2", *SMALL]) == 0
    command = shlex.split(capsys.readouterr().out.split("next:")[1])
    assert command[:3] == ["python", "-m", "pipeline.make_datalist"]
    assert make_datalist(command[3:]) == 0
    assert (out / "datalist.json").is_file()


def test_a_rerun_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path), "--cases", "1", *SMALL]) == 0
    case = tmp_path / "Phantom_00000"
    stamp = case.stat().st_mtime_ns
    capsys.readouterr()
    assert main([str(tmp_path), "--cases", "1", *SMALL]) == 0
    text = words(capsys.readouterr().out)
    assert "0 of them to be made" in text
    assert "of disk" not in text
    assert case.stat().st_mtime_ns == stamp


def test_without_a_shape_the_voxels_fill_the_box_of_brats(tmp_path: Path):
    arguments = ["--cases", "1", "--spacing", "8", "--workers", "1"]
    # 155 mm of height hold 20 voxels of 8 mm, fewer than a phantom needs
    assert main([str(tmp_path / "a"), *arguments]) == 2
    arguments[3] = "5"
    assert main([str(tmp_path / "b"), *arguments]) == 0
    image = nib.load(tmp_path / "b" / "Phantom_00000" / "Phantom_00000_t1.nii.gz")
    assert image.shape == (48, 48, 31)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--spacing", "0"], "spacing 0.0 mm: expected 0.5 to 8.0 mm"),
        (["--cases", "0"], "0 cases: expected 1 to 100000"),
        (["--workers", "0"], "0 workers: expected at least 1"),
    ],
)
def test_wrong_settings_end_with_2_and_the_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert main([str(tmp_path / "new"), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not (tmp_path / "new").exists()


def test_other_settings_in_the_same_folder_end_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(tmp_path), "--cases", "1", *SMALL]) == 0
    assert main([str(tmp_path), "--cases", "1", *SMALL, "--seed", "1"]) == 2
    assert "holds a cohort of other settings" in capsys.readouterr().err


def test_help_loads_no_numpy():
    code = (
        "import sys, pipeline.phantom as verb\n"
        "try: verb.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'numpy' not in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "python -m pipeline.phantom phantoms --cases 10" in done.stdout
