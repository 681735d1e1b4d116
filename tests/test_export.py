"""The verb `export`: its exit codes and messages; a bundle is there whole, or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_case
from models import HEADER, save_model

from pipeline import export
from pipeline.bundle import export as exporting
from pipeline.bundle.contents import bundle_files
from pipeline.bundle.gate import Verification, _phantom
from pipeline.bundle.problems import problem
from pipeline.bundle.weights import rounded
from pipeline.data.lock import LOCK_NAME, locked_folder
from pipeline.data.nifti import read_volume
from pipeline.errors import ResourceError
from pipeline.model.trained import load_model

SEGRESNET = {
    "name": "SegResNet",
    "init_filters": 8,
    "blocks_down": [1, 1, 1],
    "blocks_up": [1, 1],
}
PROVEN = Verification("phantom", 8, ("background", "oedema"), 1e-7, {"models/model.ts": 2})


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let the gate pass at once, and return what it was asked."""
    asked: list[dict[str, Any]] = []

    def verify(folder: Path, model: object, **options: Any) -> Verification:
        asked.append({"folder": folder, **options})
        return PROVEN

    monkeypatch.setattr(exporting, "verify_bundle", verify)
    return asked


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*_: object, **__: object) -> Verification:
        raise problem("mask", expected="one thing", found="another")

    monkeypatch.setattr(exporting, "verify_bundle", verify)


@pytest.mark.slow
def test_a_segresnet_in_windows_on_a_given_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_model(tmp_path / "run", network=SEGRESNET, preprocessing={"spacing_mm": 1.5})
    make_case(tmp_path / "cases", "case $1", shape=(32, 40, 20), labelled=False)
    case = tmp_path / "cases" / "case $1"
    options = [
        "--case",
        str(case),
        "--window",
        "18",
        "--overlap",
        "0.25",
        "--torchscript",
        "--onnx",
    ]
    bundle = tmp_path / "bundle"
    assert export.main([str(folder), "-o", str(bundle), *options]) == 0
    printed = capsys.readouterr().out
    assert f"all {32 * 40 * 20} voxels of case _1 are as the model has them" in printed
    for name in ("models/model.ts", "models/model.onnx"):
        assert f"{name}: the same classes" in printed
    assert '"window": 18' in (bundle / "configs" / "inference.json").read_text()
    assert load_model(bundle).digest == load_model(folder).digest


def test_the_bundle_gets_its_name_after_the_gate(
    run: Path, tmp_path: Path, passing: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "new" / "bundle"
    assert export.main([str(run), "-o", str(bundle)]) == 0
    assert passing[0]["folder"].parent.name.startswith(".bundle.")
    assert passing[0]["inferer"] == {
        "window": None,
        "overlap": 0.5,
        "flips": False,
        "content_only": True,
        "divisor": 2,
    }
    assert passing[0]["case_folder"] is None
    files = bundle_files(load_model(run), inferer=passing[0]["inferer"])
    assert {name: (bundle / name).read_bytes() for name in files} == files
    assert names_in(bundle.parent) == ["bundle"]
    printed = capsys.readouterr().out
    assert "all 8 voxels of phantom are as the model has them (background, oedema)" in printed
    assert "its probabilities to 1.0e-07" in printed
    assert "models/model.ts: the same classes; 2 ties decided otherwise." in printed


def test_bad_notes_are_told_before_anything_is_made(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--notes", str(tmp_path / "notes.md")]
    assert export.main([str(run), "-o", str(tmp_path / "bundle"), *options]) == 2
    assert "notes.md: expected Markdown in UTF-8" in capsys.readouterr().err
    assert names_in(tmp_path) == []


def test_the_verb_passes_notes_and_precision_on(
    run: Path, tmp_path: Path, passing: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.md").write_text("### Data\n\nOurs.\n")
    options = ["--half-precision", "--notes", str(tmp_path / "notes.md")]
    assert export.main([str(run), "-o", str(tmp_path / "bundle"), *options]) == 0
    model = load_model(run)
    assert passing[0]["unrounded"].digest == model.digest
    assert load_model(tmp_path / "bundle").digest == rounded(model).digest
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "## About this model\n\n### Data\n\nOurs.\n" in card
    assert "stored in half precision" in card
    assert export.main([str(run), "-o", str(tmp_path / "single")]) == 0
    assert passing[1]["unrounded"] is None
    assert "half precision" not in (tmp_path / "single" / "README.md").read_text()


def test_a_weight_too_large_for_half_precision_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = dict(load_model(save_model(tmp_path / "run")).weights)
    weights["output.bias"] = torch.tensor([0.0, 65504.0, 7e4, 0.0])
    folder = save_model(tmp_path / "large", weights=weights)
    argv = [str(folder), "-o", str(tmp_path / "bundle"), "--half-precision"]
    assert export.main(argv) == 3
    assert "found output.bias with 70000. Export it without" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_that_differs_leaves_nothing(
    run: Path, tmp_path: Path, failing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(run), "-o", str(tmp_path / "bundle"), "--zip"]) == 3
    assert "gate-mask: expected one thing; found another" in capsys.readouterr().err
    assert names_in(tmp_path) == []


def test_what_a_killed_export_left_is_swept_but_not_what_is_at_work(
    run: Path, tmp_path: Path, passing: object
) -> None:
    foreign = {".bundle.00000003.tmp", ".other.00000004.tmp"}  # without a lock; of another target
    for name in (".bundle.00000001.tmp", ".bundle.00000002.tmp", *foreign):
        (tmp_path / name / "bundle").mkdir(parents=True)
    for name in (".bundle.00000001.tmp", ".bundle.00000002.tmp", ".other.00000004.tmp"):
        (tmp_path / name / LOCK_NAME).write_text("process 1")
    with locked_folder(tmp_path / ".bundle.00000002.tmp"):
        assert export.main([str(run), "-o", str(tmp_path / "bundle")]) == 0
    assert set(names_in(tmp_path)) == {"bundle", ".bundle.00000002.tmp", *foreign}
    assert LOCK_NAME not in names_in(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("name", "options"), [("bundle", []), ("bundle", ["--zip"]), ("bundle.zip", ["--zip"])]
)
def test_what_exists_is_not_touched(
    run: Path, tmp_path: Path, name: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    assert export.main([str(run), "-o", str(tmp_path / "bundle"), *options]) == 2
    assert f"{tmp_path / name}: exists already." in capsys.readouterr().err
    assert names_in(tmp_path) == [name]


def test_a_planted_link_is_not_followed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(tmp_path / "elsewhere")
    assert export.main([str(run), "-o", str(tmp_path / "bundle")]) == 2
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.usefixtures("passing")
def test_the_zip_holds_the_folder_and_is_the_same_each_time(run: Path, tmp_path: Path) -> None:
    zips = []
    for place in ("a", "b"):
        bundle = tmp_path / place / "bundle"
        assert export.main([str(run), "-o", str(bundle), "--zip"]) == 0
        zips.append(bundle.with_name("bundle.zip"))
        assert names_in(bundle.parent) == ["bundle", "bundle.zip"]
    assert zips[0].read_bytes() == zips[1].read_bytes()
    with zipfile.ZipFile(zips[0]) as packed:
        packed.extractall(tmp_path / "unpacked")
    unpacked = tmp_path / "unpacked" / "bundle"
    paths = [path for path in bundle.rglob("*") if path.is_file()]
    assert paths
    for path in paths:
        other = unpacked / path.relative_to(bundle)
        assert other.read_bytes() == path.read_bytes()
        assert other.stat().st_mode & 0o777 & ~0o644 == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--window", "0"], "--window 0: expected at least 1 voxel"),
        (["--overlap", "1"], "--overlap 1.0: expected a share from 0 to less than 1"),
    ],
)
def test_settings_out_of_range(
    run: Path, tmp_path: Path, options: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([str(run), "-o", str(tmp_path / "bundle"), *options]) == 2
    assert text in capsys.readouterr().err


def test_a_folder_with_several_cases_cannot_be_compared(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("A", "B"):
        make_case(tmp_path / "cases", name)
    options = ["--case", str(tmp_path / "cases")]
    assert export.main([str(run), "-o", str(tmp_path / "bundle"), *options]) == 2
    assert "expected the folder of one case; found 2" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_a_place_that_cannot_be_written_to(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    bundle = tmp_path / "file" / "bundle"
    assert export.main([str(run), "-o", str(bundle)]) == 4
    assert "file: expected a folder; found a file." in capsys.readouterr().err
    with pytest.raises(ResourceError, match="cannot be written to: Not a directory"):
        exporting.export_bundle(load_model(run), bundle)


def test_the_formats_asked_for_are_made(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def spy(*_: object, **options: Any) -> Verification:
        asked.update(options)
        return PROVEN

    monkeypatch.setattr(exporting, "export_bundle", spy)
    assert export.main([str(run), "-o", str(tmp_path / "b"), "--onnx", "--torchscript"]) == 0
    assert asked["formats"] == ["torchscript", "onnx"]


def test_any_modalities_have_a_phantom(tmp_path: Path) -> None:
    """One that the phantom does not have gets another's image: only equality is looked at."""
    header = {**HEADER, "modality": ["t2", "ct"]}
    model = load_model(save_model(tmp_path / "run", header=header))
    case = _phantom(model, tmp_path)
    t2, flair = (read_volume(path)[0] for path in case.images)
    assert len(case.images) == 2
    assert not np.array_equal(t2, flair)
