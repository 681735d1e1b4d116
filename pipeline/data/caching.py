"""How many preprocessed cases fit in memory, and the dataset that keeps them there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from pipeline.data.compact import CompactTensor

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


def item_bytes(item: Mapping[str, Any] | bytes) -> int:
    """Return the bytes that one preprocessed case takes: its tensors, compact ones, or packed."""
    if isinstance(item, bytes):
        return len(item)
    return sum(
        value.nbytes for value in item.values() if isinstance(value, (torch.Tensor, CompactTensor))
    )


def num_cacheable(num_cases: int, *, bytes_per_case: int, budget_bytes: float) -> int:
    """Return how many of `num_cases` fit into `budget_bytes`; none where that is negative."""
    return min(num_cases, max(int(budget_bytes // max(bytes_per_case, 1)), 0))


def unchanged(item: Any) -> Any:
    """Return `item`."""
    return item


class CachedCases(Dataset):
    """Preprocessed cases, of which the first ones are kept in memory; see `build_cache`."""

    def __init__(
        self,
        cases: Sequence[Any],
        *,
        transform: Callable[[Any], dict[str, Any]],
        read: Callable[[Any], dict[str, Any]],
    ) -> None:
        self.cases = cases
        self.transform = transform
        self.read = read
        self.kept: list[Any] = []

    @property
    def num_bytes(self) -> int:
        """Bytes that the cases in memory take."""
        return sum(item_bytes(item) for item in self.kept)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.kept):
            return self.read(self.kept[index])
        return self.transform(self.cases[index])

    def fill(
        self,
        num_cases: int,
        *,
        keep: Callable[[Any], Any],
        budget_bytes: float,
        num_threads: int,
        progress: bool,
    ) -> None:
        """Keep what `keep` makes of the first `num_cases`, as far as the budget goes."""
        waiting = self.cases[:num_cases]
        bar = tqdm(total=len(waiting), desc="Loading dataset", disable=not progress)
        threads = ThreadPoolExecutor(num_threads, thread_name_prefix="cache")
        try:
            num_bytes = 0
            # No more at once than there are threads: each takes the memory of a whole case.
            futures = [threads.submit(keep, case) for case in waiting[:num_threads]]
            for number in range(len(waiting)):
                item = futures.pop(0).result()
                num_bytes += item_bytes(item)
                if num_bytes > budget_bytes:
                    break
                self.kept.append(item)
                bar.update()
                if number + num_threads < len(waiting):
                    futures.append(threads.submit(keep, waiting[number + num_threads]))
        finally:
            # An interpreter that ends beneath its threads may crash.
            threads.shutdown(wait=True, cancel_futures=True)
            bar.close()


def build_cache(
    cases: Sequence[Any],
    *,
    transform: Callable[[Any], dict[str, Any]],
    num_cached: int,
    keep: Callable[[Any], Any] | None = None,
    read: Callable[[Any], dict[str, Any]] = unchanged,
    budget_bytes: float = math.inf,
    num_threads: int = 2,
    progress: bool = True,
) -> CachedCases:
    """Return a dataset of preprocessed cases, the first `num_cached` of them kept in memory.

    What is kept is handed to `read` without a copy: whatever comes after must not write into it,
    as no transform of this project does.

    Args:
        cases: What `transform` takes, one element a case.
        transform: The deterministic chain, reading included.
        num_cached: Cases to keep; the others are read and preprocessed anew each time.
        keep: Returns what is kept of a case, which `read` turns into what `transform` would have
            returned; `transform` itself if there is none.
        read: See `keep`; called at each access.
        budget_bytes: Fewer are kept if they turn out to take more than this.
        num_threads: Cases prepared at the same time.
        progress: Show a bar while the cache is filled.
    """
    cached = CachedCases(cases, transform=transform, read=read)
    cached.fill(
        num_cached,
        keep=keep or transform,
        budget_bytes=budget_bytes,
        num_threads=num_threads,
        progress=progress,
    )
    return cached
