"""The order and the randomness of training samples: both functions of (seed, epoch, index) alone.

This is what makes a resumed run equal to one that was never interrupted: nothing depends on how
often, by which worker, or in which process a sample was drawn before.
"""

from __future__ import annotations

import copy
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from monai.data import DataLoader
from torch.utils.data import Dataset, Sampler
from torch.utils.data._utils.pin_memory import pin_memory

from pipeline.signals import STOP_SIGNALS
from transforms.arrays import plain_tensor
from transforms.augmentation import seed_of

NUM_THREADS = 2
"""Batches made at the same time beside the training, where no processes are asked for."""

WORKER_TIMEOUT_S = 900.0
"""How long a batch is waited for, in seconds: a worker that takes longer will never answer."""


class RandomTransform(Protocol):
    """What an augmentation offers: a call, and a seed to draw from."""

    def __call__(self, item: dict[str, Any], /) -> Any:
        """Transform one case."""

    def set_random_state(self, seed: int) -> object:
        """Restart the random numbers."""


class Cases(Protocol):
    """What holds the preprocessed cases: a list, or a dataset with a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in an order that follows from (seed, epoch), leaving out what is done.

    `start` says which epoch comes and how many of its samples are done; asking for an iterator
    changes nothing, because a loader with workers asks twice.
    """

    def __init__(self, num_samples: int, *, seed: int) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.epoch = 1
        self.num_done = 0

    def start(self, *, epoch: int, num_done: int = 0) -> None:
        """Set the epoch (from 1) that the next iterator walks through, after `num_done` samples."""
        self.epoch = epoch
        self.num_done = num_done

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_samples)
        epoch = self.epoch
        return iter([(epoch, int(index)) for index in order[self.num_done :]])

    def __len__(self) -> int:
        # The whole epoch, also when part of it is done: the engine counts iterations by it.
        return self.num_samples


class AugmentedCases(Dataset):
    """Cached cases, augmented by random numbers that belong to (seed, epoch, index)."""

    def __init__(self, cases: Cases, *, augmentation: RandomTransform, seed: int) -> None:
        self.cases = cases
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        # Drawing changes it, and another thread may be drawing as well.
        augmentation = copy.deepcopy(self.augmentation)
        augmentation.set_random_state(seed=seed_of(self.seed, epoch, index))
        return augmentation(dict(self.cases[index]))


class ReadyLoader(DataLoader):
    """A loader that makes batches ahead of their use: by threads where it has no processes.

    Threads share the cached cases and hand a batch over as it is; a process has to copy it. What a
    batch holds does not depend on who makes it, or when.
    """

    def __iter__(self) -> Any:
        return super().__iter__() if self.num_workers else self._by_threads()

    def _by_threads(self) -> Iterator[Any]:
        threads = ThreadPoolExecutor(
            NUM_THREADS, thread_name_prefix="loader", initializer=_use_device_of_this_thread()
        )
        made: deque[Future[Any]] = deque()
        try:
            for keys in self.batch_sampler or ():  # there is one, unless batches are switched off
                made.append(threads.submit(self._batch, keys))
                if len(made) > NUM_THREADS:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
        finally:
            # Also where the iteration is given up: no thread goes on behind the back.
            threads.shutdown(wait=True, cancel_futures=True)

    def _batch(self, keys: Sequence[Any]) -> Any:
        batch = self.collate_fn([self.dataset[key] for key in keys])
        return pin_memory(batch) if self.pin_memory else batch


def _use_device_of_this_thread() -> Callable[[], None] | None:
    """Return what makes another thread pin memory for this one's GPU, and not for the first."""
    if not torch.cuda.is_available():
        return None
    return partial(torch.cuda.set_device, torch.cuda.current_device())


def plain_batch(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack the volumes of `cases`, without the metadata that training has no use for.

    One case alone is not copied.
    """
    batch: dict[str, Any] = {}
    for key, first in cases[0].items():
        values = [case[key] for case in cases]
        if not isinstance(first, torch.Tensor):
            batch[key] = values
        elif len(values) == 1:
            batch[key] = plain_tensor(first)[None]
        else:
            batch[key] = torch.stack([plain_tensor(value) for value in values])
    return batch


def training_loader(
    cases: Cases,
    *,
    augmentation: RandomTransform,
    seed: int,
    batch_size: int,
    num_workers: int,
    pin_memory: bool = False,
) -> tuple[DataLoader, EpochSampler]:
    """Return the loader of augmented training batches, and the sampler that positions it.

    Without worker processes, threads of this one make the batches, on the device on which they find
    the cases. `pin_memory` is for cases on the CPU and a network on a GPU.
    """
    sampler = EpochSampler(len(cases), seed=seed)
    loader = ReadyLoader(
        AugmentedCases(cases, augmentation=augmentation, seed=seed),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=plain_batch,
        timeout=WORKER_TIMEOUT_S if num_workers else 0,
        worker_init_fn=outlive_one_signal,
        pin_memory=pin_memory,
    )
    return loader, sampler


def outlive_one_signal(_worker: int) -> None:
    """Let a worker ignore the first of each stop signal; a second one ends it.

    Batch systems and terminals signal every process of a job. The run answers after its iteration,
    for which it needs its workers.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _ignore_once)


def _ignore_once(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def validation_loader(cases: Dataset) -> DataLoader:
    """Return the loader of whole validation cases, one at a time, in their own order."""
    return ReadyLoader(cases, batch_size=1, shuffle=False, num_workers=0)
