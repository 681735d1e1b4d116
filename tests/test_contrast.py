from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import MODALITIES

from pipeline.data.content import read_content
from pipeline.data.contrast import MARGIN, tail_ratio
from pipeline.data.datalist import Case

SHAPE = (60, 64, 56)


def brain(*, seed: int, num_vessels: int = 0, value: float = 3000) -> np.ndarray:
    """Return tissue of 1000 +- 100 in a box of zeros, with bright voxels in its middle."""
    volume = np.zeros(SHAPE)
    inside = (slice(2, -2),) * 3
    random = np.random.default_rng(seed)
    volume[inside] = random.normal(1000, 100, volume[inside].shape)
    volume[30, 32, 20 : 20 + num_vessels] = value
    volume[31, 32, 20 : 20 + num_vessels] = value
    volume[32, 32, 20 : 20 + num_vessels] = value
    return volume


T1 = brain(seed=0)
T1CE = brain(seed=1, num_vessels=14)


def test_the_ratio_of_the_tails_by_hand() -> None:
    """Both images are what they are, but for the middle: percentiles of its voxels, by NumPy."""
    middle = (slice(16, 44), slice(17, 47), slice(15, 41))  # 2 + 56 // 4, 2 + 60 // 4, 2 + 52 // 4
    lengths = []
    for image in (T1, T1CE):
        low, median, high, top = np.percentile(image[middle], (25, 50, 75, 99.9))
        lengths.append((top - median) / (high - low))
    assert tail_ratio(T1, T1CE) == pytest.approx(lengths[1] / lengths[0], rel=1e-12)
    assert lengths[1] / lengths[0] > 4


def test_exchanging_the_images_inverts_the_ratio() -> None:
    ratio = tail_ratio(T1, T1CE)
    assert ratio is not None
    assert tail_ratio(T1CE, T1) == pytest.approx(1 / ratio, rel=1e-12)


def test_the_scale_of_the_intensities_does_not_matter() -> None:
    assert tail_ratio(T1 * 37, T1CE / 11) == pytest.approx(tail_ratio(T1, T1CE), rel=1e-12)


def test_what_lies_at_the_surface_does_not_matter() -> None:
    """Fat that skull stripping left is bright in T1."""
    fat = T1.copy()
    fat[2:8, 2:-2, 2:-2] = 5000
    assert tail_ratio(fat, T1CE) == tail_ratio(T1, T1CE)


def test_damaged_voxels_do_not_count() -> None:
    damaged = T1CE.copy()
    damaged[25, 25, 20:30] = np.nan
    damaged[26, 25, 20:30] = np.inf
    assert tail_ratio(T1, damaged) == pytest.approx(tail_ratio(T1, T1CE), rel=0.1)


@pytest.mark.parametrize(
    ("t1", "t1ce"),
    [
        (np.zeros(SHAPE), np.zeros(SHAPE)),
        (T1[:30, :30, :30], T1CE[:30, :30, :30]),
        (T1, np.full(SHAPE, 7.0)),
    ],
    ids=["no head", "few voxels", "no contrast"],
)
def test_where_nothing_can_be_told(t1: np.ndarray, t1ce: np.ndarray) -> None:
    assert tail_ratio(t1, t1ce) is None


@pytest.mark.real
@pytest.mark.parametrize("name", ["BraTS2021_01658", "BraTS2021_01477", "BraTS2021_01480"])
def test_real_cases_are_told_from_their_exchange(real_cases: Path, name: str) -> None:
    """The lowest ratio of all 19 cases, and two cases without enhancing tumour."""
    files = tuple(real_cases / name / f"{name}_{modality}.nii.gz" for modality in MODALITIES)
    content, problems = read_content(Case(name, name, files, None, None, (0, 1)), labels=False)
    assert problems == []
    ratio = tail_ratio(content.images[1].volume, content.images[2].volume)
    assert ratio is not None
    assert ratio > MARGIN
