"""What an exported bundle holds that inference needs, read as data: nothing in it is executed."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from pipeline.data.json_files import parse_json
from pipeline.errors import DataError, Problem

METADATA = "configs/metadata.json"
WEIGHTS = "models/model.safetensors"
SUMS = "SHA256SUMS"
EXECUTED = ("scripts", "configs/logging.conf")
"""What MONAI would execute, and this project never exports."""
MAX_BYTES = 4 * 2**30
MAX_TEXT_BYTES = 16 * 2**20
MODEL_KEY = "trained_model"
"""Where the metadata keep the plain values that a checkpoint holds besides the weights."""

VALUES = frozenset(
    {"network", "preprocessing", "header", "settings", "scores", "versions", "trained_on"}
)


def is_bundle(folder: Path) -> bool:
    """Whether `folder` is laid out as a MONAI bundle."""
    return (folder / METADATA).is_file()


def read_bundle(folder: Path) -> dict[str, Any]:
    """Return what `TrainedModel` holds, except its name.

    Configurations, scripts and the copies of the code are left alone: this project's own code runs.
    The weights are as they are stored, possibly in half precision.

    Raises:
        DataError: The bundle is not one of this project, or its files are not those it was made of.
    """
    _refuse_code(folder)
    contents = _verified_contents(folder)
    metadata = parse_json(contents[METADATA], path=folder / METADATA)
    values = metadata.get(MODEL_KEY) if isinstance(metadata, dict) else None
    if not isinstance(values, dict) or set(values) != VALUES:
        raise _unusable(
            folder,
            METADATA,
            expected=f"{MODEL_KEY} with {', '.join(sorted(VALUES))}",
            found="a bundle of something else",
            remedy="Only bundles made by pipeline.export can be read; run others with MONAI.",
        )
    try:
        weights = safetensors.torch.load(contents[WEIGHTS])
    # LookupError and ValueError: types and shapes that the format has and torch has not.
    except (SafetensorError, LookupError, ValueError, RuntimeError) as error:
        raise _unusable(
            folder,
            WEIGHTS,
            expected="weights in the safetensors format",
            found=str(error),
            remedy="Export the run again.",
        ) from error
    return {**values, "weights": weights}


def in_single_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Return a weight as the network computes with it: float32 where a bundle stores float16."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _refuse_code(folder: Path) -> None:
    """Refuse what no bundle of this project has, and MONAI would execute unasked."""
    for name in EXECUTED:
        if os.path.lexists(folder / name):
            raise _unusable(
                folder,
                name,
                expected="a bundle of plain data, as pipeline.export makes it",
                found="what MONAI would execute",
                remedy="Use it with MONAI, and only if you trust its author; or remove this.",
            )


def _verified_contents(folder: Path) -> dict[str, bytes]:
    """Return the files that are read; each is what its digest says."""
    try:
        lines = _content_of(folder / SUMS).decode().splitlines()
        stated = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        contents = {name: _content_of(folder / name) for name in (METADATA, WEIGHTS)}
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(
            folder,
            SUMS,
            expected=f"{SUMS}, {METADATA} and {WEIGHTS}",
            found=str(getattr(error, "strerror", None) or error),
            remedy="Copy the whole bundle again, or export the run again.",
        ) from error
    for name, content in contents.items():
        if stated.get(name) != hashlib.sha256(content).hexdigest():
            raise _unusable(
                folder,
                name,
                expected=f"the content that {SUMS} states",
                found="another",
                remedy="It was altered or damaged: copy the bundle again, or export the run again.",
            )
    return contents


def _content_of(path: Path) -> bytes:
    """Return the content of a regular file; raises OSError. A device could deliver for ever."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "A folder or a device")
    limit = MAX_BYTES if path.suffix == ".safetensors" else MAX_TEXT_BYTES
    if path.stat().st_size > limit:
        raise OSError(errno.EFBIG, f"{path.name} of more than {limit} bytes")
    return path.read_bytes()


def _unusable(folder: Path, name: str, *, expected: str, found: str, remedy: str) -> DataError:
    return DataError.of(
        Problem(
            case=folder.resolve().name,
            kind="unusable-bundle",
            file=name,
            expected=expected,
            found=found,
            remedy=remedy,
        )
    )
