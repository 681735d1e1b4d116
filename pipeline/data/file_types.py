"""What a file is, by its first bytes, whatever it is called."""

from __future__ import annotations

from pathlib import Path

GZIP = "gzip"
NIFTI = "NIfTI"
NRRD = "NRRD file"
META_IMAGE = "MetaImage file"
DICOM = "DICOM file"
TYPE_BYTES = 352  # from the start of a file: enough for every signature
# (position, bytes, name): the first that fits is the file's true type.
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1f\x8b", GZIP),
    (344, b"n+1\0", NIFTI),
    (4, b"n+2\0", NIFTI),
    (344, b"ni1\0", "NIfTI header without its .img file"),
    (4, b"ni2\0", "NIfTI header without its .img file"),
    (128, b"DICM", DICOM),
    (0, b"PK", "zip archive"),
    (0, b"BZh", "bzip2 file"),
    (0, b"\x28\xb5\x2f\xfd", "zstd file"),
    (0, b"\xfd7zXZ", "xz file"),
    (0, b"NRRD", NRRD),
    (0, b"ObjectType", META_IMAGE),
    (0, b"\x89HDF", "HDF5 file"),
    (0, b"version https://git-lfs", "Git LFS pointer (the file itself was not fetched)"),
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


def is_dicom(path: Path) -> bool:
    """Tell whether a regular file begins as a DICOM file does. Raises OSError."""
    with path.open("rb") as stream:
        return true_type(stream.read(TYPE_BYTES)) == DICOM
