"""Every fault of data that must be survived, made on disk, as `check --json` tells it."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import AFFINE, SHAPE, CohortFactory, save_nifti
from image_files import phantom, save_dicom, save_itk

from pipeline import check
from pipeline.cli import ExitCode
from pipeline.data.json_files import MAX_BYTES

Fault = Callable[[Path], None]
NO_CROP = ("--border-crop", "0", "0", "0", "0", "0", "0")
# Where fields of a NIfTI header lie, and of which type they are.
FIELDS = {"dim": (40, "8h"), "slope": (112, "f"), "srow_x": (280, "4f"), "datatype": (70, "2h")}


def files_of(path: Path, case: int = 0) -> dict[str, Path]:
    entry = json.loads(path.read_text())["training"][case]
    return {
        key: path.parent / entry[key]
        for key in ("flair", "t1", "t1ce", "t2", "seg")
        if key in entry
    }


def in_bytes(change: Callable[[bytes], bytes]) -> Fault:
    def apply(path: Path) -> None:
        image = files_of(path)["t1"]
        image.write_bytes(change(image.read_bytes()))

    return apply


def in_header(field: str, *values: float) -> Fault:
    def apply(path: Path) -> None:
        image = files_of(path)["t1"]
        content = bytearray(gzip.decompress(image.read_bytes()))
        offset, layout = FIELDS[field]
        struct.pack_into(f"<{layout}", content, offset, *values)
        image.write_bytes(gzip.compress(bytes(content), mtime=0))

    return apply


def in_voxels(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def apply(path: Path) -> None:
        image = files_of(path)[name]
        save_nifti(image, change(np.asarray(nib.load(image).dataobj).copy()))

    return apply


def in_affine(row: int, column: int, change: float) -> Fault:
    def apply(path: Path) -> None:
        image = files_of(path)["t2"]
        affine = AFFINE.copy()
        affine[row, column] += change
        save_nifti(image, np.asarray(nib.load(image).dataobj), affine)

    return apply


def in_list(change: Callable[[dict[str, Any]], object]) -> Fault:
    def apply(path: Path) -> None:
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return apply


def in_text(change: Callable[[str], str]) -> Fault:
    def apply(path: Path) -> None:
        path.write_text(change(path.read_text()))

    return apply


def with_value(value: float, *, dtype: str = "f4") -> Callable[[np.ndarray], np.ndarray]:
    def change(volume: np.ndarray) -> np.ndarray:
        changed = volume.astype(dtype)
        changed[5, 6, 7] = value
        return changed

    return change


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


def bomb(content: bytes) -> bytes:
    return content + gzip.compress(bytes(2**26), mtime=0)


def copied(source: str, target: str, *, to_case: int = 0) -> Fault:
    def apply(path: Path) -> None:
        files_of(path, to_case)[target].write_bytes(files_of(path)[source].read_bytes())

    return apply


def exchanged(path: Path) -> None:
    """Vessels in what the list calls t1."""
    random = np.random.default_rng(0)
    for name, image in files_of(path).items():
        volume = np.zeros((64, 64, 64), dtype=np.int16)
        volume[2:-2, 2:-2, 2:-2] = random.normal(1000, 100, (60, 60, 60))
        if name == "t1":
            volume[30:32, 30:32, 22:42] = 3000
        save_nifti(image, volume * 0 if name == "seg" else volume)


def missing(path: Path) -> None:
    files_of(path)["t1"].unlink()


def through_link(path: Path) -> None:
    outside = path.parent.parent / f"outside-{path.parent.name}.nii.gz"
    outside.write_bytes(b"")
    files_of(path)["t1"].unlink()
    files_of(path)["t1"].symlink_to(outside)


def named(name: str, write: Callable[[Path], object]) -> Fault:
    def apply(path: Path) -> None:
        write(path.parent / name)
        in_list(lambda document: document["training"][0].update(t1=name))(path)

    return apply


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut_metaimage(path: Path) -> None:
    cut(save_itk(path, phantom(), compressed=True))


def series_with_a_gap(folder: Path) -> None:
    save_dicom(folder, phantom())[1].unlink()


def huge(path: Path) -> None:
    """Make the list 1 GB long without writing it."""
    with path.open("r+b") as file:
        file.truncate(2**30)
    assert path.stat().st_size > MAX_BYTES


def constant(path: Path) -> None:
    for name in ("flair", "t1", "t1ce", "t2"):
        in_voxels(name, np.zeros_like)(path)


def absolute(document: dict[str, Any]) -> None:
    document["training"][0]["t1"] = "/etc/passwd"


def other_subject(document: dict[str, Any]) -> None:
    for entry in document["training"]:
        entry["subject"] = "anna"


FAULTS: dict[str, tuple[Fault, str]] = {
    "truncated": (in_bytes(lambda content: content[: len(content) // 2]), "checksum"),
    "trailer missing": (in_bytes(lambda content: content[:-8]), "checksum"),
    "CRC wrong": (in_bytes(lambda content: content[:-8] + b"\0" * 4 + content[-4:]), "checksum"),
    "one bit": (in_bytes(flipped), "checksum"),
    "not gzip": (in_bytes(lambda content: b"<!DOCTYPE html>"), "file-type"),
    "plain as gz": (in_bytes(gzip.decompress), "file-type"),
    "0 bytes": (in_bytes(lambda content: b""), "file-type"),
    "32767^7": (in_header("dim", 7, *[32767] * 7), "dimensions"),
    "size 0": (in_header("dim", 3, 0, 14, 10, 1, 1, 1, 1), "dimensions"),
    "size -3": (in_header("dim", 3, 12, -3, 10, 1, 1, 1, 1), "dimensions"),
    "bomb": (in_bytes(bomb), "length"),
    "promised": (in_header("dim", 3, 1000, 1000, 500, 1, 1, 1, 1), "length"),
    "affine NaN": (in_header("srow_x", np.nan, 0, 0, 0), "affine"),
    "affine singular": (in_header("srow_x", 0, -0.9, 0, 0), "affine"),
    "slope NaN": (in_header("slope", np.nan), "scaling"),
    "slope 1e38": (in_header("slope", 1e38), "scaling"),
    "shape differs": (in_voxels("t1", lambda volume: volume[:-1]), "different-grid"),
    "affine differs": (in_affine(0, 3, 0.002), "different-grid"),
    "spacing differs": (in_affine(2, 2, 0.1), "different-grid"),
    "orientation differs": (in_affine(0, 0, 2.4), "different-grid"),
    "mask's grid": (in_voxels("seg", lambda volume: volume[:, :-1]), "different-grid"),
    "no modality": (in_list(lambda d: d["training"][0].pop("t1")), "missing-key"),
    "no image": (in_list(lambda d: d["training"][0].update(t1=None)), "wrong-type"),
    "no file": (missing, "missing-file"),
    "NaN": (in_voxels("t1", with_value(np.nan)), "non-finite"),
    "Inf": (in_voxels("t1", with_value(np.inf)), "non-finite"),
    "constant": (constant, "constant-image"),
    "label 3 and 5": (
        in_voxels("seg", lambda volume: np.where(volume == 1, 5, volume) + (volume == 2)),
        "label-values",
    ),
    "label 3.9999": (in_voxels("seg", with_value(3.9999)), "not-lossless"),
    "label NaN": (in_voxels("seg", with_value(np.nan)), "not-lossless"),
    "complex": (in_voxels("t1", lambda volume: volume.astype(np.complex64)), "data-type"),
    "4D": (in_voxels("t1", lambda volume: np.stack([volume] * 2, axis=-1)), "dimensions"),
    "3 for 4": (
        in_voxels("seg", lambda volume: np.where(volume == 4, 3, volume).astype(np.uint8)),
        "label-coding",
    ),
    "4 for 3": (
        in_list(lambda d: d["labels"].update(enhancing_tumour=3)),
        "label-coding",
    ),
    "same file": (
        in_list(lambda d: d["training"][0].update(t1=d["training"][0]["t2"])),
        "repeated-file",
    ),
    "same content": (copied("t1", "t1ce"), "same-content"),
    "t1 and t1ce exchanged": (exchanged, "modalities-swapped"),
    "two folds": (in_list(other_subject), "subject-leak"),
    "content under two ids": (copied("t1", "t1", to_case=1), "duplicate-case"),
    "one id twice": (in_list(lambda d: d["training"][1].update(case="CASE_000")), "duplicate-case"),
    "absolute path": (in_list(absolute), "outside-root"),
    "..": (
        in_list(lambda d: d["training"][0].update(t1="../../../../../../etc/passwd")),
        "outside-root",
    ),
    "link out": (through_link, "outside-root"),
    "duplicate key": (in_text(lambda text: '{"name": "a",' + text[1:]), "json-syntax"),
    "NaN in the list": (in_text(lambda text: '{"name": NaN}'), "json-syntax"),
    "deep nesting": (in_text(lambda text: "[" * 100_000), "json-nesting"),
    "1 GB": (huge, "file-too-large"),
    "NRRD cut": (named("t1.nrrd", lambda path: cut(save_itk(path, phantom()))), "length"),
    "MetaImage cut": (named("t1.mha", cut_metaimage), "checksum"),
    "DICOM slice missing": (named("series", series_with_a_gap), "missing-slices"),
}
WARNINGS = {"modalities-swapped"}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # in nibabel
def test_every_fault_is_told_by_its_kind(cohort_factory: CohortFactory, name: str) -> None:
    fault, kind = FAULTS[name]
    path = cohort_factory(num_cases=2)
    target = path.parent / "problems.json"
    fault(path)
    code = check.main([str(path), *NO_CROP, "--json", str(target)])
    written = json.loads(target.read_text())
    assert kind in {problem["kind"] for problem in written["problems"]}, written
    assert all(problem[key] for problem in written["problems"] for key in ("expected", "remedy"))
    is_error = kind not in WARNINGS
    assert code == (ExitCode.DATA if is_error else ExitCode.DONE)
    assert (written["summary"]["errors"] > 0) is is_error


def single_axis(volume: np.ndarray) -> np.ndarray:
    return volume[..., None]


@pytest.mark.parametrize(
    "change",
    [
        in_text(lambda text: "\ufeff" + text),
        in_voxels("seg", single_axis),
        in_voxels("t1", single_axis),
        in_voxels("seg", lambda volume: volume.astype(np.float64)),
        in_voxels("seg", np.zeros_like),
    ],
    ids=["byte-order mark", "(x, y, z, 1) mask", "(x, y, z, 1) image", "float mask", "no tumour"],
)
def test_what_is_no_fault(cohort_factory: CohortFactory, change: Fault) -> None:
    path = cohort_factory(num_cases=2)
    change(path)
    target = path.parent / "problems.json"
    assert check.main([str(path), *NO_CROP, "--json", str(target)]) == ExitCode.DONE
    assert json.loads(target.read_text())["problems"] == []


def test_tumour_lost_to_the_crop_is_told_with_its_ceiling(cohort_factory: CohortFactory) -> None:
    path = cohort_factory(num_cases=1, num_folds=None)
    target = path.parent / "problems.json"
    crop = ("--border-crop", "5", "0", "0", "0", "0", "0")
    assert check.main([str(path), *crop, "--json", str(target)]) == ExitCode.DONE
    (problem,) = json.loads(target.read_text())["problems"]
    assert (problem["kind"], problem["severity"]) == ("tumour-cropped", "warning")
    assert f"{600 / 780:.4f} at most" in problem["found"]


def test_a_list_that_cannot_be_read_says_nothing_of_its_cases(
    cohort_factory: CohortFactory,
) -> None:
    path = cohort_factory(num_cases=2)
    in_list(absolute)(path)
    target = path.parent / "problems.json"
    assert check.main([str(path), "--json", str(target)]) == ExitCode.DATA
    assert json.loads(target.read_text())["summary"] == {
        "list": "cohort.json",
        "cases": None,
        "files": None,
        "errors": 1,
        "warnings": 0,
        "cases_with_errors": None,
    }


def test_all_errors_of_all_cases_are_in_one_report(cohort_factory: CohortFactory) -> None:
    """Six damaged cases of eight; nothing stops at the first."""
    path = cohort_factory(num_cases=8)
    document = json.loads(path.read_text())
    for entry in document["training"][:6]:
        image = path.parent / entry["t1"]
        image.write_bytes(image.read_bytes()[:-4])
        (path.parent / entry["t2"]).unlink()
    target = path.parent / "problems.json"
    assert check.main([str(path), *NO_CROP, "--json", str(target)]) == ExitCode.DATA
    found = [(p["case"], p["kind"]) for p in json.loads(target.read_text())["problems"]]
    ids = [f"case_{index:03d}" for index in range(6)]
    assert found == [(case, kind) for case in ids for kind in ("checksum", "missing-file")]


def test_the_cohort_is_sound_without_a_fault(cohort_factory: CohortFactory) -> None:
    path = cohort_factory(num_cases=2)
    assert files_of(path)["t1"].is_file()
    assert nib.load(files_of(path)["t1"]).shape == SHAPE
    assert check.main([str(path), *NO_CROP]) == ExitCode.DONE
