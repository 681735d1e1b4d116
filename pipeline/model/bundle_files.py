"""What an exported bundle holds that inference needs, read as data: nothing in it is executed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from pipeline.data.json_files import read_json
from pipeline.errors import DataError, Problem

METADATA = "configs/metadata.json"
WEIGHTS = "models/model.safetensors"
SUMS = "SHA256SUMS"
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

    Raises:
        DataError: The bundle is not one of this project, or its files are not those it was made of.
    """
    _require_whole(folder)
    metadata = read_json(folder / METADATA)
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
        weights = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    except SafetensorError as error:
        raise _unusable(
            folder,
            WEIGHTS,
            expected="weights in the safetensors format",
            found=str(error),
            remedy="Export the run again.",
        ) from error
    return {**values, "weights": weights}


def _require_whole(folder: Path) -> None:
    """Compare the files that are read with their digests."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        stated = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        contents = {name: (folder / name).read_bytes() for name in (METADATA, WEIGHTS)}
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
