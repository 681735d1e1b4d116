"""All pairs of a set of predictions: checked first, then scored, several at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from pipeline.data.nifti import read_header
from pipeline.errors import DataError, Problem
from pipeline.evaluation.case_scores import CaseResult, Regions, score_case
from pipeline.evaluation.pair_content import read_pair
from pipeline.evaluation.pairs import Pair

MAX_WORKERS = 4
# Peak of one case with probabilities, measured at 240 x 240 x 155 voxels; 60 without them.
BYTES_PER_VOXEL = 85

Result = TypeVar("Result")


def default_num_workers() -> int:
    """Return one worker per processor, `MAX_WORKERS` at most."""
    return min(os.cpu_count() or 1, MAX_WORKERS)


def check_pairs(
    pairs: Sequence[Pair],
    *,
    labels: Mapping[str, int],
    num_workers: int,
    on_case: Callable[[], object] | None = None,
) -> None:
    """Read every pair and raise the problems of all at once, before anything is scored.

    `labels` are the data list's (name -> voxel value).

    Raises:
        DataError: Everything that `read_pair` finds in any of them.
    """
    check = partial(_problems_of, labels=labels)
    found = _in_threads(check, pairs, num_workers=num_workers, on_case=on_case)
    problems = [problem for of_pair in found for problem in of_pair]
    if problems:
        raise DataError.of(*problems)


def score_pairs(
    pairs: Sequence[Pair],
    *,
    labels: Mapping[str, int],
    regions: Regions,
    num_workers: int,
    on_case: Callable[[], object] | None = None,
) -> list[CaseResult]:
    """Read and score every pair; the results are in the order of the pairs.

    `num_workers` threads hold one case each. Threads serve as well as processes: most of the work
    is inflating and array arithmetic, which release the interpreter's lock. `on_case` is called in
    this thread after each case.
    """

    def score(pair: Pair) -> CaseResult:
        return score_case(read_pair(pair, labels=labels), regions=regions)

    return _in_threads(score, pairs, num_workers=num_workers, on_case=on_case)


def memory_bytes(pairs: Sequence[Pair], *, num_workers: int) -> int:
    """Return about how much memory scoring takes: that of the largest volumes, one a worker.

    A reference whose header cannot be read counts nothing; `check_pairs` reports it.
    """
    sizes = sorted((_num_voxels(pair) for pair in pairs), reverse=True)
    return BYTES_PER_VOXEL * sum(sizes[:num_workers])


def _problems_of(pair: Pair, *, labels: Mapping[str, int]) -> tuple[Problem, ...]:
    try:
        read_pair(pair, labels=labels)
    except DataError as error:
        return error.problems
    return ()


def _num_voxels(pair: Pair) -> int:
    try:
        return math.prod(read_header(pair.reference).shape)
    except DataError:
        return 0


def _in_threads(
    function: Callable[[Pair], Result],
    pairs: Sequence[Pair],
    *,
    num_workers: int,
    on_case: Callable[[], object] | None,
) -> list[Result]:
    """Return the results in the order of the pairs."""
    results = []
    executor = ThreadPoolExecutor(num_workers)
    try:
        for result in executor.map(function, pairs):
            results.append(result)
            if on_case is not None:
                on_case()
    finally:
        executor.shutdown(cancel_futures=True)  # an interruption does not wait for all cases
    return results
