"""From four files to the network's input, and the rotation of training, each in one thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import torch
from monai.transforms import (
    Compose,
    ConcatItemsd,
    EnsureChannelFirstd,
    GaussianSmoothd,
    LoadImaged,
    Orientationd,
    RandRotated,
    ScaleIntensityd,
    SpatialCropd,
)
from scipy import ndimage

from benchmarks.data import MODALITIES, BenchmarkCase, benchmark_cases
from benchmarks.measure import Comparison, compare
from pipeline.config import PreprocessingSettings
from pipeline.data.datalist import Case
from pipeline.data.loading import LoadCase
from transforms import build_preprocessing, rotate_in_plane
from transforms.arrays import plain_tensor

NUM_CASES = 3
CROP = (slice(8, -8), slice(8, -8), slice(6, -5))
TOLERANCE = 1e-6
DEGREES = 13.0
NOTES = ("one thread on both sides; files are in the system's cache",)


def run(*, repeats: int) -> list[Comparison]:
    """Measure the article's steps beside SciPy and MONAI (C1, C2), and the rotation."""
    cases, data = benchmark_cases(NUM_CASES)
    with _one_thread():
        return [
            compare(
                "C1",
                f"{len(cases)} cases, .nii.gz x4 to preprocessed, the article's settings",
                reference=("nibabel and SciPy", lambda: [_article(case) for case in cases]),
                ours=("this project", lambda: _ours(cases)),
                same=_same_numbers,
                goal=1 / 10,
                data=data,
                repeats=repeats,
                notes=NOTES,
            ),
            compare(
                "C2",
                f"{len(cases)} cases, .nii.gz x4 to preprocessed, the article's settings",
                reference=("MONAI", lambda: _monai(cases)),
                ours=("this project", lambda: _ours(cases)),
                same=_same_shape,
                goal=1 / 5,
                data=data,
                repeats=repeats,
                notes=(*NOTES, "MONAI's side neither rounds to levels nor sharpens"),
            ),
            _rotation(cases[:1], repeats=repeats),
        ]


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _article(case: BenchmarkCase) -> np.ndarray:
    """Return the four modalities (4, X, Y, Z), float64, by the article's steps."""
    return np.stack([_article_modality(nib.load(path).get_fdata()) for path in case.images])


def _article_modality(volume: np.ndarray) -> np.ndarray:
    cropped = volume[CROP]
    low, high = cropped.min(), cropped.max()
    levels = np.round((cropped - low) / (high - low), 3)
    smooth = ndimage.gaussian_filter(levels, sigma=1)
    return np.asarray(smooth - 0.3 * ndimage.laplace(smooth))


def _monai(cases: Sequence[BenchmarkCase]) -> list[torch.Tensor]:
    chain = Compose(
        [
            LoadImaged(MODALITIES),
            EnsureChannelFirstd(MODALITIES),
            ConcatItemsd(MODALITIES, name="image"),
            Orientationd("image", axcodes="LPS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            SpatialCropd("image", roi_slices=list(CROP)),
            ScaleIntensityd("image", channel_wise=True),
            GaussianSmoothd("image", sigma=1.0),
        ]
    )
    return [
        chain(dict(zip(MODALITIES, map(str, case.images), strict=True)))["image"] for case in cases
    ]


def _ours(cases: Sequence[BenchmarkCase]) -> list[torch.Tensor]:
    load = LoadCase(labels=False)
    chain = build_preprocessing(keys=("image",), **PreprocessingSettings().model_dump())
    return [chain(load(_case(case)))["image"] for case in cases]


def _case(case: BenchmarkCase) -> Case:
    return Case(
        id=case.id,
        subject=case.id,
        images=case.images,
        label=None,
        fold=None,
        label_values=(0, 1, 2, 4),
    )


def _same_numbers(reference: list[np.ndarray], ours: list[torch.Tensor]) -> str:
    differences = [
        np.abs(found.numpy() - twin).max() for twin, found in zip(reference, ours, strict=True)
    ]
    assert max(differences) <= TOLERANCE, differences
    return f"equal to {max(differences):.1e} in every voxel (the promise: {TOLERANCE:g})"


def _same_shape(reference: list[torch.Tensor], ours: list[torch.Tensor]) -> str:
    assert [found.shape for found in ours] == [other.shape for other in reference]
    difference = max(
        (plain_tensor(found) - plain_tensor(other)).abs().max().item()
        for other, found in zip(reference, ours, strict=True)
    )
    return (
        f"equal in shape; MONAI's Gaussian is another one and it does not sharpen, so that voxels "
        f"differ by up to {difference:.2f}"
    )


def _rotation(cases: Sequence[BenchmarkCase], *, repeats: int) -> Comparison:
    """Compare the in-plane rotation of a full case with MONAI's."""
    (image,) = map(plain_tensor, _ours(cases))
    turn = RandRotated("image", range_z=0.0, prob=1.0, padding_mode="border", align_corners=True)
    turn.rand_rotate.range_z = (-np.deg2rad(DEGREES),) * 2  # always this angle; MONAI's sign
    return compare(
        "-",
        "rotation of a preprocessed case in the plane",
        reference=("MONAI's RandRotated", lambda: plain_tensor(turn({"image": image})["image"])),
        ours=(
            "rotate_in_plane",
            lambda: rotate_in_plane(image, degrees=DEGREES, mode="bilinear"),
        ),
        same=_same_rotation,
        goal=None,
        data="1 case of 224x224x144 voxels",
        repeats=repeats,
        notes=("one thread on both sides",),
    )


def _same_rotation(reference: torch.Tensor, ours: torch.Tensor) -> str:
    difference = (reference - ours).abs().max().item()
    assert difference < 1e-3, difference
    return f"equal to {difference:.0e}: MONAI's grid is in float32"
