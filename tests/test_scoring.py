"""All pairs: their problems together, their results in order, whatever the number of threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import LABELS, CohortFactory
from prediction_files import write_prediction

from pipeline.data.datalist import read_datalist
from pipeline.errors import DataError
from pipeline.evaluation.pairs import Pair, find_pairs
from pipeline.evaluation.scoring import (
    BYTES_PER_VOXEL,
    check_pairs,
    default_num_workers,
    memory_bytes,
    score_pairs,
)

REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
NUM_VOXELS = 12 * 14 * 10

MakePairs = Callable[..., list[Pair]]


@pytest.fixture
def make_pairs(cohort_factory: CohortFactory, tmp_path: Path) -> MakePairs:
    def make(*kinds: str) -> list[Pair]:
        cases = read_datalist(cohort_factory(num_cases=len(kinds))).training
        for case, kind in zip(cases, kinds, strict=True):
            write_prediction(tmp_path / "out", case.id, kind)
        return find_pairs(tmp_path / "out", cases)

    return make


@pytest.mark.parametrize("num_workers", [1, 3])
def test_results_are_in_the_order_of_the_pairs(make_pairs: MakePairs, num_workers: int) -> None:
    done: list[int] = []
    results = score_pairs(
        make_pairs("perfect", "empty", "shifted"),
        labels=LABELS,
        regions=REGIONS,
        num_workers=num_workers,
        on_case=lambda: done.append(1),
    )
    assert [(result.case, result.scores["dice_WT"]) for result in results] == [
        ("case_000", 1.0),
        ("case_001", 0.0),
        ("case_002", 0.875),
    ]
    assert len(done) == 3


def test_the_problems_of_all_pairs_at_once(make_pairs: MakePairs) -> None:
    pairs = make_pairs("perfect", "perfect", "perfect")
    for pair in pairs[1:]:
        pair.mask.write_bytes(pair.mask.read_bytes()[:-8])
    with pytest.raises(DataError, match="case_001") as caught:
        check_pairs(pairs, labels=LABELS, num_workers=2)
    assert [problem.case for problem in caught.value.problems] == ["case_001", "case_002"]


def test_sound_pairs_pass(make_pairs: MakePairs) -> None:
    done: list[int] = []
    pairs = make_pairs("perfect", "shifted")
    check_pairs(pairs, labels=LABELS, num_workers=2, on_case=lambda: done.append(1))
    assert len(done) == 2


def test_a_bug_in_a_thread_is_not_swallowed(make_pairs: MakePairs) -> None:
    pairs = make_pairs("perfect")
    with pytest.raises(KeyError, match="nothing"):
        check_pairs(pairs, labels=LABELS, num_workers=1, on_case=lambda: {}["nothing"])


def test_memory_is_that_of_the_cases_held_at_a_time(make_pairs: MakePairs) -> None:
    pairs = make_pairs("perfect", "perfect", "perfect")
    assert memory_bytes(pairs, num_workers=2) == 2 * NUM_VOXELS * BYTES_PER_VOXEL


def test_a_reference_that_cannot_be_read_has_no_size_yet(
    make_pairs: MakePairs, tmp_path: Path
) -> None:
    """It is the check that reports it; the estimate must not come first."""
    (pair,) = make_pairs("perfect")
    lost = replace(pair, reference=tmp_path / "lost.nii.gz")
    assert memory_bytes([lost], num_workers=1) == 0


def test_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert default_num_workers() == 4
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert default_num_workers() == 1
