"""How many preprocessed cases fit in memory, and the dataset that keeps them there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from monai.data import CacheDataset
from monai.transforms import Transform

CGROUP_MEMORY_MAX = Path("/sys/fs/cgroup/memory.max")
CGROUP_MEMORY_CURRENT = Path("/sys/fs/cgroup/memory.current")
CGROUP_MEMORY_STAT = Path("/sys/fs/cgroup/memory.stat")


def free_memory_bytes() -> int:
    """Return the memory that this process may still take, in bytes.

    A container's limit counts where it is lower than what the machine has free: the kernel kills
    by the former, and says nothing. File pages that it would drop first count as free, or a
    container that has read its cases once would seem full.
    """
    free = int(psutil.virtual_memory().available)
    try:
        limit = CGROUP_MEMORY_MAX.read_text().strip()
        used = int(CGROUP_MEMORY_CURRENT.read_text())
        stat = dict(line.split() for line in CGROUP_MEMORY_STAT.read_text().splitlines())
    except FileNotFoundError:  # no cgroup v2: nothing but the machine limits us
        return free
    if limit == "max":
        return free
    return min(free, max(int(limit) - used + int(stat.get("inactive_file", 0)), 0))


def item_bytes(item: Mapping[str, Any]) -> int:
    """Return the bytes that the tensors of one preprocessed case take."""
    return sum(
        value.element_size() * value.numel()
        for value in item.values()
        if isinstance(value, torch.Tensor)
    )


def num_cacheable(num_cases: int, *, bytes_per_case: int, budget_bytes: float) -> int:
    """Return how many of `num_cases` fit into `budget_bytes`; none where that is negative."""
    return min(num_cases, max(int(budget_bytes // max(bytes_per_case, 1)), 0))


def build_cache(
    cases: Sequence[object],
    *,
    transform: Callable[[Any], dict[str, Any]],
    num_cached: int,
    num_threads: int = 2,
    progress: bool = True,
) -> CacheDataset:
    """Return a dataset of preprocessed cases, the first `num_cached` of them kept in memory.

    The cached tensors are handed out without a copy (a copy costs more than the augmentation of a
    case): whatever comes after must not write into them, as no transform of this project does.

    Args:
        cases: What `transform` takes, one element a case.
        transform: The deterministic chain, reading included.
        num_cached: Cases to keep; the others are read and preprocessed anew each time.
        num_threads: Cases prepared at the same time.
        progress: Show a bar while the cache is filled.
    """
    chain = _Awaited(transform)
    try:
        return CacheDataset(
            data=list(cases),
            transform=chain,
            cache_num=num_cached,
            num_workers=num_threads,
            progress=progress,
            copy_cache=False,
        )
    except BaseException:
        # MONAI leaves its threads behind, and an interpreter that ends beneath them may crash.
        chain.wait()
        raise


class _Awaited(Transform):
    """A transform that can be waited for while other threads are in it."""

    def __init__(self, transform: Callable[[Any], dict[str, Any]]) -> None:
        self.transform = transform
        self._num_running = 0
        self._changed = threading.Condition()

    def __call__(self, case: Any) -> dict[str, Any]:
        """Transform one case."""
        with self._changed:
            self._num_running += 1
        try:
            return self.transform(case)
        finally:
            with self._changed:
                self._num_running -= 1
                self._changed.notify_all()

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers that are not forked get a copy, which a lock cannot have.
        return _Awaited, (self.transform,)

    def wait(self) -> None:
        """Return when no thread is in the transform."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_running == 0)
