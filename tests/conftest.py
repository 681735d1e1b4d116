"""What tests share: tiny BraTS-like cases on an awkward grid, and the folder of real cases.

The default grid is anisotropic, flipped and off-origin on purpose: code that forgets the affine, or
takes one axis for another, cannot pass on it by luck.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.data.datalist import Case

MODALITIES = ("flair", "t1", "t1ce", "t2")
LABELS = {"background": 0, "necrotic_core": 1, "oedema": 2, "enhancing_tumour": 4}
SHAPE = (12, 14, 10)
# Axis codes LPS as in BraTS, but 1.2 x 0.9 x 2.5 mm and with its origin somewhere else.
AFFINE = np.array(
    [
        [-1.2, 0.0, 0.0, 31.5],
        [0.0, -0.9, 0.0, -17.25],
        [0.0, 0.0, 2.5, 8.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
REAL_CASES = Path(__file__).resolve().parents[2] / "shared" / "data" / "brats"

CaseFactory = Callable[..., Case]
CohortFactory = Callable[..., Path]


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_counts() -> None:
    """Undo what a shell does to jobs in the background: they ignore SIGINT, and what they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _gradients_stay_on() -> Iterator[None]:
    """Fail the test that leaves gradients off, rather than all those after it in its process."""
    yield
    left_off = not torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert not left_off, "the test left gradients off"


@pytest.fixture
def real_cases() -> Path:
    """The folder of the real BraTS cases: `<case>/<case>_<modality>.nii.gz`."""
    if not REAL_CASES.is_dir():
        pytest.skip("the real BraTS cases (../shared/data/brats) are not on this machine")
    return REAL_CASES


@pytest.fixture
def case_factory(tmp_path: Path) -> CaseFactory:
    """Return `make_case`, whose `folder` is the test's temporary folder unless given."""

    def make(case_id: str = "case_000", *, folder: Path = tmp_path, **options: Any) -> Case:
        return make_case(folder, case_id, **options)

    return make


@pytest.fixture
def cohort_factory(tmp_path: Path) -> CohortFactory:
    """Return `make_cohort`, whose `folder` is the test's temporary folder unless given."""

    def make(*, folder: Path = tmp_path, **options: Any) -> Path:
        return make_cohort(folder, **options)

    return make


def make_case(
    folder: Path,
    case_id: str,
    *,
    shape: tuple[int, int, int] = SHAPE,
    affine: np.ndarray = AFFINE,
    seed: int = 0,
    label_values: tuple[int, ...] = tuple(LABELS.values()),
    labelled: bool = True,
    fold: int | None = None,
) -> Case:
    """Write `folder/<id>/<id>_{flair,t1,t1ce,t2,seg}.nii.gz` and return the case.

    Images are int16, a bright box on a background of 0, different per modality, `seed` and case
    id; the label is `nested_label` with `label_values`.
    """
    case_folder = folder / case_id
    case_folder.mkdir(parents=True)
    random = np.random.default_rng([seed, *case_id.encode()])
    inside = (slice(1, -1),) * 3
    images = []
    for modality in MODALITIES:
        image = np.zeros(shape, dtype=np.int16)
        image[inside] = random.integers(100, 1000, image[inside].shape)
        images.append(save_nifti(case_folder / f"{case_id}_{modality}.nii.gz", image, affine))
    label = None
    if labelled:
        values = np.array(label_values, dtype=np.uint8)[nested_label(shape)]
        label = save_nifti(case_folder / f"{case_id}_seg.nii.gz", values, affine)
    return Case(
        id=case_id,
        subject=case_id,
        images=tuple(images),
        label=label,
        fold=fold,
        label_values=label_values,
    )


def nested_label(shape: tuple[int, int, int]) -> np.ndarray:
    """Return class indices (X, Y, Z): a box of oedema (2) around enhancing (3) around core (1)."""
    classes = np.zeros(shape, dtype=np.uint8)
    for margin, index in ((2, 2), (3, 3), (4, 1)):
        classes[(slice(margin, -margin),) * 3] = index
    return classes


def save_nifti(path: Path, volume: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Write with nibabel, so that the tests do not rest on our own writer; return `path`."""
    nib.save(nib.Nifti1Image(volume, affine, dtype=volume.dtype), path)
    return path


def make_cohort(
    folder: Path, *, num_cases: int = 4, num_folds: int | None = 2, **options: Any
) -> Path:
    """Write cases `case_000`, ... (`options` as of `make_case`) and return their data list.

    The cases go round the folds: fold 0, 1, 0, 1, ...
    """
    entries = []
    for index in range(num_cases):
        fold = None if num_folds is None else index % num_folds
        case = make_case(folder, f"case_{index:03d}", fold=fold, **options)
        entries.append(datalist_entry(case, folder))
    return write_datalist(folder / "cohort.json", {"training": entries})


def datalist_entry(case: Case, folder: Path) -> dict[str, Any]:
    """Return a case as a data list in `folder` states it."""
    entry: dict[str, Any] = {"case": case.id, "subject": case.subject}
    for modality, path in zip(MODALITIES, case.images, strict=True):
        entry[modality] = path.relative_to(folder).as_posix()
    if case.label is not None:
        entry["seg"] = case.label.relative_to(folder).as_posix()
    if case.fold is not None:
        entry["fold"] = case.fold
    return entry


def write_datalist(path: Path, sections: dict[str, Any]) -> Path:
    """Write `sections` below the header of the tests' dataset; return `path`."""
    header = {"name": "tests", "modality": list(MODALITIES), "labels": LABELS}
    path.write_text(json.dumps({**header, **sections}), encoding="utf-8")
    return path
