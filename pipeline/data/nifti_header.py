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

from pipeline.data.file_types import NIFTI, true_type
from pipeline.data.reading import MAX_SCALE, fault, judge_affine, judge_size

HEADER_BYTES = 544  # a NIfTI-2 header (540) and the flag that says whether extensions follow (4)
MAX_DATA_OFFSET = 2**24  # extensions (DICOM headers, histories) end long before 16 MiB
AFFINE_REMEDY = "Restore the header's qform or sform from the original image."

# nibabel would print its findings; they are in our errors.
SILENT = logging.Logger("nibabel", level=logging.CRITICAL + 1)


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

    @property
    def num_bytes(self) -> int:
        """Size of the whole file, uncompressed."""
        return self.data_offset + self.num_data_bytes


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
    judge_size(shape, dtype, name=name)
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
        with np.errstate(invalid="ignore"):  # not finite is refused below
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError):  # a quaternion that is none
        affine = np.full((4, 4), np.nan)
    judge_affine(affine, name=name, remedy=AFFINE_REMEDY)
    return affine


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
