"""Reading NRRD (.nrrd) and MetaImage (.mha): ITK says what a header means, we take the voxels.

ITK fills what a damaged file lacks, with zeros or with whatever memory holds; so the voxels are
collected and verified here, exactly as those of NIfTI files are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from pipeline.data.itk_headers import EXPORT_REMEDY, DataPlace, read_meta_place, read_nrrd_place
from pipeline.data.itk_library import load_itk
from pipeline.data.reading import (
    cast_voxels,
    collected,
    fault,
    faults_told,
    inflated,
    judge_affine,
    judge_size,
    pieces_of,
    refuse_devices,
    refuse_impossible_length,
)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
PLACE_READERS = {".nrrd": read_nrrd_place, ".mha": read_meta_place}
IMAGE_IO = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}
DETACHED = {".nhdr": ".nrrd", ".mhd": ".mha"}
SUFFIXES = (*PLACE_READERS, *DETACHED)
# ITK's names of the types of a value, without their sizes, which differ between systems.
INTEGERS = ("char", "short", "int", "long", "long_long")
TYPE_KINDS = {
    **dict.fromkeys(INTEGERS, "i"),
    **{f"unsigned_{name}": "u" for name in INTEGERS},
    **dict.fromkeys(("float", "double"), "f"),
}


def read_itk_volume(
    path: Path, *, dtype: DTypeLike | None = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels of `path` as (X, Y, Z) in `dtype`, and its affine (4, 4) in RAS mm.

    `dtype` is as for `read_volume` of NIfTI files, and so are the promises: the file is read to its
    end, checksums are verified, and not one byte more than the header promises is accepted. ITK's
    physical space is LPS; the affine is converted, and is exact for any direction, also a sheared
    one. Memory order is the file's: X varies fastest.

    Raises DataError with one Problem, without a case: kinds ``missing-file``, ``unreadable-file``,
    ``file-type``, ``header``, ``encoding``, ``dimensions``, ``data-type``, ``units``, ``affine``,
    ``length``, ``checksum`` and ``not-lossless``.
    """
    name, suffix = path.name, path.suffix.lower()
    if suffix in DETACHED:
        raise fault(
            name,
            "file-type",
            expected="header and voxels in one file",
            found=f"a {suffix} header, which names another file",
            remedy=f"Save the image as .nii.gz or {DETACHED[suffix]}, which hold both.",
        )
    with faults_told(name):
        refuse_devices(path)
        with path.open("rb") as stream:
            place = PLACE_READERS[suffix](stream, name=name)
            shape, stored, affine = _facts(path, IMAGE_IO[suffix])
            voxels = _voxels(stream, place, shape, stored, name)
    return cast_voxels(voxels, None if dtype is None else np.dtype(dtype), name=name), affine


def _facts(path: Path, image_io: str) -> tuple[tuple[int, ...], np.dtype, np.ndarray]:
    """Return shape (X, Y, Z), type and affine (4, 4) in RAS mm, as ITK reads them."""
    reader = getattr(load_itk(), image_io).New()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise fault(
            path.name,
            "header",
            expected="a header that ITK can read",
            found=_last_words(error, path),
            remedy=EXPORT_REMEDY,
        ) from error
    shape = tuple(int(reader.GetDimensions(axis)) for axis in range(3))
    stored = _type_of(reader, path.name)
    judge_size(shape, stored, name=path.name)
    affine = np.eye(4)
    for axis in range(3):
        affine[:3, axis] = np.array(reader.GetDirection(axis)) * reader.GetSpacing(axis)
        affine[axis, 3] = reader.GetOrigin(axis)
    affine = LPS_TO_RAS @ affine
    judge_affine(affine, name=path.name, remedy="Restore the header from the original image.")
    return shape, stored, affine


def _type_of(reader: Any, name: str) -> np.dtype:
    words = reader.GetComponentTypeAsString(reader.GetComponentType())
    if words in TYPE_KINDS and reader.GetNumberOfComponents() == 1:
        return np.dtype(f"{TYPE_KINDS[words]}{reader.GetComponentSize()}")
    raise fault(
        name,
        "data-type",
        expected="integers or real numbers of at most 64 bits, one in a voxel",
        found=f"{reader.GetNumberOfComponents()} of the type {words}",
        remedy="Convert the image to one real value per voxel, for example int16 or float32.",
    )


def _voxels(
    stream: BinaryIO, place: DataPlace, shape: tuple[int, ...], stored: np.dtype, name: str
) -> np.ndarray:
    """Return the voxels that begin at `place`; the file must end with them."""
    num_bytes = int(np.prod(shape, dtype=np.int64)) * stored.itemsize
    size = stream.seek(0, 2) - place.offset
    is_deflated = place.wbits is not None
    refuse_impossible_length(num_bytes, size, is_deflated=is_deflated, name=name)
    stream.seek(place.offset)
    pieces = pieces_of(stream) if place.wbits is None else inflated(stream, wbits=place.wbits)
    content = collected(pieces, num_bytes, name=name)
    dtype = stored.newbyteorder(">" if place.is_big_endian else "<")
    return content.view(dtype).reshape(shape, order="F")


def _last_words(error: RuntimeError, path: Path) -> str:
    """Return what ITK says is wrong, without the path and the place in its own source."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    told = [line for line in lines if not line.startswith("Reason:")]  # often "Success"
    line = re.sub(r"^ITK ERROR: \w+\(\w+\): ", "", told[-1])
    return line.replace(str(path), path.name).rstrip(".")
