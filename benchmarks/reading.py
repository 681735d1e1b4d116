"""Reading the four images of a case: nibabel and MONAI against what training reads with."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.transforms import LoadImaged

from benchmarks.data import MODALITIES, BenchmarkCase, benchmark_cases
from benchmarks.measure import Comparison, compare
from pipeline.data.content import read_content
from pipeline.data.datalist import Case
from pipeline.data.loading import LoadCase

VERIFIED = "both sides verify gzip's checksum and length; ours judges header, grid and length, too"
FLOAT64 = "get_fdata returns float64, which is its only way; ours keeps what the file stores"
STACKED = (
    "ours returns one tensor (4, X, Y, Z), whose images have been held against each other and "
    "found finite; LoadImaged returns four of (1, X, Y, Z)"
)


def run(*, repeats: int) -> list[Comparison]:
    """Compare reading with nibabel's and MONAI's, with one thread and with all."""
    (found,), words = benchmark_cases(1)
    case = Case(found.id, found.id, found.images, None, None, ())
    num_threads = torch.get_num_threads()
    comparisons = []
    for threads in sorted({1, num_threads}):
        torch.set_num_threads(threads)
        # The goals are those of the machine as it is.
        goals = (1 / 2.5, 1 / 4) if threads == num_threads else (None, None)
        options: dict[str, Any] = {"data": words, "repeats": repeats}
        comparisons += [
            _against_nibabel(found, case, threads=threads, goal=goals[0], **options),
            _against_monai(found, case, threads=threads, goal=goals[1], **options),
        ]
    return comparisons


def _against_nibabel(
    found: BenchmarkCase, case: Case, *, threads: int, goal: float | None, data: str, repeats: int
) -> Comparison:
    def reference() -> list[np.ndarray]:
        return [nib.load(path).get_fdata() for path in found.images]

    def ours() -> list[np.ndarray]:
        content, problems = read_content(case, labels=False, num_threads=threads)
        assert not problems
        return [image.volume for image in content.images]

    def same(theirs: list[np.ndarray], mine: list[np.ndarray]) -> str:
        assert all(map(np.array_equal, theirs, mine))
        return "all voxels equal"

    return compare(
        "C3",
        f"reading 4 files, {_in_words(threads)}",
        reference=("nibabel get_fdata", reference),
        ours=("read_content", ours),
        same=same,
        goal=goal,
        data=data,
        repeats=repeats,
        notes=(VERIFIED, FLOAT64),
    )


def _against_monai(
    found: BenchmarkCase, case: Case, *, threads: int, goal: float | None, data: str, repeats: int
) -> Comparison:
    load_images = LoadImaged(MODALITIES, ensure_channel_first=True)
    load_case = LoadCase(labels=False)
    files = {name: str(path) for name, path in zip(MODALITIES, found.images, strict=True)}

    def reference() -> list[torch.Tensor]:
        loaded = load_images(dict(files))
        return [loaded[name] for name in MODALITIES]

    def ours() -> torch.Tensor:
        image: torch.Tensor = load_case(case)["image"]
        return image

    def same(theirs: list[torch.Tensor], mine: torch.Tensor) -> str:
        assert torch.equal(torch.cat(theirs), mine)
        assert mine.dtype == theirs[0].dtype == torch.float32
        return "all voxels equal, both float32"

    return compare(
        "C3",
        f"4 files as float32 tensors, {_in_words(threads)}",
        reference=("MONAI LoadImaged", reference),
        ours=("LoadCase", ours),
        same=same,
        goal=goal,
        data=data,
        repeats=repeats,
        notes=(VERIFIED, STACKED),
    )


def _in_words(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads (the reference uses one)"
