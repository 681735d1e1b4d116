"""Checkpoints: what is in them, written so that a crash leaves the old one, read without code."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pipeline.data.files import replace_file
from pipeline.errors import DataError, Problem

LAST, BEST = "last.pt", "best.pt"
"""Names of a run's checkpoints: where it stands, and its best validation."""

FORMAT = 1
"""Version of the content; raised when an older reader could not understand it."""

REQUIRED_KEYS = frozenset(
    {"format", "weights", "network", "preprocessing", "header", "settings", "versions", "progress"}
)

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


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` (tensors and plain values only) so that `path` is whole at any moment.

    The bytes go to a temporary file in the same folder, reach the disk, and take the name last.

    Raises:
        ResourceError: The disk is full or cannot be written to; the old file is intact.
        ValueError: `content` lacks one of `REQUIRED_KEYS`.
    """
    missing = REQUIRED_KEYS - set(content)
    if missing:
        raise ValueError(f"checkpoint lacks {sorted(missing)}")
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    replace_file(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project onto the CPU; nothing in the file is executed.

    torch itself does not verify the checksums in its files: a flipped bit would become a weight.

    Raises:
        DataError: The file is missing, damaged, from something else, or from a newer version.
    """
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
    if content["format"] != FORMAT:
        raise _unusable(path, f"format {FORMAT}", f"format {content['format']!r}")
    return content


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
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    file.seek(0)


def _unusable(path: Path, expected: str, found: str) -> DataError:
    return DataError.of(
        Problem(
            case="checkpoint",
            kind="unusable-checkpoint",
            file=path.name,
            expected=expected,
            found=found,
            remedy="Name best.pt or last.pt of a run of this project.",
        )
    )
