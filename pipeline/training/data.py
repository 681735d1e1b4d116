"""From a split data list to loaders: what is cached is measured, said beforehand, and shown."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from monai.data import CacheDataset, DataLoader
from monai.transforms import Compose, CopyItemsd

from pipeline.data.caching import build_cache, free_memory_bytes, item_bytes, num_cacheable
from pipeline.data.datalist import Case
from pipeline.data.loaders import EpochSampler, training_loader, validation_loader
from pipeline.data.loading import LoadCase
from pipeline.errors import SettingsError
from pipeline.training.room import Foresight
from transforms import build_augmentation

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """The loaders of a run, and the sampler that positions the first."""

    training: DataLoader
    sampler: EpochSampler
    validation: DataLoader


def prepare_data(
    training_cases: Sequence[Case],
    validation_cases: Sequence[Case],
    *,
    preprocessing: Compose,
    augmentation: dict[str, Any],
    seed: int,
    batch_size: int,
    num_workers: int,
    cache_memory_fraction: float,
    mask_nonfinite: bool,
    foresight: Foresight,
) -> TrainingData:
    """Read, preprocess and cache the cases; training cases come first where memory is short.

    Args:
        training_cases: Augmented and shuffled.
        validation_cases: Neither; each also keeps its label on its own grid as `reference`.
        preprocessing: From `build_preprocessing`.
        augmentation: Settings of `build_augmentation`.
        seed: Of order and augmentation.
        batch_size: Training cases a batch; more than 1 needs cases of one size.
        num_workers: Processes that augment.
        cache_memory_fraction: Share of the free memory that the cache may take.
        mask_nonfinite: Whether NaN and infinite voxels are taken for 0.
        foresight: Is asked before the cache is filled, which leaves a training step its memory.
    """
    free = free_memory_bytes()
    # Flat, because MONAI takes a chain within a chain for a random transform and caches nothing.
    training_chain = Compose(
        [LoadCase(labels=True, mask_nonfinite=mask_nonfinite), *preprocessing.transforms]
    )
    validation_chain = Compose(
        [
            LoadCase(labels=True, mask_nonfinite=mask_nonfinite),
            CopyItemsd("label", names="reference"),
            *preprocessing.transforms,
        ]
    )
    # The largest of a few would be guessed; the first case is measured.
    first = training_chain(training_cases[0])
    step_bytes = foresight(
        (batch_size, *first["image"].shape), num_batches=-(-len(training_cases) // batch_size)
    )
    budget = min(free * cache_memory_fraction, max(free - step_bytes, 0))
    training_set, used = _cache(
        "training", training_cases, training_chain, item_bytes(first), budget
    )
    first = validation_chain(validation_cases[0])
    validation_set, _ = _cache(
        "validation", validation_cases, validation_chain, item_bytes(first), budget - used
    )
    if batch_size > 1:
        _require_one_size(training_set, batch_size)
    loader, sampler = training_loader(
        training_set,
        augmentation=build_augmentation(**augmentation),
        seed=seed,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    return TrainingData(loader, sampler, validation_loader(validation_set))


def _require_one_size(cases: CacheDataset, batch_size: int) -> None:
    shapes = {tuple(cases[index]["image"].shape[1:]) for index in range(len(cases))}
    if len(shapes) > 1:
        raise SettingsError(
            f"training.batch_size: {batch_size} cases can be stacked only if all have one size; "
            f"after the preprocessing they have {len(shapes)}, such as {sorted(shapes)[:2]}. Use "
            "training.accumulation_steps instead, or preprocessing without brain_box."
        )


def _cache(
    name: str, cases: Sequence[Case], chain: Compose, bytes_per_case: int, budget_bytes: float
) -> tuple[CacheDataset, int]:
    """Return the cached dataset and the bytes that its cache takes."""
    num_cached = num_cacheable(len(cases), bytes_per_case=bytes_per_case, budget_bytes=budget_bytes)
    LOG.info(
        "Cache: %d of %d %s cases in memory, about %.0f MB each, %.2f GB of at most %.2f GB%s",
        num_cached,
        len(cases),
        name,
        bytes_per_case / 1e6,
        num_cached * bytes_per_case / 1e9,
        budget_bytes / 1e9,
        "" if num_cached == len(cases) else "; the others are read anew in each epoch",
    )
    return build_cache(cases, transform=chain, num_cached=num_cached), num_cached * bytes_per_case
