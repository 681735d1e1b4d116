"""What a NIfTI header says, judged from its first bytes before anything is allocated."""

from __future__ import annotations

import io
import logging
import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError

from pipeline.errors import DataError, Problem

HEADER_BYTES = 544  # a NIfTI-2 header (540) and the flag that says whether extensions follow (4)
MAX_VOXELS = 2**31
MAX_DATA_BYTES = 2**32
MAX_DATA_OFFSET = 2**24  # extensions (DICOM headers, histories) end long before 16 MiB
MAX_SCALE = 1e20  # beyond it, 16-bit intensities no longer fit into float32
MIN_SPACING_MM, MAX_SPACING_MM = 1e-3, 1e3
MIN_DETERMINANT = 1e-3  # of the three axes' unit vectors: 1 if orthogonal, 0 if in one plane

# nibabel would print its findings; they are in our errors.
SILENT = logging.Logger("nibabel", level=logging.CRITICAL + 1)

GZIP = "gzip"
NIFTI = "NIfTI"
# (position, bytes, name): the first that fits is the file's true type.
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1f\x8b", GZIP),
    (344, b"n+1\0", NIFTI),
    (4, b"n+2\0", NIFTI),
    (344, b"ni1\0", "NIfTI header without its .img file"),
    (4, b"ni2\0", "NIfTI header without its .img file"),
    (128, b"DICM", "DICOM file"),
    (0, b"PK", "zip archive"),
    (0, b"BZh", "bzip2 file"),
    (0, b"\x28\xb5\x2f\xfd", "zstd file"),
    (0, b"\xfd7zXZ", "xz file"),
    (0, b"NRRD", "NRRD file"),
    (0, b"\x89HDF", "HDF5 file"),
    (0, b"version https://git-lfs", "Git LFS pointer (the file itself was not fetched)"),
)


@dataclass(frozen=True, eq=False)
class ImageHeader:
    """The facts of one image file.

    `shape` is (X, Y, Z), or (X, Y, Z, C) where channels were asked for; `affine` (4, 4)
    maps voxel indices to RAS millimetres; `dtype` is what the file stores, and a stored value v
    means ``v * slope + intercept``. `data_offset` is where the voxels begin, in bytes.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    spacing_mm: tuple[float, float, float]
    dtype: np.dtype
    axcodes: str
    slope: float
    intercept: float
    data_offset: int

    @property
    def num_data_bytes(self) -> int:
        """Size of the voxels as stored."""
        return math.prod(self.shape) * self.dtype.itemsize


def fault(name: str, kind: str, *, expected: str, found: str, remedy: str) -> DataError:
    """Return the error for one fault of the file `name`; the caller adds the case."""
    return DataError.of(
        Problem(case="", kind=kind, file=name, expected=expected, found=found, remedy=remedy)
    )


def true_type(head: bytes) -> str:
    """Return the type of a file by its first bytes, whatever it is called."""
    if not head:
        return "empty file"
    for position, magic, name in SIGNATURES:
        if head[position : position + len(magic)] == magic:
            return name
    if not head.strip(b"\0"):
        return "file of zeros"
    if head.lstrip()[:1] == b"<":
        return "HTML or XML page"
    return "file of an unknown type"


def parse_header(head: bytes, *, name: str, channels: bool = False) -> ImageHeader:
    """Judge the first `HEADER_BYTES` of an uncompressed NIfTI file, and return its facts.

    A single volume is asked for, and trailing axes of length 1 are dropped; with `channels` there
    may be several volumes and the shape is (X, Y, Z, C). Raises DataError (no case yet) of kind
    ``file-type``, ``header``, ``dimensions``, ``data-type``, ``scaling``, ``units`` or ``affine``.
    """
    found = true_type(head)
    if found != NIFTI:
        raise fault(
            name,
            "file-type",
            expected="a NIfTI-1 or NIfTI-2 image in one file",
            found=found,
            remedy="Export or download the image again as .nii.gz.",
        )
    header = _parse_with_nibabel(head, name)
    shape = _judge_shape(header, name, channels)
    dtype = _judge_dtype(header, name)
    _judge_size(shape, dtype, name)
    slope, intercept = _judge_scaling(header, name)
    _judge_units(header, name)
    affine = _judge_affine(header, name)
    spacing = voxel_sizes(affine)
    return ImageHeader(
        shape=shape,
        affine=affine,
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        dtype=dtype,
        axcodes="".join(nib.aff2axcodes(affine)),
        slope=slope,
        intercept=intercept,
        data_offset=_judge_offset(header, name),
    )


def _parse_with_nibabel(head: bytes, name: str) -> nib.Nifti1Header:
    is_second = head[4:8] == b"n+2\0"
    kind = nib.Nifti2Header if is_second else nib.Nifti1Header
    # Only the fixed part: extensions are neither read nor trusted.
    fixed = head[: kind.template_dtype.itemsize]
    try:
        header = kind.from_fileobj(io.BytesIO(fixed), check=False)
        header.check_fix(logger=SILENT)
    except (HeaderDataError, HeaderTypeError, WrapStructError) as error:
        raise fault(
            name,
            "header",
            expected="a valid NIfTI header",
            found=str(error),
            remedy="Export or download the image again.",
        ) from error
    return header


def _judge_shape(header: nib.Nifti1Header, name: str, channels: bool) -> tuple[int, ...]:
    stored = tuple(int(size) for size in header.get_data_shape())
    shape = stored
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if channels and len(shape) == 3:
        shape = (*shape, 1)
    if len(shape) == (4 if channels else 3) and min(shape) > 0:
        return shape
    raise fault(
        name,
        "dimensions",
        expected=f"{'volumes (X, Y, Z, C)' if channels else 'one volume (X, Y, Z)'}, no size 0",
        found=f"dimensions {stored}",
        remedy="Split or merge the file so that it holds what the data list says.",
    )


def _judge_dtype(header: nib.Nifti1Header, name: str) -> np.dtype:
    dtype = header.get_data_dtype()
    if dtype.kind in "iuf" and dtype.itemsize <= 8:
        return dtype
    raise fault(
        name,
        "data-type",
        expected="integers or real numbers of at most 64 bits",
        found=f"{header.get_value_label('datatype')}",
        remedy="Convert the image to one real value per voxel, for example int16 or float32.",
    )


def _judge_size(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    num_voxels = math.prod(shape)
    if num_voxels <= MAX_VOXELS and num_voxels * dtype.itemsize <= MAX_DATA_BYTES:
        return
    raise fault(
        name,
        "dimensions",
        expected=f"at most {MAX_VOXELS} voxels and {MAX_DATA_BYTES} bytes",
        found=f"dimensions {shape}: {num_voxels} voxels, {num_voxels * dtype.itemsize} bytes",
        remedy="The header is damaged, or the file is no image of one patient: replace it.",
    )


def _judge_scaling(header: nib.Nifti1Header, name: str) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0:
        return 1.0, 0.0  # NIfTI-1: a slope of 0 means that the values are not scaled
    if 1 / MAX_SCALE <= abs(slope) <= MAX_SCALE and abs(intercept) <= MAX_SCALE:
        return slope, intercept
    raise fault(
        name,
        "scaling",
        expected=f"finite scl_slope and scl_inter of at most {MAX_SCALE:g}",
        found=f"scl_slope {slope:g}, scl_inter {intercept:g}",
        remedy="Write the image again with scl_slope 1 and scl_inter 0 if its values are right.",
    )


def _judge_units(header: nib.Nifti1Header, name: str) -> None:
    unit = int(header["xyzt_units"]) & 0x07  # 0 unknown, 1 metre, 2 millimetre, 3 micrometre
    if unit in (1, 3):
        raise fault(
            name,
            "units",
            expected="spacing in millimetres",
            found="metres" if unit == 1 else "micrometres",
            remedy="Convert the header's spacing and affine to millimetres.",
        )


def _judge_affine(header: nib.Nifti1Header, name: str) -> np.ndarray:
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError):  # a quaternion that is none
        affine = np.full((4, 4), np.nan)
    spacing = voxel_sizes(affine)
    in_range = np.all((spacing >= MIN_SPACING_MM) & (spacing <= MAX_SPACING_MM))
    usable = bool(in_range and np.all(np.isfinite(affine)))
    if usable and abs(np.linalg.det(affine[:3, :3] / spacing)) >= MIN_DETERMINANT:
        return affine
    rows = ", ".join(f"({' '.join(f'{value:g}' for value in row)})" for row in affine[:3])
    raise fault(
        name,
        "affine",
        expected="a finite, invertible affine with a spacing of "
        f"{MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm",
        found=f"the rows {rows}",
        remedy="Restore the header's qform or sform from the original image.",
    )


def _judge_offset(header: nib.Nifti1Header, name: str) -> int:
    offset = float(header["vox_offset"])
    lowest = header.single_vox_offset
    if offset == 0:
        return int(lowest)
    if lowest <= offset <= MAX_DATA_OFFSET and offset == int(offset):
        return int(offset)
    raise fault(
        name,
        "header",
        expected=f"voxels that begin between byte {lowest} and byte {MAX_DATA_OFFSET}",
        found=f"vox_offset {offset:g}",
        remedy="Export or download the image again.",
    )
