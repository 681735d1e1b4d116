"""Names of what belongs to a prediction: inference writes these files, evaluation finds them."""

from __future__ import annotations

from pathlib import Path

MASK_SUFFIX = "_seg.nii.gz"
OTHER_MASK_SUFFIX = ".nii.gz"  # as nnU-Net and BraTS' own tools call their masks
PROBABILITIES = "probabilities"


def mask_path(folder: Path, case: str) -> Path:
    """Return where the mask of a case is."""
    return folder / f"{case}{MASK_SUFFIX}"


def map_path(folder: Path, case: str, name: str) -> Path:
    """Return where float maps of a case are, such as its probabilities."""
    return folder / f"{case}_{name}.nii.gz"


def record_path(folder: Path, case: str) -> Path:
    """Return where it is said how a case's mask was made."""
    return folder / f"{case}.json"
