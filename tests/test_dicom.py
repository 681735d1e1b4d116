"""A DICOM series: the voxels and the affine of its NIfTI twin, or a fault that names nobody."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from conftest import AFFINE
from image_files import (
    LPS_TO_RAS,
    OBLIQUE,
    PERSONAL,
    decimals,
    phantom,
    save_dicom,
    save_nifti_twin,
    save_slice,
    slice_dataset,
)
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from pipeline.data.dicom import read_dicom_volume
from pipeline.data.itk_library import load_itk
from pipeline.data.nifti import read_volume
from pipeline.errors import DataError

Change = Callable[[Dataset], None]


def change_slice(path: Path, change: Change) -> None:
    dataset = pydicom.dcmread(path)
    change(dataset)
    save_slice(path, dataset)


def setting(**values: Any) -> Change:
    def change(dataset: Dataset) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


def deleting(keyword: str) -> Change:
    return lambda dataset: delattr(dataset, keyword)


def fault_of(folder: Path, **options: Any) -> tuple[str, str]:
    """Return (kind, found) of the one problem that reading raises; nobody is named in it."""
    with pytest.raises(DataError, match=r"expected .*; found ") as caught:
        read_dicom_volume(folder, **options)
    (problem,) = caught.value.problems
    assert (problem.case, problem.file, problem.severity) == ("", folder.name, "error")
    assert problem.remedy
    assert not [word for word in PERSONAL if word in str(problem)]
    return problem.kind, problem.found


# --- sound series ------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE], ids=["flipped", "oblique"])
def test_is_the_image_that_its_nifti_twin_is(tmp_path: Path, affine: np.ndarray) -> None:
    save_dicom(tmp_path / "series", phantom(), affine)
    volume, found = read_dicom_volume(tmp_path / "series")
    expected, twin = read_volume(save_nifti_twin(tmp_path / "a.nii.gz", phantom(), affine))
    assert volume.dtype == np.float32
    np.testing.assert_array_equal(volume, expected)
    # Decimal strings have 16 characters, here 12 digits behind the point at least; the twin's
    # header holds float32.
    np.testing.assert_allclose(found, affine, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found, twin, rtol=0, atol=1e-5)


def test_itk_s_series_reader_agrees(tmp_path: Path) -> None:
    """Order, spacing, direction and origin are worked out by us; ITK's own reader is the judge."""
    save_dicom(tmp_path, phantom())
    itk = load_itk()
    with warnings.catch_warnings():  # as in load_itk: these wrappers are only used here
        warnings.simplefilter("ignore", DeprecationWarning)
        finder, series_reader = itk.GDCMSeriesFileNames.New(), itk.ImageSeriesReader
    finder.SetDirectory(str(tmp_path))
    files = finder.GetFileNames(finder.GetSeriesUIDs()[0])
    reader = series_reader[itk.Image[itk.SS, 3]].New(FileNames=files)
    reader.SetImageIO(itk.GDCMImageIO.New())
    reader.Update()
    image = reader.GetOutput()
    in_lps = np.eye(4)
    in_lps[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(
        list(image.GetSpacing())
    )
    in_lps[:3, 3] = list(image.GetOrigin())
    volume, affine = read_dicom_volume(tmp_path, dtype=None)
    np.testing.assert_array_equal(volume, itk.array_from_image(image).T)
    np.testing.assert_allclose(affine, LPS_TO_RAS @ in_lps, rtol=0, atol=1e-10)  # decimal strings


@pytest.mark.parametrize("seed", range(3))
def test_the_names_of_the_files_mean_nothing(tmp_path: Path, seed: int) -> None:
    save_dicom(tmp_path / "series", phantom((4, 3, 12)), seed=seed)
    np.testing.assert_array_equal(
        read_dicom_volume(tmp_path / "series", dtype=None)[0], phantom((4, 3, 12))
    )


def test_slices_numbered_against_their_normal(tmp_path: Path) -> None:
    """The voxels are the same in space; Z is turned, because the grid is right-handed."""
    turned = OBLIQUE @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 3], [0, 0, 0, 1]])
    save_dicom(tmp_path / "series", phantom(), turned)
    volume, affine = read_dicom_volume(tmp_path / "series")
    np.testing.assert_array_equal(volume, phantom()[:, :, ::-1])
    np.testing.assert_allclose(affine, OBLIQUE, rtol=0, atol=1e-10)  # decimal strings


@pytest.mark.parametrize(("slope", "intercept"), [(2.5, -7.0), (1.0, 3.0), (-1.0, 0.0)])
def test_rescale_slope_and_intercept_are_applied(
    tmp_path: Path, slope: float, intercept: float
) -> None:
    scaling = setting(RescaleSlope=slope, RescaleIntercept=intercept)
    for path in save_dicom(tmp_path, phantom()):
        change_slice(path, scaling)
    volume, _ = read_dicom_volume(tmp_path, dtype=None)
    assert volume.dtype == np.float64
    np.testing.assert_array_equal(volume, phantom() * slope + intercept)


def test_each_slice_has_a_scaling_of_its_own(tmp_path: Path) -> None:
    """As Philips and PET scanners write them; ITK's series reader would give one type to all."""
    for index, path in enumerate(save_dicom(tmp_path, phantom())):
        change_slice(path, setting(RescaleSlope=index + 0.5, RescaleIntercept=0))
    slopes = np.arange(4) + 0.5
    np.testing.assert_array_equal(read_dicom_volume(tmp_path)[0], phantom() * slopes)


def test_the_stored_type_is_kept_on_request(tmp_path: Path) -> None:
    save_dicom(tmp_path / "signed", phantom())
    assert read_dicom_volume(tmp_path / "signed", dtype=None)[0].dtype == np.int16
    for path in save_dicom(tmp_path / "unsigned", np.abs(phantom())):
        change_slice(path, setting(PixelRepresentation=0))
    volume, _ = read_dicom_volume(tmp_path / "unsigned", dtype=None)
    assert volume.dtype == np.uint16
    np.testing.assert_array_equal(volume, np.abs(phantom()))


def test_values_that_an_integer_type_cannot_hold(tmp_path: Path) -> None:
    save_dicom(tmp_path, phantom())
    assert fault_of(tmp_path, dtype=np.uint8)[0] == "not-lossless"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_other_transfer_syntaxes(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    volume = phantom((20, 24, 3))
    for path in save_dicom(tmp_path, volume):
        dataset = pydicom.dcmread(path)
        if syntax == RLELossless:
            dataset.compress(RLELossless)
            save_slice(path, dataset)
        else:
            if syntax == ExplicitVRBigEndian:
                words = np.frombuffer(dataset.PixelData, dtype="<i2")
                dataset.PixelData = words.astype(">i2").tobytes()
            dataset.file_meta.TransferSyntaxUID = syntax
            pydicom.dcmwrite(
                path,
                dataset,
                implicit_vr=syntax.is_implicit_VR,
                little_endian=syntax.is_little_endian,
                enforce_file_format=True,
            )
    np.testing.assert_array_equal(read_dicom_volume(tmp_path, dtype=None)[0], volume)


def test_an_odd_number_of_bytes_is_padded(tmp_path: Path) -> None:
    volume = np.arange(3 * 3 * 2, dtype=np.uint8).reshape(3, 3, 2)
    for index, path in enumerate(save_dicom(tmp_path, volume.astype(np.int16))):
        pixels = volume[:, :, index].T.tobytes() + b"\0"
        change_slice(
            path,
            setting(
                BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0, PixelData=pixels
            ),
        )
    np.testing.assert_array_equal(read_dicom_volume(tmp_path, dtype=None)[0], volume)


def test_what_is_no_slice_is_passed_over(tmp_path: Path) -> None:
    save_dicom(tmp_path, phantom())
    (tmp_path / ".hidden.dcm").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "subfolder.dcm").mkdir()
    report = slice_dataset(phantom(), OBLIQUE, 0)
    del report.PixelData
    report.SOPClassUID, report.Modality = BasicTextSRStorage, "SR"
    report.SeriesInstanceUID = "1.2.3.4"
    save_slice(tmp_path / "report.dcm", report)
    directory = Dataset()
    directory.SOPClassUID, directory.SOPInstanceUID = MediaStorageDirectoryStorage, "1.2.3"
    save_slice(tmp_path / "DICOMDIR", directory)
    np.testing.assert_array_equal(read_dicom_volume(tmp_path)[0], phantom())


# --- which files -------------------------------------------------------------------------------


def test_no_folder_and_no_series(tmp_path: Path) -> None:
    assert fault_of(tmp_path / "none")[0] == "missing-file"
    assert fault_of(tmp_path) == ("file-type", "no DICOM file among its 0 files")
    (tmp_path / "a.txt").write_text("text")
    assert fault_of(tmp_path) == ("file-type", "no DICOM file among its 1 files")
    dataset = slice_dataset(phantom(), OBLIQUE, 0)
    del dataset.PixelData
    save_slice(tmp_path / "a.dcm", dataset)
    assert fault_of(tmp_path) == ("file-type", "1 DICOM files, none of which has pixels")


def test_several_series_are_listed_without_names(tmp_path: Path) -> None:
    save_dicom(tmp_path, phantom((4, 3, 5)))
    for index in range(2):
        dataset = slice_dataset(phantom(), OBLIQUE, index)
        setting(SeriesInstanceUID="1.2.3", SeriesNumber=7, Modality="JANE DOE")(dataset)
        save_slice(tmp_path / f"other_{index}.dcm", dataset)
    assert fault_of(tmp_path) == (
        "several-series",
        "2 series: series number 5 (MR): 5 slices; series number 7 (?): 2 slices",
    )


@pytest.mark.parametrize("content", [b"", b"\0" * 500, b"text"])
def test_a_slice_that_is_no_dicom_any_more(tmp_path: Path, content: bytes) -> None:
    """The last slice, whose loss the distances of the others cannot tell."""
    save_dicom(tmp_path, phantom())[-1].write_bytes(content)
    assert fault_of(tmp_path) == (
        "header",
        "1 of 4 files are named as the slices are, but are not DICOM",
    )


@pytest.mark.parametrize("cut", [1, 30, 59])
def test_a_slice_cut_within_its_pixels(tmp_path: Path, cut: int) -> None:
    path = save_dicom(tmp_path, phantom())[-1]
    path.write_bytes(path.read_bytes()[:-cut])
    assert fault_of(tmp_path) == (
        "length",
        f"{60 - cut} bytes in the slice with instance number 4",
    )


def test_a_slice_with_fewer_pixels_than_it_says(tmp_path: Path) -> None:
    """ITK fills them with whatever memory holds."""
    path = save_dicom(tmp_path, phantom())[1]
    change_slice(path, lambda dataset: setting(PixelData=dataset.PixelData[:20])(dataset))
    assert fault_of(tmp_path) == ("length", "20 bytes in the slice with instance number 2")


def test_a_slice_cut_anywhere_before_its_pixels(tmp_path: Path) -> None:
    path = save_dicom(tmp_path, phantom())[-1]
    content = path.read_bytes()
    for length in range(len(content) - 61, 132, -3):
        path.write_bytes(content[:length])
        assert fault_of(tmp_path)[0] == "header"


def test_a_compressed_slice_that_is_cut(tmp_path: Path) -> None:
    paths = save_dicom(tmp_path, phantom((20, 24, 3)))
    for path in paths:
        change_slice(path, lambda dataset: dataset.compress(RLELossless))
    (frame,) = generate_frames(pydicom.dcmread(paths[1]).PixelData, number_of_frames=1)
    change_slice(paths[1], setting(PixelData=encapsulate([frame[:400]])))
    kind, found = fault_of(tmp_path)
    assert (kind, found) == ("pixels", "GDCM cannot decode it")


def test_a_deflated_header(tmp_path: Path) -> None:
    path = save_dicom(tmp_path, phantom())[0]
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    assert fault_of(tmp_path) == ("header", "a DICOM file that cannot be parsed")


@pytest.mark.parametrize(
    "change",
    [
        deleting("Rows"),
        deleting("BitsAllocated"),
        deleting("PixelRepresentation"),
    ],
)
def test_a_header_without_what_is_needed(tmp_path: Path, change: Change) -> None:
    change_slice(save_dicom(tmp_path, phantom())[0], change)
    assert fault_of(tmp_path) == ("header", "a DICOM file that cannot be parsed")


# --- which slices ------------------------------------------------------------------------------


def test_a_missing_slice(tmp_path: Path) -> None:
    save_dicom(tmp_path, phantom((4, 3, 6)))[2].unlink()
    assert fault_of(tmp_path) == (
        "missing-slices",
        "1 other distances: 5.00 mm between the instance numbers 2 and 4",
    )


def test_positions_rounded_by_the_scanner_are_equal_distances(tmp_path: Path) -> None:
    """Steps of 2.5 mm along an oblique normal, in positions of two digits."""
    for path in save_dicom(tmp_path, phantom()):
        change_slice(
            path,
            lambda dataset: setting(
                ImagePositionPatient=decimals(np.round(dataset.ImagePositionPatient, 2))
            )(dataset),
        )
    _, affine = read_dicom_volume(tmp_path)
    np.testing.assert_allclose(affine, OBLIQUE, rtol=0, atol=0.01)  # two digits


def test_a_volume_needs_two_slices(tmp_path: Path) -> None:
    save_dicom(tmp_path, phantom((4, 3, 1)))
    assert fault_of(tmp_path) == ("dimensions", "one slice")


def test_several_images_at_one_place(tmp_path: Path) -> None:
    """Two time points or echoes under one series."""
    for path in save_dicom(tmp_path, phantom()):
        shutil.copy(path, path.with_name(f"again_{path.name}"))
    assert fault_of(tmp_path) == ("dimensions", "8 images at 4 places")


def test_slices_in_other_directions(tmp_path: Path) -> None:
    path = save_dicom(tmp_path, phantom())[0]
    change_slice(path, setting(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
    kind, found = fault_of(tmp_path)
    assert kind == "affine"
    assert "among 4 slices" in found


def test_slices_of_other_spacings_and_sizes(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a", phantom())[0]
    change_slice(path, setting(PixelSpacing=[0.9, 1.3]))
    assert fault_of(tmp_path / "a") == (
        "affine",
        "values that differ by up to 0.1 among 4 slices",
    )
    path = save_dicom(tmp_path / "b", phantom())[0]
    save_slice(path, slice_dataset(phantom((7, 5, 4)), OBLIQUE, 0))
    assert fault_of(tmp_path / "b") == ("dimensions", "6x5 of type i2, 7x5 of type i2")


def test_a_tilted_gantry(tmp_path: Path) -> None:
    for index, path in enumerate(save_dicom(tmp_path, phantom(), AFFINE)):
        change_slice(path, setting(ImagePositionPatient=[-31.5, 17.25 + index, 8 + 2.5 * index]))
    # 1 mm sideways for each 2.5 mm: atan(1 / 2.5) = 21.8 degrees.
    assert fault_of(tmp_path) == ("affine", "a tilt of 21.8 degrees (of the gantry)")


@pytest.mark.parametrize(
    "change",
    [
        deleting("ImagePositionPatient"),
        deleting("ImageOrientationPatient"),
        deleting("PixelSpacing"),
        lambda dataset: dataset.add_new("ImagePositionPatient", "DS", ["1", "2"]),
    ],
)
def test_a_slice_without_its_place(tmp_path: Path, change: Change) -> None:
    """ITK would put it at the origin."""
    change_slice(save_dicom(tmp_path, phantom())[2], change)
    assert fault_of(tmp_path) == (
        "affine",
        "none, or no numbers, in the slice with instance number 3",
    )


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "(1 0 0 1 0 0)"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 1, 0]}, "(0 0 0 0 1 0)"),
        ({"PixelSpacing": [0, 1]}, "the rows"),
    ],
)
def test_geometry_that_cannot_be_used(tmp_path: Path, values: dict[str, Any], found: str) -> None:
    for path in save_dicom(tmp_path, phantom(), AFFINE):
        change_slice(path, setting(**values))
    kind, words = fault_of(tmp_path)
    assert kind == "affine"
    assert found in words


# --- which pixels ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind", "found"),
    [
        (
            {"NumberOfFrames": 2, "PixelData": bytes(120)},
            "dimensions",
            "a file with several frames (enhanced DICOM)",
        ),
        (
            {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PixelData": bytes(180)},
            "data-type",
            "colours, or inverted grey values",
        ),
        (
            {"PhotometricInterpretation": "MONOCHROME1"},
            "data-type",
            "colours, or inverted grey values",
        ),
        ({"BitsAllocated": 64, "PixelData": bytes(240)}, "dimensions", "6x5 of type i8"),
        ({"Rows": 0, "PixelData": b""}, "dimensions", "6x0 of type i2"),
        (
            {"RescaleSlope": 0, "RescaleIntercept": 1},
            "scaling",
            "slope 0, intercept 1 in the slice with instance number 2",
        ),
        (
            {"RescaleSlope": 1, "RescaleIntercept": 1e30},
            "scaling",
            "slope 1, intercept 1e+30 in the slice with instance number 2",
        ),
    ],
)
def test_pixels_that_are_not_one_grey_value(
    tmp_path: Path, values: dict[str, Any], kind: str, found: str
) -> None:
    for path in save_dicom(tmp_path, phantom()):
        change_slice(path, setting(**values))
    assert fault_of(tmp_path) == (kind, found)


def test_absurd_sizes_are_judged_before_anything_is_allocated(tmp_path: Path) -> None:
    """Compressed pixels may claim any size."""
    for path in save_dicom(tmp_path, phantom((20, 24, 3))):
        change_slice(path, lambda dataset: dataset.compress(RLELossless))
        change_slice(path, setting(Rows=60_000, Columns=60_000))
    kind, found = fault_of(tmp_path)
    assert kind == "dimensions"
    assert "10800000000 voxels" in found


def test_a_size_that_the_pixels_do_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were GDCM to read a header otherwise than we do, the volume would be wrong silently."""
    from pipeline.data import dicom_headers

    save_dicom(tmp_path, phantom((6, 5, 4)))
    integer = dicom_headers._integer

    def swapped(dataset: pydicom.FileDataset, keyword: str) -> int:
        return integer(dataset, {"Rows": "Columns", "Columns": "Rows"}.get(keyword, keyword))

    monkeypatch.setattr(dicom_headers, "_integer", swapped)
    assert fault_of(tmp_path) == ("pixels", "30 pixels")
