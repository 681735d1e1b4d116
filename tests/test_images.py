"""One image in every format is one image; all verbs read cases of any of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import AFFINE, LABELS, MODALITIES, SHAPE, CaseFactory, save_nifti
from image_files import OBLIQUE, phantom, save_dicom, save_itk

from pipeline.data.checking import check_visibly
from pipeline.data.datalist import Case, read_datalist
from pipeline.data.images import read_image
from pipeline.data.integrity import check_case
from pipeline.data.loading import LoadCase
from pipeline.errors import DataError

FORMATS = ("nii", "nii.gz", "nrrd", "mha", "dicom")


def save(folder: Path, name: str, volume: np.ndarray, affine: np.ndarray, kind: str) -> Path:
    """Write an int16 image as `folder/name` in the format `kind`; return its path."""
    if kind == "dicom":
        save_dicom(folder / name, volume, affine)
        return folder / name
    path = folder / f"{name}.{kind}"
    return (save_itk if kind in ("nrrd", "mha") else save_nifti)(path, volume, affine)


@pytest.fixture
def in_format(case_factory: CaseFactory, tmp_path: Path) -> Callable[..., Case]:
    """Return a function that writes a copy of the tests' case in another format."""

    def convert(kind: str) -> Case:
        case = case_factory()
        folder = tmp_path / kind
        folder.mkdir()
        images = [
            save(folder, name, np.asarray(nib.load(path).dataobj), AFFINE, kind)
            for name, path in zip(MODALITIES, case.images, strict=True)
        ]
        assert case.label is not None
        values = np.asarray(nib.load(case.label).dataobj).astype(np.int16)
        return replace(case, images=tuple(images), label=save(folder, "seg", values, AFFINE, kind))

    return convert


@pytest.mark.parametrize("kind", FORMATS)
def test_the_name_says_the_format(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path, "flair", phantom(), OBLIQUE, kind)
    volume, affine = read_image(path)
    assert volume.dtype == np.float32
    np.testing.assert_array_equal(volume, phantom())
    # NIfTI's float32 and DICOM's decimal strings limit it: at 31.5 mm 2e-6 and 1e-11.
    np.testing.assert_allclose(affine, OBLIQUE, rtol=0, atol=1e-5)
    assert read_image(path, dtype=None)[0].dtype == np.int16


@pytest.mark.parametrize("kind", FORMATS)
def test_one_volume_is_one_channel(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path, "flair", phantom(), OBLIQUE, kind)
    volume, _ = read_image(path, channels=True)
    np.testing.assert_array_equal(volume, phantom()[None])


@pytest.mark.parametrize("name", ["a.nhdr", "a.MHD"])
def test_detached_headers_are_no_nifti_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("NRRD0004")
    with pytest.raises(DataError, match="names another file"):
        read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.nii.gz", "missing-file"), ("none.nrrd", "missing-file"), ("a.jpg", "missing-file")],
)
def test_other_names_are_nifti_s_matter(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_image(tmp_path / name)


def test_a_folder_without_slices(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no DICOM file among its 0 files"):
        read_image(tmp_path)


@pytest.mark.parametrize("kind", ["nrrd", "mha", "dicom"])
def test_a_case_loads_as_its_nifti_files_do(
    in_format: Callable[..., Case], tmp_path: Path, kind: str
) -> None:
    item = LoadCase(labels=True)(in_format(kind))
    originals = sorted((tmp_path / "case_000").iterdir())
    twin = Case(
        "case_000",
        "case_000",
        tuple(originals[i] for i in (0, 2, 3, 4)),
        originals[1],
        None,
        tuple(LABELS.values()),
    )
    expected = LoadCase(labels=True)(twin)
    assert torch.equal(item["image"].as_tensor(), expected["image"].as_tensor())
    assert torch.equal(item["label"].as_tensor(), expected["label"].as_tensor())
    # The twin's header holds float32.
    torch.testing.assert_close(item["image"].affine, expected["image"].affine, rtol=0, atol=1e-5)
    assert item["image"].meta["filename_or_obj"] == (
        "flair" if kind == "dicom" else f"flair.{kind}"
    )


@pytest.mark.parametrize("kind", ["nrrd", "dicom"])
def test_the_integrity_check_reads_them(in_format: Callable[..., Case], kind: str) -> None:
    case = in_format(kind)
    assert check_case(case) == []
    damaged = case.images[2] if kind == "nrrd" else min(case.images[2].iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (problem,) = check_case(case)
    assert (problem.case, problem.kind, problem.file) == ("case_000", "length", case.images[2].name)


def test_modalities_of_one_case_in_different_formats(tmp_path: Path) -> None:
    """The formats' digits differ by less than the tolerance for one grid."""
    volumes = [phantom(seed=index) for index in range(4)]
    kinds = ("nii.gz", "nrrd", "mha", "dicom")
    images = tuple(
        save(tmp_path, name, volume, OBLIQUE, kind)
        for name, volume, kind in zip(MODALITIES, volumes, kinds, strict=True)
    )
    case = Case("mixed", "mixed", images, None, None, ())
    np.testing.assert_array_equal(LoadCase(labels=False)(case)["image"].numpy(), volumes)


def test_the_check_says_how_much_it_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in MODALITIES:
        save_dicom(tmp_path / "A" / name, phantom((100, 100, 5)))
    document: dict[str, Any] = {"modality": list(MODALITIES), "labels": LABELS}
    document["testing"] = [{name: f"A/{name}" for name in MODALITIES}]
    (tmp_path / "list.json").write_text(json.dumps(document))
    check_visibly(read_datalist(tmp_path / "list.json"), border_crop=None)
    # 4 series of 5 slices of 20,000 bytes, and their headers.
    assert "1 cases, 4 files, 0.4 MB" in capsys.readouterr().out


def test_data_lists_name_them(tmp_path: Path) -> None:
    def entry(folder: str, names: dict[str, str]) -> dict[str, Any]:
        return {name: f"{folder}/{file}" for name, file in names.items()}

    document = {
        "modality": list(MODALITIES),
        "labels": LABELS,
        "testing": [
            entry("A", {name: name for name in MODALITIES}),
            entry("B", {name: f"B_{name}.nrrd" for name in MODALITIES}),
            {"image": "C/C_flair.mha"},
        ],
    }
    path = tmp_path / "list.json"
    path.write_text(json.dumps(document))
    cases = read_datalist(path).testing
    assert [case.id for case in cases] == ["A", "B", "C"]
    assert cases[0].images[0] == tmp_path / "A" / "flair"


def test_the_phantom_is_not_symmetric() -> None:
    """Else the tests above could not tell an axis or a direction from another."""
    volume = phantom(SHAPE)
    for axis in range(3):
        assert not np.array_equal(volume, np.flip(volume, axis))
