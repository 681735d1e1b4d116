"""The headers of the DICOM files in one folder: which are slices of an image, and of which series.

Nothing that names a person is read, and file names stay out of every error, because scanners write
the patient's name into them: a slice is named by its instance number, a series by its own.
"""

from __future__ import annotations

import os
import re
import struct
import threading
import warnings
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import BinaryIO, Literal

import pydicom
from pydicom.config import disable_value_validation
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import data_element_generator, read_dataset
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from pipeline.data.file_types import is_dicom
from pipeline.data.reading import REPLACE_REMEDY, fault, faults_told

PYDICOM_SETTINGS = threading.Lock()  # they belong to the process; cases are read by threads
PREAMBLE_BYTES = 132  # the signature included
META_GROUP = 0x0002
PIXEL_DATA = 0x7FE00010
SKIP_ALL = Tag(0x0028, 0x0010)  # values of other tags than this are not read
UNDEFINED_LENGTH = 0xFFFFFFFF  # of compressed pixels
# What pydicom and the conversions below raise on damaged files.
PARSING_ERRORS = (
    *(InvalidDicomError, BytesLengthException, NotImplementedError, RecursionError),
    *(ValueError, TypeError, KeyError, AttributeError, struct.error),
)
TAGS = (
    *("SeriesInstanceUID", "SeriesNumber", "Modality", "InstanceNumber", "Rows", "Columns"),
    *("SamplesPerPixel", "NumberOfFrames", "PhotometricInterpretation", "BitsAllocated"),
    *("PixelRepresentation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("RescaleSlope", "RescaleIntercept"),
)


@dataclass(frozen=True)
class SliceHeader:
    """The facts of one slice; positions and spacing in mm, in DICOM's LPS space.

    `shape` is (columns, rows), the X and Y of the volume; `position` (3) the centre of the first
    voxel; `orientation` (6) the directions in which columns and then rows are counted; `spacing_mm`
    goes with `shape`. What a file does not state is an empty tuple.
    """

    path: Path
    sop_class: str
    series: str
    series_number: str
    modality: str
    instance: str
    shape: tuple[int, int]
    samples: int
    frames: int
    photometric: str
    stored_type: str
    slope: float
    intercept: float
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    num_pixel_bytes: int | None  # None where they are compressed


def read_series(folder: Path) -> list[SliceHeader]:
    """Return the slices of the one image series in `folder`, in no order.

    Hidden files, folders and DICOM objects without pixels (reports, DICOMDIR) are passed over. So
    are other files. But what is of the slices' class or named as they are must be one of them: a
    damaged slice is not lost silently.
    Raises DataError of kind ``missing-file``, ``unreadable-file``, ``file-type``, ``header``,
    ``length`` or ``several-series``.
    """
    with faults_told(folder.name):
        files = sorted(path for path in folder.iterdir() if _is_candidate(path))
        dicom_files = [path for path in files if is_dicom(path)]
    if not dicom_files:
        raise _no_series(folder, f"no DICOM file among its {len(files)} files")
    suffixes = {path.suffix.lower() for path in dicom_files if path.name.upper() != "DICOMDIR"}
    others = set(files) - set(dicom_files)
    lost = sum(path.suffix.lower() in suffixes for path in others)
    if lost:
        found = f"{lost} of {len(files)} files are named as the slices are, but are not DICOM"
        raise _damaged(folder, found)
    slices, without_pixels = _headers_of(dicom_files, folder)
    if not slices:
        raise _no_series(folder, f"{len(dicom_files)} DICOM files, none of which has pixels")
    _require_one_series(slices, folder)
    if without_pixels & {"", *(header.sop_class for header in slices)}:
        raise _damaged(folder, f"{len(dicom_files)} DICOM files, some of which end too early")
    return slices


def _is_candidate(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _headers_of(files: Sequence[Path], folder: Path) -> tuple[list[SliceHeader], set[str]]:
    """Return the slices, and the classes of the objects without pixels ("" where none is said)."""
    slices: list[SliceHeader] = []
    others: set[str] = set()
    for path in files:
        try:
            with faults_told(folder.name), PYDICOM_SETTINGS, _silent():
                found = _read(path)
        except PARSING_ERRORS as error:
            # Their words may quote what the file says of the patient.
            raise _damaged(folder, "a DICOM file that cannot be parsed") from error
        if isinstance(found, SliceHeader):
            _require_all_pixels(found, folder)
            slices.append(found)
        else:
            others.add(found)
    return slices, others


@contextmanager
def _silent() -> Iterator[None]:
    """Keep pydicom from warning: its warnings name files, and what matters is judged here."""
    with disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


class BoundedReader(BufferedReader):
    """A file that is never asked for more than it has: pydicom asks for what lengths promise."""

    def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes, or what is left; memory is reserved for no more."""
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _read(path: Path) -> SliceHeader | str:
    """Return the header of a slice, or the class of another object."""
    with BoundedReader(FileIO(path)) as stream:
        stream.seek(PREAMBLE_BYTES)
        meta = read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != META_GROUP)
        # At the front of the file: what is cut off behind it is still known by its class.
        sop_class = str(meta.get("MediaStorageSOPClassUID", ""))
        if "TransferSyntaxUID" not in meta:
            raise ValueError("the file ends within its meta information")
        if meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
            raise NotImplementedError("a deflated header, which could inflate to any size")
        stream.seek(0)
        dataset = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(TAGS))
        has_pixels, num_bytes = _pixels_at(stream, dataset)
    return _slice_header(dataset, path, sop_class, num_bytes) if has_pixels else sop_class


def _pixels_at(stream: BinaryIO, dataset: pydicom.FileDataset) -> tuple[bool, int | None]:
    """Tell whether pixels begin here, and how many bytes there really are (None: compressed)."""
    is_implicit, is_little = map(bool, dataset.original_encoding)
    order: Literal["little", "big"] = "little" if is_little else "big"
    head = stream.read(8 if is_implicit else 12)  # group, element, [type, two zeros], length
    group, element = (int.from_bytes(head[at : at + 2], order) for at in (0, 2))
    if (group << 16 | element) != PIXEL_DATA:
        return False, None
    stated = int.from_bytes(head[-4:], order)
    start = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    is_compressed = stated == UNDEFINED_LENGTH
    stream.seek(start - len(head) if is_compressed else min(start + stated, size))
    # GDCM reads what follows the pixels, too, and takes as much memory as it promises.
    rest = data_element_generator(stream, is_implicit, is_little, specific_tags=[SKIP_ALL])
    deque(rest, maxlen=0)  # to the end
    if stream.tell() > size:
        raise ValueError("an element behind the pixels that is longer than the file")
    return True, None if is_compressed else min(stated, size - start)


def _slice_header(
    dataset: pydicom.FileDataset, path: Path, sop_class: str, num_pixel_bytes: int | None
) -> SliceHeader:
    kind = "i" if _integer(dataset, "PixelRepresentation") else "u"
    return SliceHeader(
        path=path,
        sop_class=sop_class,
        series=_text(dataset, "SeriesInstanceUID"),
        series_number=_shown_number(_text(dataset, "SeriesNumber")),
        modality=_shown_code(_text(dataset, "Modality")),
        instance=_shown_number(_text(dataset, "InstanceNumber")),
        shape=(_integer(dataset, "Columns"), _integer(dataset, "Rows")),
        samples=_integer(dataset, "SamplesPerPixel"),
        frames=int(_text(dataset, "NumberOfFrames") or 1),
        photometric=_text(dataset, "PhotometricInterpretation"),
        stored_type=f"{kind}{_integer(dataset, 'BitsAllocated') // 8}",
        slope=float(_text(dataset, "RescaleSlope") or 1),
        intercept=float(_text(dataset, "RescaleIntercept") or 0),
        position=_floats(dataset, "ImagePositionPatient"),
        orientation=_floats(dataset, "ImageOrientationPatient"),
        spacing_mm=_floats(dataset, "PixelSpacing")[::-1],  # DICOM: between rows, then columns
        num_pixel_bytes=num_pixel_bytes,
    )


def _require_all_pixels(header: SliceHeader, folder: Path) -> None:
    """Refuse a slice with too few pixels, which ITK would fill with whatever memory holds."""
    voxels = header.shape[0] * header.shape[1] * header.samples * header.frames
    promised = voxels * int(header.stored_type[1:])
    if header.num_pixel_bytes is None or header.num_pixel_bytes - promised in (0, 1):
        return  # lengths are even
    raise fault(
        folder.name,
        "length",
        expected=f"{promised} bytes of pixels, as the header says",
        found=f"{header.num_pixel_bytes} bytes in the slice with instance number {header.instance}",
        remedy=REPLACE_REMEDY,
    )


def _raw(dataset: pydicom.FileDataset, keyword: str) -> RawDataElement | None:
    """Return the element as stored: pydicom's conversions warn, and quote what they warn of."""
    element = dataset.get_item(keyword)
    return element if isinstance(element, RawDataElement) and element.value else None


def _text(dataset: pydicom.FileDataset, keyword: str) -> str:
    element = _raw(dataset, keyword)
    return "" if element is None else bytes(element.value or b"").decode("ascii").strip(" \0")


def _integer(dataset: pydicom.FileDataset, keyword: str) -> int:
    element = _raw(dataset, keyword)
    if element is None:
        raise ValueError(f"{keyword} is not stated")
    return int.from_bytes(element.value or b"", "little" if element.is_little_endian else "big")


def _floats(dataset: pydicom.FileDataset, keyword: str) -> tuple[float, ...]:
    text = _text(dataset, keyword)
    return tuple(float(number) for number in text.split("\\")) if text else ()


def _shown_number(text: str) -> str:
    """Return a number for people to find the thing by; "?" for any other text."""
    return text if re.fullmatch(r"\d{1,12}", text) else "?"


def _shown_code(text: str) -> str:
    """Return a modality such as MR; "?" for any text that is no code."""
    return text if re.fullmatch(r"[A-Z]{2,10}", text) else "?"


def _require_one_series(slices: Sequence[SliceHeader], folder: Path) -> None:
    members: dict[str, list[SliceHeader]] = defaultdict(list)
    for header in slices:
        members[header.series].append(header)
    if len(members) == 1:
        return
    listed = sorted(
        f"series number {headers[0].series_number} ({headers[0].modality}): {len(headers)} slices"
        for headers in members.values()
    )
    raise fault(
        folder.name,
        "several-series",
        expected="the slices of one series",
        found=f"{len(members)} series: {'; '.join(listed)}",
        remedy="Put the files of one of them into a folder of its own, and name that folder.",
    )


def _no_series(folder: Path, found: str) -> Exception:
    return fault(
        folder.name,
        "file-type",
        expected="a folder with the files of one DICOM series",
        found=found,
        remedy="Name the folder that holds the slices themselves, or an image file.",
    )


def _damaged(folder: Path, found: str) -> Exception:
    return fault(
        folder.name,
        "header",
        expected="whole DICOM files",
        found=found,
        remedy="Export the series again, or move what does not belong to it out of the folder.",
    )
