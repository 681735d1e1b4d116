"""The one module that opens NIfTI files: reading is bounded and verified, writing is atomic."""

from __future__ import annotations

import gzip
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

from pipeline.data.files import replace_file
from pipeline.data.nifti_header import (
    GZIP,
    HEADER_BYTES,
    NIFTI,
    ImageHeader,
    fault,
    parse_header,
    true_type,
)
from pipeline.errors import DataError, ResourceError

CHUNK_BYTES = 1 << 13  # inflates to 8 MiB at most: what a bomb can take before it is noticed
MAX_GZIP_RATIO = 1032  # of the deflate format
GZIP_STREAM = 16 + zlib.MAX_WBITS  # tells zlib to expect gzip, and to verify its CRC and length
GZIP_LEVEL = 1  # a label map: 21 ms, where level 9 takes 102 ms
SCANNER_CODE = 1  # NIFTI_XFORM_SCANNER_ANAT
REPLACE_REMEDY = "The file is damaged: copy or download it again."


def read_header(path: Path, *, channels: bool = False) -> ImageHeader:
    """Return the judged header of `path`, without reading the voxels.

    `channels` is as for `read_volume`. Raises DataError with one Problem, whose `case` is empty
    for the caller to fill in: kinds ``missing-file``, ``unreadable-file``, ``file-type``,
    ``checksum`` and those of `parse_header`.
    """
    with _content_of(path) as pieces:
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
    with _content_of(path) as pieces:
        head = _first_bytes(pieces)
        header = parse_header(head, name=path.name, channels=channels)
        _refuse_impossible_size(path, header)
        stored = _collect(chain([head], pieces), header, path.name)
    volume = _convert(stored, header, dtype, path.name)
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
    replace_file(path, content, verify=partial(_require_written, values=values, affine=affine))


def _require_written(path: Path, *, values: np.ndarray, affine: np.ndarray) -> None:
    """Open a file that was just written; raise ResourceError unless it holds what was given."""
    try:
        header = read_header(path, channels=True)
        found, _ = read_volume(path, dtype=None, channels=True)
    except DataError as error:
        raise ResourceError(f"{path.name}: what was written cannot be read: {error}") from error
    # NIfTI-1 stores the affine in float32.
    same_affine = np.array_equal(header.affine, affine.astype(np.float32))
    expected = np.moveaxis(values, -1, 0) if values.ndim == 4 else values[None]
    same_voxels = np.array_equal(found, expected, equal_nan=values.dtype.kind == "f")
    if not (same_affine and same_voxels and header.dtype == values.dtype):
        raise ResourceError(
            f"{path.name}: the file does not hold what was written (affine the same: "
            f"{same_affine}, voxels the same: {same_voxels}, type {header.dtype}). "
            "Check the disk."
        )


def cast_exactly(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return `values` as `dtype`; ValueError if an integer `dtype` would change one of them."""
    if dtype.kind == "f" or np.can_cast(values.dtype, dtype, casting="safe"):
        with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which callers refuse
            return values.astype(dtype, copy=False)
    with np.errstate(invalid="ignore"):
        result = values.astype(dtype)
    lost = values[result != values]
    if lost.size:
        examples = ", ".join(f"{value:g}" for value in np.unique(lost)[:5])
        raise ValueError(f"{lost.size} values are not whole numbers of {dtype}: {examples}")
    return result


@contextmanager
def _content_of(path: Path) -> Iterator[Iterator[bytes]]:
    """Open `path` and give its uncompressed content piece by piece; faults become DataErrors."""
    try:
        _refuse_devices(path)
        with path.open("rb") as stream:
            is_gzip = _judge_type(stream, path.name)
            yield _gunzip(stream) if is_gzip else iter(partial(stream.read, CHUNK_BYTES), b"")
    except FileNotFoundError as error:
        raise fault(
            path.name,
            "missing-file",
            expected="the file that the data list names",
            found="no such file",
            remedy="Restore the file, or correct the data list.",
        ) from error
    except OSError as error:
        raise fault(
            path.name,
            "unreadable-file",
            expected="a file that can be read",
            found=error.strerror or str(error),
            remedy="Check its permissions and the disk.",
        ) from error
    except (zlib.error, EOFError) as error:
        raise fault(
            path.name,
            "checksum",
            expected="an intact gzip file",
            found=str(error),
            remedy=REPLACE_REMEDY,
        ) from error


def _refuse_devices(path: Path) -> None:
    """Refuse what is not a regular file: merely opening a pipe may wait for ever."""
    if path.exists() and not path.is_file():
        raise fault(
            path.name,
            "unreadable-file",
            expected="a file",
            found="a folder or a device",
            remedy="Name the file itself in the data list.",
        )


def _judge_type(stream: BinaryIO, name: str) -> bool:
    """Return whether the file is gzip; refuse what is not what its name says."""
    expected = _type_by_name(name)
    found = true_type(stream.read(HEADER_BYTES))
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


def _gunzip(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the content of a gzip file, of one member or several, verified to its last byte.

    Raises zlib.error (damaged, or anything after the end) and EOFError (truncated).
    """
    member = zlib.decompressobj(GZIP_STREAM)
    while chunk := stream.read(CHUNK_BYTES):
        while chunk:
            if member.eof:
                member = zlib.decompressobj(GZIP_STREAM)
            yield member.decompress(chunk)
            chunk = member.unused_data
    if not member.eof:
        raise EOFError("the file ends in the middle of its compressed data")


def _first_bytes(pieces: Iterator[bytes]) -> bytes:
    head = b""
    while len(head) < HEADER_BYTES and (piece := next(pieces, None)) is not None:
        head += piece
    return head


def _refuse_impossible_size(path: Path, header: ImageHeader) -> None:
    """Refuse a header that promises more than the file can hold, before memory is reserved."""
    promised = header.data_offset + header.num_data_bytes
    size = path.stat().st_size
    most = size * MAX_GZIP_RATIO if path.name.lower().endswith(".gz") else size
    if promised > most:
        raise _wrong_length(path.name, promised, f"at most {most} bytes in a file of {size}")


def _collect(pieces: Iterator[bytes], header: ImageHeader, name: str) -> np.ndarray:
    """Return the voxels as stored, in the header's shape; the stream must end exactly there."""
    promised = header.data_offset + header.num_data_bytes
    content = np.empty(promised, dtype=np.uint8)
    filled = 0
    for piece in pieces:
        end = filled + len(piece)
        if end > promised:
            raise _wrong_length(name, promised, f"at least {end} bytes")
        content[filled:end] = np.frombuffer(piece, dtype=np.uint8)
        filled = end
    if filled < promised:
        raise _wrong_length(name, promised, f"{filled} bytes")
    voxels = content[header.data_offset :].view(header.dtype)
    return voxels.reshape(header.shape, order="F")


def _wrong_length(name: str, promised: int, found: str) -> Exception:
    return fault(
        name,
        "length",
        expected=f"{promised} bytes, as the header says",
        found=found,
        remedy=REPLACE_REMEDY,
    )


def _convert(
    stored: np.ndarray, header: ImageHeader, dtype: DTypeLike | None, name: str
) -> np.ndarray:
    """Apply the header's scaling where there is one, and cast straight to `dtype`."""
    values = stored
    if (header.slope, header.intercept) != (1.0, 0.0):
        values = stored * np.float64(header.slope) + header.intercept
    if dtype is None:
        return values
    try:
        return cast_exactly(values, np.dtype(dtype))
    except ValueError as error:
        raise fault(
            name,
            "not-lossless",
            expected=f"whole numbers that fit {np.dtype(dtype)}",
            found=str(error),
            remedy="Restore the mask from its source; never interpolate label values.",
        ) from error
