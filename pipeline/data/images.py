"""Reading an image of any format that the project knows; its name says which one it is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from pipeline.data.dicom import read_dicom_volume
from pipeline.data.itk_images import SUFFIXES, read_itk_volume
from pipeline.data.nifti import read_volume


def read_image(
    path: Path, *, dtype: DTypeLike | None = np.float32, channels: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxels of `path` as (X, Y, Z) in `dtype`, and its affine (4, 4) in RAS mm.

    A folder is a DICOM series, .nrrd and .mha go through ITK, and everything else is NIfTI. The
    same image in another format gives the same voxels and, to its format's digits, the same affine.
    With `channels` the result is (C, X, Y, Z); only a NIfTI file may then hold several volumes.
    `dtype` and the errors are those of `read_volume`, `read_itk_volume` and `read_dicom_volume`.
    """
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a folder cannot be entered
        volume, affine = read_dicom_volume(path, dtype=dtype)
    elif path.suffix.lower() in SUFFIXES:
        volume, affine = read_itk_volume(path, dtype=dtype)
    else:
        return read_volume(path, dtype=dtype, channels=channels)
    return (volume[None] if channels else volume), affine
