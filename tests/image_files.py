"""Writing images that are not NIfTI, for tests: NRRD and MetaImage with ITK, DICOM with pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.eulerangles import euler2mat
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from pipeline.data.itk_library import load_itk

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# No axis of it is one of the body's, all spacings differ, and the origin is somewhere else.
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = euler2mat(0.3, -0.2, 0.5) @ np.diag([1.2, 0.9, 2.5])
OBLIQUE[:3, 3] = (-31.5, 17.25, -8.0)
SERIES_UID = "1.2.826.0.1.3680043.8.498.1"
# What must never be in an error. File names are made of it too, as scanners do.
PERSONAL = ("Doe", "Jane", "SECRET")


def phantom(shape: tuple[int, int, int] = (6, 5, 4), *, seed: int = 0) -> np.ndarray:
    """Return int16 noise, negative values included."""
    return np.random.default_rng(seed).integers(-1000, 3000, shape).astype(np.int16)


def save_itk(
    path: Path, volume: np.ndarray, affine: np.ndarray = OBLIQUE, *, compressed: bool = False
) -> Path:
    """Write (X, Y, Z) as .nrrd or .mha with ITK; return `path`."""
    itk = load_itk()
    image = itk.image_from_array(np.ascontiguousarray(volume.T))
    in_lps, spacing = LPS_TO_RAS @ affine, voxel_sizes(affine)
    image.SetSpacing([float(size) for size in spacing])
    image.SetOrigin([float(value) for value in in_lps[:3, 3]])
    image.SetDirection(in_lps[:3, :3] / spacing)
    writer = itk.ImageFileWriter[type(image)].New(Input=image, FileName=str(path))
    kind = itk.NrrdImageIO if path.suffix == ".nrrd" else itk.MetaImageIO
    writer.SetImageIO(kind.New())
    writer.SetUseCompression(compressed)
    writer.Update()
    return path


def save_dicom(
    folder: Path, volume: np.ndarray, affine: np.ndarray = OBLIQUE, *, seed: int = 0
) -> list[Path]:
    """Write (X, Y, Z) int16 as a DICOM series, in files whose names are in no order.

    Returns the paths in the order of the slices. `affine` is right-handed: DICOM knows no other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(seed).permutation(volume.shape[2])
    paths = [folder / f"Doe_Jane_{number:04d}.dcm" for number in numbers]
    for index, path in enumerate(paths):
        save_slice(path, slice_dataset(volume, affine, index))
    return paths


def slice_dataset(volume: np.ndarray, affine: np.ndarray, index: int) -> Dataset:
    """Return slice `index` of (X, Y, Z) int16 as an uncompressed MR image."""
    in_lps, spacing = LPS_TO_RAS @ affine, voxel_sizes(affine)
    row, column = in_lps[:3, 0] / spacing[0], in_lps[:3, 1] / spacing[1]
    dataset = Dataset()
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = dataset.FrameOfReferenceUID = f"{SERIES_UID}.1"
    dataset.SeriesInstanceUID = SERIES_UID
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "SECRET"
    dataset.SeriesDescription = "FLAIR of Jane"
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "MR", 5, index + 1
    dataset.Columns, dataset.Rows = volume.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.PixelSpacing = decimals((spacing[1], spacing[0]))
    dataset.ImageOrientationPatient = decimals((*row, *column))
    dataset.ImagePositionPatient = decimals(in_lps[:3] @ (0, 0, index, 1))
    dataset.PixelData = volume[:, :, index].T.astype("<i2").tobytes()
    return dataset


def save_slice(path: Path, dataset: Dataset) -> None:
    """Write one DICOM file with its preamble and meta information."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)


def decimals(values: Any) -> list[DSfloat]:
    """Return numbers as DICOM's decimal strings, which have at most 16 characters."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def save_nifti_twin(path: Path, volume: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    """Write the same image as NIfTI with nibabel; return `path`."""
    nib.save(nib.Nifti1Image(volume, affine, dtype=volume.dtype), path)
    return path
