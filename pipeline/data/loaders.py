"""The order and the randomness of training samples: both functions of (seed, epoch, index) alone.

This is what makes a resumed run equal to one that was never interrupted: nothing depends on how
often, by which worker, or in which process a sample was drawn before.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from monai.data import DataLoader
from torch.utils.data import Dataset, Sampler

from pipeline.signals import STOP_SIGNALS
from transforms.augmentation import seed_of

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
        self.augmentation.set_random_state(seed=seed_of(self.seed, epoch, index))
        return self.augmentation(dict(self.cases[index]))


def training_loader(
    cases: Cases,
    *,
    augmentation: RandomTransform,
    seed: int,
    batch_size: int,
    num_workers: int,
) -> tuple[DataLoader, EpochSampler]:
    """Return the loader of augmented training batches, and the sampler that positions it."""
    sampler = EpochSampler(len(cases), seed=seed)
    loader = DataLoader(
        AugmentedCases(cases, augmentation=augmentation, seed=seed),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        timeout=WORKER_TIMEOUT_S if num_workers else 0,
        worker_init_fn=outlive_one_signal,
        pin_memory=torch.cuda.is_available(),
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
    return DataLoader(cases, batch_size=1, shuffle=False, num_workers=0)
