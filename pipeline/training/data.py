"""From a split data list to loaders: what is cached is measured, said beforehand, and shown."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader

from pipeline.data.caching import CachedCases, build_cache, free_memory_bytes, num_cacheable
from pipeline.data.compact import CPU
from pipeline.data.datalist import Case
from pipeline.data.disk_cache import require_disk
from pipeline.data.forms import FORMS, FormName, Preparation
from pipeline.data.loaders import EpochSampler, training_loader, validation_loader
from pipeline.errors import SettingsError
from pipeline.training.room import Foresight
from transforms import build_augmentation

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """The loaders of a run, and the sampler that positions the first; None validates nothing."""

    training: DataLoader
    sampler: EpochSampler
    validation: DataLoader | None


def prepare_data(
    training_cases: Sequence[Case],
    validation_cases: Sequence[Case],
    *,
    preprocessing: Mapping[str, Any],
    augmentation: dict[str, Any],
    seed: int,
    batch_size: int,
    num_workers: int,
    cache_memory_fraction: float,
    cache_dir: Path | None,
    mask_nonfinite: bool,
    foresight: Foresight,
) -> TrainingData:
    """Read, preprocess and cache the cases; training cases come first where memory is short.

    They are kept in the quickest form in which all fit into memory (`pipeline.data.forms`), else in
    the smallest; those that do not fit come from `cache_dir`, or are read anew in each epoch.

    Args:
        training_cases: Augmented and shuffled.
        validation_cases: Neither; each also keeps its label on its own grid as `reference`. There
            may be none.
        preprocessing: Settings of `build_preprocessing`.
        augmentation: Settings of `build_augmentation`.
        seed: Of order and augmentation.
        batch_size: Training cases a batch; more than 1 needs cases of one size, or patches.
        num_workers: Processes that augment; with 0, threads of this one do.
        cache_memory_fraction: Share of the free memory that the cache may take.
        cache_dir: Folder of preprocessed cases, which other runs use as well.
        mask_nonfinite: Whether NaN and infinite voxels are taken for 0.
        foresight: Is asked before the cache is filled, which leaves a training step its memory.
            On its device training cases are filtered and augmented, unless processes do it.

    Raises:
        SettingsError: Cases of different sizes cannot be stacked.
        ResourceError: Memory or disk cannot suffice.
    """
    free = free_memory_bytes()
    preparation = Preparation(preprocessing, mask_nonfinite=mask_nonfinite)
    # The largest of a few would be guessed; the first case is measured.
    first = preparation.measure(training_cases[0])
    patch_size = augmentation["deformation"]["patch_size"]
    step_bytes = foresight(
        (batch_size, first.shape[0], *(patch_size or first.shape[1:])),
        num_batches=-(-len(training_cases) // batch_size),
    )
    num_cases = len(training_cases) + len(validation_cases)
    if cache_dir is not None:
        disk = preparation.use_disk(cache_dir)
        packed_bytes = first.bytes_per_case["packed"]
        require_disk(disk, num_cases=num_cases, bytes_per_case=packed_bytes)
    budget = min(free * cache_memory_fraction, max(free - step_bytes, 0))
    form = first.form(num_cases=num_cases, budget_bytes=budget)
    cache = partial(
        _cache, preparation=preparation, form=form, bytes_per_case=first.bytes_per_case[form]
    )
    # A process would need a CUDA context of its own.
    device = CPU if num_workers else foresight.device
    training_set = cache("training", training_cases, budget_bytes=budget, device=device)
    left = budget - training_set.num_bytes
    validating = (
        validation_loader(cache("validation", validation_cases, budget_bytes=left))
        if validation_cases
        else None
    )
    if batch_size > 1 and patch_size is None:
        _require_one_size(training_set, batch_size)
    loader, sampler = training_loader(
        training_set,
        augmentation=build_augmentation(**augmentation),
        seed=seed,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=device.type == "cpu" and torch.cuda.is_available(),
    )
    return TrainingData(loader, sampler, validating)


def _require_one_size(cases: CachedCases, batch_size: int) -> None:
    shapes = {tuple(cases[index]["image"].shape[1:]) for index in range(len(cases))}
    if len(shapes) > 1:
        raise SettingsError(
            f"training.batch_size: {batch_size} cases can be stacked only if all have one size; "
            f"after the preprocessing they have {len(shapes)}, such as {sorted(shapes)[:2]}. Use "
            "training.accumulation_steps instead, preprocessing without brain_box, or patches "
            "(augmentation.deformation.patch_size)."
        )


def _cache(
    name: str,
    cases: Sequence[Case],
    *,
    preparation: Preparation,
    form: FormName,
    bytes_per_case: int,
    budget_bytes: float,
    device: torch.device = CPU,
) -> CachedCases:
    """Return the dataset of `cases`, cached as far as the budget goes."""
    num_cached = num_cacheable(len(cases), bytes_per_case=bytes_per_case, budget_bytes=budget_bytes)
    source = "read anew" if preparation.disk is None else "read from --cache-dir"
    LOG.info(
        "Cache: %d of %d %s cases in memory, %s, about %.0f MB each, %.2f GB of at most %.2f GB%s",
        num_cached,
        len(cases),
        name,
        FORMS[form],
        bytes_per_case / 1e6,
        num_cached * bytes_per_case / 1e9,
        budget_bytes / 1e9,
        "" if num_cached == len(cases) else f"; the others are {source} in each epoch",
    )
    # Validation compares with the label on the case's own grid.
    reference = name == "validation"
    how = preparation.form(form, reference=reference, device=device)
    return build_cache(
        cases,
        transform=partial(preparation.ready, reference=reference, device=device),
        num_cached=num_cached,
        keep=how.keep,
        read=how.read,
        budget_bytes=budget_bytes,
    )
