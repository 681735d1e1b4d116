"""Checkpoints: what is in them, written so that a crash leaves the old one, read without code."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pipeline.data.files import replace_file
from pipeline.errors import DataError, Problem
from pipeline.model.pickles import judge_pickle

LAST, BEST = "last.pt", "best.pt"
"""Names of a run's checkpoints: where it stands, and its best validation."""

ENSEMBLE = "ensemble.pt"
"""Name of the checkpoint that holds the models of all folds, in the folder of a crossval."""

FORMAT = 1
"""Version of the content; raised when an older reader could not understand it."""

NEWER_FORMAT = "newer-checkpoint"
"""Kind of the problem that a checkpoint is whole, but from another version of this project."""

REQUIRED_KEYS = frozenset(
    {"format", "weights", "network", "preprocessing", "header", "settings", "versions", "progress"}
)

# An entry is a tensor; the largest networks here have some hundred of them, and some hundred MB.
MAX_ENTRIES, MAX_BYTES = 100_000, 16 * 2**30

# What Python, zipfile and torch raise on a file whose bytes are not what they should be.
DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)


def save_checkpoint(
    path: Path,
    content: Mapping[str, Any],
    *,
    before_naming: Callable[[], None] = lambda: None,
) -> None:
    """Write `content` (tensors and plain values only) so that `path` is whole at any moment.

    The bytes go to a temporary file in the same folder, reach the disk, and take the name last;
    `before_naming` is called in between.

    Raises:
        ResourceError: The disk is full or cannot be written to; the old file is intact.
        ValueError: `content` lacks one of `REQUIRED_KEYS`.
    """
    missing = REQUIRED_KEYS - set(content)
    if missing:
        raise ValueError(f"checkpoint lacks {sorted(missing)}")
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    replace_file(path, buffer.getvalue(), verify=lambda _: before_naming())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project onto the CPU; nothing in the file is executed.

    torch itself does not verify the checksums in its files: a flipped bit would become a weight.

    Raises:
        DataError: The file is missing, damaged, from something else, or from a newer version.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe may wait for ever
        raise _unusable(path, "a checkpoint", "a pipe or a device")
    try:
        with path.open("rb") as file:
            _verify_checksums(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _unusable(path, "a checkpoint", f"{error.strerror}") from error
    except DAMAGE as error:
        found = f"a damaged or foreign file ({type(error).__name__})"
        raise _unusable(path, "a whole checkpoint of this project", found) from error
    if not isinstance(content, dict) or not set(content) >= REQUIRED_KEYS:
        raise _unusable(path, f"the keys {sorted(REQUIRED_KEYS)}", "other content")
    stated = content["format"]
    # Of another type it could be of any length, or have no truth.
    if type(stated) is not int or stated != FORMAT:
        found = f"format {stated}" if type(stated) is int else "none"
        raise _unusable(path, f"format {FORMAT}", found, kind=NEWER_FORMAT)
    return content


def is_whole(path: Path) -> bool:
    """Whether there is a file at `path` in which all checksums are right."""
    try:
        with path.open("rb") as file:
            _verify_checksums(file)
    except (OSError, *DAMAGE):
        return False
    return True


def require_same_modalities(header: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Refuse data whose modalities differ from those that a network was trained on.

    Raises:
        DataError: Other modalities, or the same in another order.
    """
    _require_same("modality", header, stored, kind="modality-order", what="modalities")


def require_same_labels(header: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Refuse a data list whose labels are not those of a network; their values may be others.

    Raises:
        DataError: Other labels, or the same in another order.
    """
    _require_same("labels", header, stored, kind="label-order", what="labels")


def _require_same(
    key: str, header: Mapping[str, Any], stored: Mapping[str, Any], *, kind: str, what: str
) -> None:
    expected, found = list(stored[key]), list(header[key])
    if expected != found:
        raise DataError.of(
            Problem(
                case="data list",
                kind=kind,
                file="",
                expected=f"the checkpoint's {what} {expected}",
                found=f"{found}",
                remedy=f"Name the same {what} in the same order in the list's header.",
            )
        )


def _verify_checksums(file: BinaryIO) -> None:
    """Read every entry to its end; one that could take more than the file's own size is refused.

    torch stores its entries as they are. One that inflates, or entries that overlap, would let a
    small file fill the memory.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        num_bytes = sum(entry.file_size for entry in entries)
        if len(entries) > MAX_ENTRIES or num_bytes > min(_size_of(file), MAX_BYTES):
            raise zipfile.BadZipFile(f"{len(entries)} entries of {num_bytes} bytes")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise zipfile.BadZipFile("a compressed entry")
        damaged = archive.testzip()
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                judge_pickle(archive.read(entry))
    if damaged is not None:
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    file.seek(0)


def _size_of(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _unusable(
    path: Path, expected: str, found: str, *, kind: str = "unusable-checkpoint"
) -> DataError:
    return DataError.of(
        Problem(
            case="checkpoint",
            kind=kind,
            file=path.name,
            expected=expected,
            found=found,
            remedy="Name best.pt or last.pt of a run of this project.",
        )
    )
