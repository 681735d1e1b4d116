"""What readers of all image formats share: opening, inflating, judging and casting, and words."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import deflate
import numpy as np
from nibabel.affines import voxel_sizes

from pipeline.errors import DataError, Problem

CHUNK_BYTES = 1 << 13  # inflates to 8 MiB at most: what a bomb can take before it is noticed
MAX_DEFLATE_RATIO = 1032  # of the deflate format, and so of gzip and zlib
GZIP_STREAM = 16 + zlib.MAX_WBITS  # tells zlib to expect gzip, and to verify its CRC and length
ZLIB_STREAM = zlib.MAX_WBITS
MAX_MEMBER_BYTES = 2**32 - 1  # gzip and libdeflate count in 32 bits
MAX_VOXELS = 2**31
MAX_DATA_BYTES = 2**32
MAX_SCALE = 1e20  # beyond it, 16-bit intensities no longer fit into float32
MIN_SPACING_MM, MAX_SPACING_MM = 1e-3, 1e3
MIN_DETERMINANT = 1e-3  # of the three axes' unit vectors: 1 if orthogonal, 0 if in one plane
REPLACE_REMEDY = "The file is damaged: copy or download it again."


def fault(name: str, kind: str, *, expected: str, found: str, remedy: str) -> DataError:
    """Return the error for one fault of the file `name`; the caller adds the case."""
    return DataError.of(
        Problem(case="", kind=kind, file=name, expected=expected, found=found, remedy=remedy)
    )


@contextmanager
def faults_told(name: str) -> Iterator[None]:
    """Turn what opening and inflating the file `name` may raise into DataErrors.

    Kinds ``missing-file``, ``unreadable-file`` and ``checksum``.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise fault(
            name,
            "missing-file",
            expected="the file that the data list names",
            found="no such file",
            remedy="Restore the file, or correct the data list.",
        ) from error
    except OSError as error:
        raise fault(
            name,
            "unreadable-file",
            expected="a file that can be read",
            found=error.strerror or str(error),
            remedy="Check its permissions and the disk.",
        ) from error
    except (zlib.error, EOFError) as error:
        raise fault(
            name,
            "checksum",
            expected="intact compressed data",
            found=str(error),
            remedy=REPLACE_REMEDY,
        ) from error


def refuse_devices(path: Path) -> None:
    """Refuse what is not a regular file: merely opening a pipe may wait for ever."""
    if path.exists() and not path.is_file():
        raise fault(
            path.name,
            "unreadable-file",
            expected="a file",
            found="a folder or a device",
            remedy="Name the file itself in the data list.",
        )


def pieces_of(stream: BinaryIO) -> Iterator[bytes]:
    """Yield what is left of `stream`, piece by piece."""
    return iter(partial(stream.read, CHUNK_BYTES), b"")


def inflated(stream: BinaryIO, *, wbits: int) -> Iterator[bytes]:
    """Yield the content of compressed data of one member or several, verified to its last byte.

    `wbits` is `GZIP_STREAM` or `ZLIB_STREAM`. Raises zlib.error (damaged, or anything after the
    end) and EOFError (truncated).
    """
    member = zlib.decompressobj(wbits)
    while chunk := stream.read(CHUNK_BYTES):
        while chunk:
            if member.eof:
                member = zlib.decompressobj(wbits)
            yield member.decompress(chunk)
            chunk = member.unused_data
    if not member.eof:
        raise EOFError("the file ends in the middle of its compressed data")


def inflated_at_once(compressed: bytes, num_bytes: int) -> np.ndarray | None:
    """Return the `num_bytes` (uint8) that `compressed` holds, if it is one sound gzip member.

    None says that it is not plainly so, or damaged: `inflated` takes other files too, and finds
    their faults. libdeflate takes a third of zlib's time. It reserves no more than `num_bytes`, and
    verifies the member's checksum and length, but passes over what follows the member. Therefore
    the eight bytes that end the member must end `compressed`, and be nowhere before.
    """
    if not 0 < num_bytes <= MAX_MEMBER_BYTES:
        return None
    try:
        content = deflate.gzip_decompress(compressed, num_bytes)
    except deflate.DeflateError:
        return None
    trailer = struct.pack("<II", deflate.crc32(content), len(content))
    is_alone = compressed.find(trailer) == len(compressed) - len(trailer)
    if len(content) != num_bytes or not is_alone:
        return None
    return np.frombuffer(content, dtype=np.uint8)


def collected(pieces: Iterable[bytes], num_bytes: int, *, name: str) -> np.ndarray:
    """Return the bytes (uint8) of `pieces`, which must be `num_bytes` and not one more.

    Raises DataError of kind ``length``.
    """
    content = np.empty(num_bytes, dtype=np.uint8)
    filled = 0
    for piece in pieces:
        end = filled + len(piece)
        if end > num_bytes:
            raise wrong_length(name, num_bytes, f"at least {end} bytes")
        content[filled:end] = np.frombuffer(piece, dtype=np.uint8)
        filled = end
    if filled < num_bytes:
        raise wrong_length(name, num_bytes, f"{filled} bytes")
    return content


def refuse_impossible_length(promised: int, size: int, *, is_deflated: bool, name: str) -> None:
    """Refuse a header that promises more than `size` bytes can hold, before memory is reserved."""
    most = size * MAX_DEFLATE_RATIO if is_deflated else size
    if promised > most:
        raise wrong_length(name, promised, f"at most {most} bytes in a file of {size}")


def wrong_length(name: str, promised: int, found: str) -> DataError:
    """Return the error for a file that does not hold as much as its header says."""
    return fault(
        name,
        "length",
        expected=f"{promised} bytes, as the header says",
        found=found,
        remedy=REPLACE_REMEDY,
    )


def judge_size(shape: tuple[int, ...], dtype: np.dtype, *, name: str) -> None:
    """Refuse an image that no patient has, before anything is allocated: kind ``dimensions``."""
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


def judge_affine(affine: np.ndarray, *, name: str, remedy: str) -> None:
    """Refuse an affine (4, 4) that is not finite, not invertible, or not in mm: ``affine``."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinite is out of range, too
        spacing = voxel_sizes(affine)
    in_range = np.all((spacing >= MIN_SPACING_MM) & (spacing <= MAX_SPACING_MM))
    usable = bool(in_range and np.all(np.isfinite(affine)))
    if usable and abs(np.linalg.det(affine[:3, :3] / spacing)) >= MIN_DETERMINANT:
        return
    rows = ", ".join(f"({' '.join(f'{value:g}' for value in row)})" for row in affine[:3])
    raise fault(
        name,
        "affine",
        expected="a finite, invertible affine with a spacing of "
        f"{MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm",
        found=f"the rows {rows}",
        remedy=remedy,
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


def cast_voxels(values: np.ndarray, dtype: np.dtype | None, *, name: str) -> np.ndarray:
    """Return `values` as `dtype` (None: as they are); DataError ``not-lossless`` where it loses."""
    if dtype is None:
        return values
    try:
        return cast_exactly(values, dtype)
    except ValueError as error:
        raise fault(
            name,
            "not-lossless",
            expected=f"whole numbers that fit {dtype}",
            found=str(error),
            remedy="Restore the mask from its source; never interpolate label values.",
        ) from error


def copy_into_zeros(source: np.ndarray, target: np.ndarray) -> None:
    """Copy a volume (X, Y, Z) into another, which holds zeros: ``target[...] = source``.

    X varies fastest in a file and Z in a tensor, and copying across is slow. Planes along Y stay in
    a processor's cache; rows of zeros, half of an MR image, are neither copied nor is their memory
    claimed. A row counts as zeros by its bits, so that -0.0 is copied.
    """
    bits = source.view(f"i{source.dtype.itemsize}")
    is_filled = np.bitwise_or.reduce(bits, axis=2) != 0
    for y in np.flatnonzero(is_filled.any(axis=0)):
        filled = np.flatnonzero(is_filled[:, y])
        rows = slice(filled[0], filled[-1] + 1)
        target[rows, y] = source[rows, y]
