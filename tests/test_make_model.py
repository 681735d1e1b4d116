"""`make model`: from a data list to a bundle in one command, which can be repeated.

And `make clean`, which must leave what that made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import export
from pipeline.bundle.weights import rounded
from pipeline.data.datalist import read_datalist
from pipeline.model.trained import load_model

TESTS = Path(__file__).parent
MAKEFILE = TESTS.parent / "Makefile"
# Writes down what it is asked to run; the verb in $FAILING fails, and an export leaves a bundle.
PYTHON = """#!/bin/sh
echo "$@" >> asked
test "$2" != "$FAILING" || exit 3
test "$2" != pipeline.export || mkdir -p "$5"
"""
CROSSVAL = "-m pipeline.crossval data/list.json --preset strong -o runs/strong"
EXPORT = "-m pipeline.export runs/strong -o bundles/strong --half-precision"

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which make finds a Python that does nothing."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def make_model(
    folder: Path, *variables: str, failing: str = ""
) -> subprocess.CompletedProcess[str]:
    return make(folder, "model", *variables, failing=failing)


def make(folder: Path, *words: str, failing: str = "") -> subprocess.CompletedProcess[str]:
    # The installation is taken for finished: it is not what is looked at.
    command = ["make", "-f", str(MAKEFILE), "-o", ".venv/.installed", "BIN=bin"]
    kept = {key: os.environ[key] for key in os.environ if not key.startswith("MAKE")}
    environment = {**kept, "FAILING": failing}
    return subprocess.run(
        [*command, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def asked(folder: Path) -> list[str]:
    path = folder / "asked"
    return path.read_text().splitlines() if path.exists() else []


@needs_make
def test_a_model_is_a_cross_validation_and_an_export(folder: Path) -> None:
    assert make_model(folder, "LIST=data/list.json").returncode == 0
    assert asked(folder) == [CROSSVAL, EXPORT]


@needs_make
def test_everything_can_be_said(folder: Path) -> None:
    (folder / "bundles").mkdir()
    (folder / "bundles" / "brats.md").write_text("### Data\n")
    variables = ("PRESET=quick", "NAME=brats", "OPTIONS=--device cpu --set training.max_epochs=1")
    assert make_model(folder, "LIST=data/list.json", *variables).returncode == 0
    assert asked(folder) == [
        "-m pipeline.crossval data/list.json --preset quick -o runs/brats --device cpu "
        "--set training.max_epochs=1",
        "-m pipeline.export runs/brats -o bundles/brats --half-precision --notes bundles/brats.md",
    ]


@needs_make
def test_a_bundle_that_is_there_is_not_made_again(folder: Path) -> None:
    make_model(folder, "LIST=data/list.json")
    done = make_model(folder, "LIST=data/list.json")
    assert done.returncode == 0
    assert done.stdout == ("bundles/strong is there already: remove it, or choose another NAME.\n")
    assert asked(folder) == [CROSSVAL, EXPORT]


@needs_make
@pytest.mark.parametrize(
    ("failing", "before"),
    [("pipeline.crossval", [CROSSVAL]), ("pipeline.export", [CROSSVAL, EXPORT])],
)
def test_what_fails_ends_it_and_the_same_command_goes_on(
    folder: Path, failing: str, before: list[str]
) -> None:
    assert make_model(folder, "LIST=data/list.json", failing=failing).returncode == 2
    assert asked(folder) == before
    assert make_model(folder, "LIST=data/list.json").returncode == 0
    assert asked(folder) == [*before, CROSSVAL, EXPORT]


@needs_make
def test_without_a_list_nothing_is_done(folder: Path) -> None:
    done = make_model(folder)
    assert done.returncode == 2
    assert "make model LIST=path/to/datalist.json" in done.stderr
    assert asked(folder) == []


@needs_make
def test_clean_removes_the_demonstration_and_nothing_else(folder: Path) -> None:
    kept = ["bundles/strong/README.md", "runs/quick/best.pt", "runs/strong/ensemble.pt"]
    made = [".venv/.installed", "phantoms/datalist.json", "runs/phantom/best.pt"]
    for name in (*kept, *made):
        path = folder / name
        path.parent.mkdir(parents=True)
        path.touch()
    assert make(folder, "clean").returncode == 0
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert left == kept
    assert [path.name for path in folder.iterdir() if path.name in (".venv", "phantoms")] == []
    assert not (folder / "runs" / "phantom").exists()


@pytest.mark.slow
def test_a_cohort_becomes_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The two verbs for real; the trainings are forked, which saves the imports."""
    command = [sys.executable, str(TESTS / "killed_crossval.py"), str(tmp_path), "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "notes.md").write_text("### Data\n\nBoxes.\n")
    run, bundle = tmp_path / "reference", tmp_path / "bundle"
    options = ["--half-precision", "--notes", str(tmp_path / "notes.md")]
    assert export.main([str(run), "-o", str(bundle), *options]) == 0
    assert "Half precision of the weights changed " in capsys.readouterr().out
    model, ensemble = load_model(bundle), load_model(run)
    assert model.digest == rounded(ensemble).digest
    assert model.is_ensemble
    cases = read_datalist(tmp_path / "data" / "cohort.json").training
    assert all(model.has_seen(case.subject) for case in cases)
    summary = json.loads((run / "summary.json").read_text())
    mean = summary["all"]["scores"]["dice_mean"]["mean"]
    card = (bundle / "README.md").read_text()
    assert (
        "## About this model\n\n### Data\n\nBoxes.\n\n## Scores of its members, out of fold" in card
    )
    assert f"| mean | {mean:.3f} | 0.000 |" in card
