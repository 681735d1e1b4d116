"""The text headers of NRRD and MetaImage files: where the voxels begin, and how they are packed.

ITK reads the same headers, and says what they mean (`itk_images`). They are judged here first,
because ITK opens whatever file a header names, and a MetaImage header with absurd numbers ends the
process. Formats: https://teem.sourceforge.net/nrrd/format.html and
https://docs.itk.org/en/latest/learn/metaio.html
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.data.file_types import META_IMAGE, NRRD, TYPE_BYTES, true_type
from pipeline.data.reading import GZIP_STREAM, ZLIB_STREAM, fault

MAX_LINE_BYTES = 1 << 14  # MetaIO keeps a line in a buffer of 32 KiB
MAX_LINES = 1 << 12  # a segmentation from 3D Slicer has a dozen lines for each of its segments
NUM_AXES = 3
# Spaces that say which side is left. Without one, left and right could not be told apart.
NRRD_SPACES = (
    *("right-anterior-superior", "ras", "left-anterior-superior", "las"),
    *("left-posterior-superior", "lps"),
)
NRRD_VOXEL_KINDS = ("domain", "space", "???", "none")
NRRD_WBITS = {"raw": None, "gzip": GZIP_STREAM, "gz": GZIP_STREAM}
# What places a MetaImage, in every spelling, and how many numbers it is: MetaIO takes fewer, and
# numbers that are none, for zeros.
META_NUMBERS = {
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), NUM_AXES**2),
    **dict.fromkeys(("Offset", "Position", "Origin", "ElementSpacing", "ElementSize"), NUM_AXES),
}
RESTORE_REMEDY = "Export the image again from its source, with its position and orientation."
EXPORT_REMEDY = "Export the image again, as .nii.gz or as a plain volume in one file."


@dataclass(frozen=True)
class DataPlace:
    """Where and how the voxels of a file are stored.

    `offset` is in bytes; `wbits` is zlib's, None where they are not compressed.
    """

    offset: int
    wbits: int | None
    is_big_endian: bool


def read_nrrd_place(stream: BinaryIO, *, name: str) -> DataPlace:
    """Judge the header of a NRRD file, of one volume and with its voxels inside.

    Raises DataError of kind ``file-type``, ``header``, ``dimensions``, ``encoding``, ``units`` or
    ``affine``.
    """
    _require_type(stream, NRRD, name)
    fields = _nrrd_fields(stream, name)
    if "data file" in fields or "datafile" in fields:
        raise _detached(name)
    _require_axes(fields.get("dimension", ""), fields.get("sizes", ""), name)
    kinds = fields.get("kinds", "").lower().split()
    if not set(kinds) <= set(NRRD_VOXEL_KINDS):
        raise _not_one_volume(name, f"axes of the kinds {' '.join(kinds)}")
    encoding = fields.get("encoding", "").lower()
    if encoding not in NRRD_WBITS:
        raise _encoding(name, "raw or gzip", encoding)
    for key in ("line skip", "lineskip", "byte skip", "byteskip"):
        if fields.get(key, "0") != "0":
            raise _encoding(name, "voxels right after the header", f"{key} {fields[key]}")
    _judge_nrrd_space(fields, name)
    is_big = fields.get("endian", "little").lower() == "big"
    return DataPlace(stream.tell(), NRRD_WBITS[encoding], is_big)


def read_meta_place(stream: BinaryIO, *, name: str) -> DataPlace:
    """Judge the header of a MetaImage file, of one volume and with its voxels inside.

    Raises DataError of kind ``file-type``, ``header``, ``dimensions``, ``encoding`` or ``affine``.
    """
    _require_type(stream, META_IMAGE, name)
    fields = _meta_fields(stream, name)
    if fields["ElementDataFile"].upper() != "LOCAL":
        raise _detached(name)
    _require_axes(fields.get("NDims", ""), fields.get("DimSize", ""), name)
    if fields.get("ElementNumberOfChannels", "1") != "1":
        raise _not_one_volume(name, f"{fields['ElementNumberOfChannels']} values in a voxel")
    if not _is_true(fields.get("BinaryData", "True")):
        raise _encoding(name, "binary data", "text")
    if fields.get("HeaderSize", "0") != "0":
        skipped = f"HeaderSize {fields['HeaderSize']}"
        raise _encoding(name, "voxels right after the header", skipped)
    if not {"ElementSpacing", "ElementSize"} & set(fields):
        _require_numbers("ElementSpacing", "", NUM_AXES, name)  # MetaIO would take it for 1 mm
    for key, count in META_NUMBERS.items():
        if key in fields:
            _require_numbers(key, fields[key], count, name)
    is_big = any(
        _is_true(fields.get(key, "False"))
        for key in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    )
    is_compressed = _is_true(fields.get("CompressedData", "False"))
    return DataPlace(stream.tell(), ZLIB_STREAM if is_compressed else None, is_big)


def _require_type(stream: BinaryIO, expected: str, name: str) -> None:
    found = true_type(stream.read(TYPE_BYTES))
    stream.seek(0)
    if found != expected:
        raise fault(
            name,
            "file-type",
            expected=f"a {expected}, as its name says",
            found=found,
            remedy="Rename the file to what it is, or replace it by the image.",
        )


def _nrrd_fields(stream: BinaryIO, name: str) -> dict[str, str]:
    """Return the fields by their names in lower case; the stream is then at the voxels."""
    fields: dict[str, str] = {}
    for _ in range(MAX_LINES):
        line = _line(stream, name)
        if not line:
            return fields
        field = re.fullmatch(r"([^#:]+): (.*)", line)
        if field:  # comments, key/value pairs (:=) and the first line are none
            fields[field.group(1).strip().lower()] = field.group(2).strip()
    raise _endless(name)


def _meta_fields(stream: BinaryIO, name: str) -> dict[str, str]:
    """Return the fields up to ElementDataFile, the last; the stream is then at the voxels."""
    fields: dict[str, str] = {}
    while "ElementDataFile" not in fields and len(fields) < MAX_LINES:
        key, separator, value = _line(stream, name).partition("=")
        if not separator or key.strip() in fields:
            raise _header(name, "lines `Key = Value`, each key once", f"{key[:40]!r}")
        fields[key.strip()] = value.strip()
    if "ElementDataFile" not in fields:
        raise _endless(name)
    return fields


def _line(stream: BinaryIO, name: str) -> str:
    """Return the next line without its end; the header must not stop in the middle of one."""
    line = stream.readline(MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        raise _header(name, "a header that ends", "the end of the file, or a line too long")
    return line.decode("utf-8", errors="replace").rstrip("\r\n")


def _require_axes(dimension: str, sizes: str, name: str) -> None:
    numbers = sizes.split()
    are_sizes = all(re.fullmatch(r"[1-9]\d{0,9}", number) for number in numbers)
    if dimension == str(NUM_AXES) == str(len(numbers)) and are_sizes:
        return
    raise _not_one_volume(name, f"dimension {dimension[:20]!r}, sizes {sizes[:60]!r}")


def _judge_nrrd_space(fields: Mapping[str, str], name: str) -> None:
    """Refuse positions that are not in millimetres of a space with a left and a right."""
    space = fields.get("space", "").lower()
    if space not in NRRD_SPACES or "space directions" not in fields:
        raise fault(
            name,
            "affine",
            expected="a `space` of right-anterior-superior, left-anterior-superior or "
            "left-posterior-superior, and `space directions`",
            found=f"space {space!r}" if space else "no space: left and right cannot be told apart",
            remedy=RESTORE_REMEDY,
        )
    _require_numbers("space directions", _plain(fields["space directions"]), NUM_AXES**2, name)
    if "space origin" in fields:
        _require_numbers("space origin", _plain(fields["space origin"]), NUM_AXES, name)
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", "")))
    if not units <= {"mm", ""}:
        raise fault(
            name,
            "units",
            expected="positions in millimetres",
            found=f"space units {', '.join(sorted(units))}",
            remedy="Convert the header's space directions and origin to millimetres.",
        )


def _plain(vectors: str) -> str:
    """Return NRRD's ``(1,0,0) (0,1,0)`` as numbers with spaces between."""
    return re.sub(r"[(),]", " ", vectors)


def _require_numbers(key: str, text: str, count: int, name: str) -> None:
    """Refuse a position, direction or spacing unless it is `count` finite numbers."""
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) == count and all(map(math.isfinite, numbers)):
        return
    raise fault(
        name,
        "affine",
        expected=f"{count} numbers as {key}",
        found=text[:80] or "none",
        remedy=RESTORE_REMEDY,
    )


def _is_true(value: str) -> bool:
    return value[:1].lower() in ("t", "1")  # as MetaIO tells them


def _detached(name: str) -> Exception:
    return fault(
        name,
        "file-type",
        expected="header and voxels in one file",
        found="a header that names another file",
        remedy="Save the image as .nii.gz, .nrrd or .mha, which hold both.",
    )


def _not_one_volume(name: str, found: str) -> Exception:
    return fault(
        name,
        "dimensions",
        expected="one volume (X, Y, Z) with one value in a voxel",
        found=found,
        remedy="Export each volume as a file of its own.",
    )


def _encoding(name: str, expected: str, found: str) -> Exception:
    return fault(name, "encoding", expected=expected, found=found, remedy=EXPORT_REMEDY)


def _header(name: str, expected: str, found: str) -> Exception:
    return fault(name, "header", expected=expected, found=found, remedy=EXPORT_REMEDY)


def _endless(name: str) -> Exception:
    return _header(name, f"a header of at most {MAX_LINES} lines", "more")
