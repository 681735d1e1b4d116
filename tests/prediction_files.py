"""What the tests of the evaluation share: predictions of the cohort's cases, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from conftest import AFFINE, LABELS, SHAPE, nested_label, save_nifti

VALUES = tuple(LABELS.values())


def classes_of(kind: str) -> np.ndarray:
    """Return class indices (X, Y, Z): the reference itself, nothing, or moved by 1 along X."""
    reference = nested_label(SHAPE)
    return {
        "perfect": reference,
        "empty": np.zeros_like(reference),
        "shifted": np.roll(reference, 1, axis=0),
    }[kind]


def write_prediction(
    folder: Path,
    case: str,
    kind: str = "perfect",
    *,
    name: str = "{case}_seg.nii.gz",
    values: tuple[int, ...] = VALUES,
    affine: np.ndarray = AFFINE,
) -> Path:
    """Write the mask of `kind` and return its path."""
    folder.mkdir(exist_ok=True)
    mask = np.array(values, dtype=np.uint8)[classes_of(kind)]
    return save_nifti(folder / name.format(case=case), mask, affine)


def write_record(folder: Path, case: str, /, *seen: bool | None, **changes: Any) -> Path:
    """Write `<case>.json` with one model for each of `seen`."""
    models = [
        {"name": f"model {index}", "digest": f"{index:064x}", "seen_in_training": value}
        for index, value in enumerate(seen)
    ]
    path = folder / f"{case}.json"
    path.write_text(json.dumps({"case": case, "labels": LABELS, "models": models} | changes))
    return path


def probabilities_of(classes: np.ndarray, *, certainty: float) -> np.ndarray:
    """Return float32 (C, X, Y, Z): `certainty` for the voxel's class, the rest shared equally."""
    rest = (1 - certainty) / (len(VALUES) - 1)
    is_class = classes == np.arange(len(VALUES)).reshape(-1, 1, 1, 1)
    return np.where(is_class, certainty, rest).astype(np.float32)


def write_probabilities(folder: Path, case: str, probabilities: np.ndarray) -> Path:
    """Write (C, X, Y, Z) as inference does, (X, Y, Z, C) in the file; return its path."""
    path = folder / f"{case}_probabilities.nii.gz"
    return save_nifti(path, np.moveaxis(probabilities, 0, -1))
