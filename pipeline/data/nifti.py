"""The one module that opens NIfTI files: reading is bounded and verified, writing is atomic."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from numpy.typing import DTypeLike

from pipeline.data.file_types import GZIP, NIFTI, TYPE_BYTES, true_type
from pipeline.data.files import replace_file
from pipeline.data.nifti_header import HEADER_BYTES, ImageHeader, parse_header
from pipeline.data.reading import (
    CHUNK_BYTES,
    GZIP_STREAM,
    cast_exactly,
    cast_voxels,
    collected,
    fault,
    faults_told,
    inflated,
    inflated_at_once,
    pieces_of,
    refuse_devices,
    refuse_impossible_length,
)
from pipeline.errors import DataError, ResourceError

GZIP_LEVEL = 1  # a label map: 21 ms, where level 9 takes 102 ms
SCANNER_CODE = 1  # NIFTI_XFORM_SCANNER_ANAT


def read_header(path: Path, *, channels: bool = False) -> ImageHeader:
    """Return the judged header of `path`, without reading the voxels.

    `channels` is as for `read_volume`. Raises DataError with one Problem, whose `case` is empty
    for the caller to fill in: kinds ``missing-file``, ``unreadable-file``, ``file-type``,
    ``checksum`` and those of `parse_header`.
    """
    with _opened(path) as (stream, is_gzip):
        pieces = _pieces(stream, is_gzip)
        return parse_header(_first_bytes(pieces), name=path.name, channels=channels)


def read_volume(
    path: Path, *, dtype: DTypeLike | None = np.float32, channels: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels of `path` as (X, Y, Z) in `dtype`, and its affine (4, 4) in RAS mm.

    With `channels` the file may hold several volumes, and the result is (C, X, Y, Z). The file is
    read to its end: gzip's checksum and length are verified, and not one byte more than the header
    promises is accepted. An integer `dtype` is filled without loss only; None keeps the stored one,
    or float64 where the header scales the values. Memory order is the file's: X varies fastest.

    Raises DataError as `read_header` does, and with kind ``length`` (too short, too long) or
    ``not-lossless`` (a value that the integer `dtype` cannot hold).
    """
    with _opened(path) as (stream, is_gzip):
        known = _read_at_once(stream, name=path.name, channels=channels) if is_gzip else None
        if known is None:
            stream.seek(0)
            known = _read_in_pieces(stream, is_gzip, name=path.name, channels=channels)
    header, content = known
    volume = _convert(content, header, dtype, path.name)
    if channels:
        volume = np.moveaxis(volume, -1, 0)
    return volume, header.affine


def write_volume(path: Path, volume: np.ndarray, *, affine: np.ndarray, dtype: DTypeLike) -> None:
    """Write (X, Y, Z) or (C, X, Y, Z) as NIfTI-1, compressed if `path` ends in .gz, atomically.

    sform and qform are both set (code 1, scanner) in millimetres; a qform cannot hold shears, so a
    sheared affine gets the sform alone. No description, history or time stamp is written. Before
    the file gets its name it is opened again: voxels, type and affine must be those given.

    Raises ValueError if an integer `dtype` cannot hold the values, ResourceError if the file cannot
    be written (the bytes needed and free if the disk is full; what was there before stays) or does
    not hold what was written.
    """
    values = cast_exactly(volume, np.dtype(dtype))
    if values.ndim == 4:
        values = np.moveaxis(values, 0, -1)
    image = nib.Nifti1Image(values, affine, dtype=values.dtype)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=SCANNER_CODE)
    image.set_qform(affine, code=SCANNER_CODE, strip_shears=True)
    if not np.allclose(image.get_qform(), affine, atol=1e-3):
        image.set_qform(None, code=0)
    content = image.to_bytes()
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=GZIP_LEVEL, mtime=0)
    verify = partial(_require_written, name=path.name, values=values, affine=affine)
    replace_file(path, content, verify=verify)


def _require_written(path: Path, *, name: str, values: np.ndarray, affine: np.ndarray) -> None:
    """Open a file that was just written; raise ResourceError unless it holds what was given."""
    try:
        header = read_header(path, channels=True)
        found, _ = read_volume(path, dtype=None, channels=True)
    except DataError as error:
        reason = error.problems[0].found
        raise ResourceError(f"{name}: what was written cannot be read: {reason}") from error
    # NIfTI-1 stores the affine in float32.
    same_affine = np.array_equal(header.affine, affine.astype(np.float32))
    expected = np.moveaxis(values, -1, 0) if values.ndim == 4 else values[None]
    same_voxels = np.array_equal(found, expected, equal_nan=values.dtype.kind == "f")
    if not (same_affine and same_voxels and header.dtype == values.dtype):
        raise ResourceError(
            f"{name}: the file does not hold what was written (affine the same: "
            f"{same_affine}, voxels the same: {same_voxels}, type {header.dtype}). "
            "Check the disk."
        )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """Open `path` and tell whether it is gzip; faults, later ones too, become DataErrors."""
    with faults_told(path.name):
        refuse_devices(path)
        with path.open("rb") as stream:
            yield stream, _judge_type(stream, path.name)


def _pieces(stream: BinaryIO, is_gzip: bool) -> Iterator[bytes]:
    return inflated(stream, wbits=GZIP_STREAM) if is_gzip else pieces_of(stream)


def _read_at_once(
    stream: BinaryIO, *, name: str, channels: bool
) -> tuple[ImageHeader, np.ndarray] | None:
    """Return header and content (uint8) of a gzip file that is plainly sound, else None.

    Like reading in pieces it judges the header first, which bounds the memory; what is wrong with
    a file is for reading in pieces to say. zlib verifies the gzip header, which libdeflate skips.
    """
    chunk = stream.read(CHUNK_BYTES)
    size = os.fstat(stream.fileno()).st_size
    try:
        head = zlib.decompressobj(GZIP_STREAM).decompress(chunk, HEADER_BYTES)
        header = parse_header(head, name=name, channels=channels)
        refuse_impossible_length(header.num_bytes, size, is_deflated=True, name=name)
    except (zlib.error, DataError):
        return None
    if size > header.num_bytes:
        return None  # larger than what it is said to hold: not to be read whole
    content = inflated_at_once(chunk + stream.read(max(size - len(chunk), 0)), header.num_bytes)
    return None if content is None else (header, content)


def _read_in_pieces(
    stream: BinaryIO, is_gzip: bool, *, name: str, channels: bool
) -> tuple[ImageHeader, np.ndarray]:
    """Return header and content (uint8) of any file, read and judged piece by piece."""
    pieces = _pieces(stream, is_gzip)
    head = _first_bytes(pieces)
    header = parse_header(head, name=name, channels=channels)
    size = os.fstat(stream.fileno()).st_size
    refuse_impossible_length(header.num_bytes, size, is_deflated=is_gzip, name=name)
    return header, collected(chain([head], pieces), header.num_bytes, name=name)


def _judge_type(stream: BinaryIO, name: str) -> bool:
    """Return whether the file is gzip; refuse what is not what its name says."""
    expected = _type_by_name(name)
    found = true_type(stream.read(TYPE_BYTES))
    stream.seek(0)
    if found == expected:
        return found == GZIP
    raise fault(
        name,
        "file-type",
        expected=f"{expected}, as its name says" if expected else "a name in .nii or .nii.gz",
        found=found,
        remedy="Rename the file to what it is, or replace it by the image.",
    )


def _type_by_name(name: str) -> str | None:
    lower = name.lower()
    if lower.endswith(".nii.gz"):
        return GZIP
    return NIFTI if lower.endswith(".nii") else None


def _first_bytes(pieces: Iterator[bytes]) -> bytes:
    head = b""
    while len(head) < HEADER_BYTES and (piece := next(pieces, None)) is not None:
        head += piece
    return head


def _convert(
    content: np.ndarray, header: ImageHeader, dtype: DTypeLike | None, name: str
) -> np.ndarray:
    """Return the voxels in the file's bytes, scaled where the header says so, as `dtype`."""
    stored = content[header.data_offset :].view(header.dtype).reshape(header.shape, order="F")
    values = stored
    if (header.slope, header.intercept) != (1.0, 0.0):
        values = stored * np.float64(header.slope) + header.intercept
    return cast_voxels(values, None if dtype is None else np.dtype(dtype), name=name)
