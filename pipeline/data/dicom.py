"""Reading a folder with one DICOM series: headers are judged, then ITK's GDCM gives the pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from pipeline.data.dicom_geometry import affine_of, order_slices
from pipeline.data.dicom_headers import SliceHeader, read_series
from pipeline.data.itk_library import load_itk
from pipeline.data.reading import MAX_SCALE, cast_voxels, fault, judge_size

GREY = "MONOCHROME2"  # 1 is inverted: bright means little
STORED_TYPES = ("u1", "i1", "u2", "i2", "u4", "i4")
CONVERT_REMEDY = "Convert the series to NIfTI with a DICOM converter such as dcm2niix."


def read_dicom_volume(
    folder: Path, *, dtype: DTypeLike | None = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels (X, Y, Z) of the series in `folder` in `dtype`, and its affine in RAS mm.

    X is the column of a slice, Y its row, and Z the slice, in the order of their positions; names
    of files mean nothing. `dtype` is as for `read_volume` of NIfTI files: None keeps the stored
    one, or float64 where a slice scales its values (rescale slope and intercept, its own for each
    slice). Memory order is the file's: X varies fastest.

    Raises DataError with one Problem, without a case, whose `file` is the folder: the kinds of
    `read_series` and `order_slices`, ``dimensions``, ``data-type``, ``scaling``, ``pixels`` (GDCM
    cannot decode them) and ``not-lossless``. Neither names of persons nor of files are in it.
    """
    name = folder.name
    slices = read_series(folder)
    _judge_images(slices, name)
    ordered = order_slices(slices, name=name)
    affine = affine_of(ordered, name=name)
    stored = np.dtype(ordered[0].stored_type)
    shape = (*ordered[0].shape, len(ordered))
    judge_size(shape, stored, name=name)
    is_scaled = any((header.slope, header.intercept) != (1, 0) for header in ordered)
    volume = np.empty(shape, dtype=np.float64 if is_scaled else stored, order="F")
    for index, header in enumerate(ordered):
        volume[:, :, index] = cast_voxels(_pixels(header, name), volume.dtype, name=name)
    return cast_voxels(volume, None if dtype is None else np.dtype(dtype), name=name), affine


def _judge_images(slices: Sequence[SliceHeader], name: str) -> None:
    """Refuse slices that are no grey images, or not all of one size and type."""
    first = slices[0]
    if any(header.frames != 1 for header in slices):
        raise fault(
            name,
            "dimensions",
            expected="one slice in a file",
            found="a file with several frames (enhanced DICOM)",
            remedy=CONVERT_REMEDY,
        )
    if any(header.samples != 1 or header.photometric != GREY for header in slices):
        raise fault(
            name,
            "data-type",
            expected=f"one grey value per voxel ({GREY})",
            found="colours, or inverted grey values",
            remedy="Export the original series, not a picture of it.",
        )
    sizes = sorted({(header.shape, header.stored_type) for header in slices})
    if len(sizes) > 1 or min(first.shape) < 1 or first.stored_type not in STORED_TYPES:
        shown = ", ".join(f"{shape[0]}x{shape[1]} of type {stored}" for shape, stored in sizes[:4])
        raise fault(
            name,
            "dimensions",
            expected="slices of one size, in integers of 8, 16 or 32 bits",
            found=shown,
            remedy="Put the slices of one volume, and all of them, into a folder of their own.",
        )
    for header in slices:
        if not (0 < abs(header.slope) <= MAX_SCALE and abs(header.intercept) <= MAX_SCALE):
            raise fault(
                name,
                "scaling",
                expected=f"a finite rescale slope and intercept of at most {MAX_SCALE:g}",
                found=f"slope {header.slope:g}, intercept {header.intercept:g} in the slice with "
                f"instance number {header.instance}",
                remedy="Export the series again from its source.",
            )


def _pixels(header: SliceHeader, name: str) -> np.ndarray:
    """Return one slice (X, Y), decompressed by GDCM and rescaled as the slice says, as float64."""
    itk = load_itk()
    image_io = itk.GDCMImageIO.New()
    image_io.SetFileName(str(header.path))
    # Double holds integers of 32 bits exactly, and GDCM rescales in it.
    reader = itk.ImageFileReader[itk.Image[itk.D, 3]].New()
    reader.SetImageIO(image_io)
    reader.SetFileName(str(header.path))
    try:
        # GDCM may understand a damaged file otherwise than pydicom did, and then takes the memory
        # for another image.
        image_io.ReadImageInformation()
        found = tuple(image_io.GetDimensions(axis) for axis in range(3))
        if found != (*header.shape, 1) or image_io.GetNumberOfComponents() != 1:
            raise _undecoded(header, name, f"{math.prod(found)} pixels")
        reader.Update()
        pixels = itk.array_from_image(reader.GetOutput())
    except RuntimeError as error:
        raise _undecoded(header, name, "GDCM cannot decode it") from error
    return pixels[0].T


def _undecoded(header: SliceHeader, name: str, found: str) -> Exception:
    return fault(
        name,
        "pixels",
        expected=f"{header.shape[0]}x{header.shape[1]} pixels in the slice with instance number "
        f"{header.instance}",
        found=found,
        remedy=CONVERT_REMEDY,
    )
