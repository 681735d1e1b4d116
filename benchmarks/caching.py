"""C4 to C6: what a cached case takes, and what an epoch of cached cases costs without a network."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from monai.data import CacheDataset, DataLoader
from monai.transforms import CastToTyped, Compose

from benchmarks.data import BenchmarkCase, benchmark_cases
from benchmarks.measure import Comparison, Run, Side, compare
from pipeline.config import PreprocessingSettings
from pipeline.data.caching import CachedCases, build_cache, item_bytes
from pipeline.data.datalist import Case
from pipeline.data.forms import FORMS, FormName, Preparation
from pipeline.data.loaders import AugmentedCases, EpochSampler, plain_batch, training_loader
from pipeline.data.loading import LoadCase
from pipeline.model.heap import keep_freed_memory, settle_memory
from transforms import build_augmentation, build_preprocessing
from transforms.arrays import plain_tensor

NUM_CASES = 4
SEED = 0
DIVISOR = 8  # of the article's network, with four levels
PAGE_VALUES = os.sysconf("SC_PAGE_SIZE") // 4  # float32
MONAI_BYTES = 144.5e6
GOALS = {"compact": 40e6 / MONAI_BYTES, "packed": 14e6 / MONAI_BYTES}
SETTINGS = {**PreprocessingSettings().model_dump(), "divisor": DIVISOR}
NO_AUGMENTATION: dict[str, Any] = {"rotation_degrees": 0.0, "flip_probability": 0.0}


def run(*, repeats: int) -> list[Comparison]:
    """Measure C4, C5 and C6 on the preset `original`, with memory kept as in a training."""
    settle_memory()
    keep_freed_memory(0, free_bytes=1)
    found, data = benchmark_cases(NUM_CASES)
    cases = [listed(case) for case in found]
    preparation = Preparation(SETTINGS, mask_nonfinite=False)
    preparation.measure(cases[0])
    forms: dict[FormName, CachedCases] = {name: cached(cases, preparation, name) for name in FORMS}
    reference = monai_cache(cases)
    return [
        *_memory(reference, forms, data, repeats),
        *_epochs(reference, forms, data, repeats),
        *_threads(forms, data, repeats),
    ]


def listed(case: BenchmarkCase) -> Case:
    """Return the case as a data list would give it; label values are those of its release."""
    values = (0, 1, 2, 3) if "GLI" in case.id else (0, 1, 2, 4)
    return Case(case.id, case.id, case.images, case.label, fold=None, label_values=values)


def monai_cache(cases: Sequence[Case]) -> CacheDataset:
    """Return MONAI's cache of the same preprocessing; labels are float32, as LoadImaged's are."""
    chain = [
        LoadCase(labels=True),
        *build_preprocessing(**SETTINGS).transforms,
        CastToTyped("label", dtype=torch.float32),
    ]
    return CacheDataset(list(cases), transform=Compose(chain), num_workers=1, progress=False)


def cached(cases: Sequence[Case], preparation: Preparation, name: FormName) -> CachedCases:
    """Return our cache of `cases` in one form."""
    form = preparation.form(name, reference=False)
    return build_cache(
        cases,
        transform=partial(preparation.ready, reference=False),
        num_cached=len(cases),
        keep=form.keep,
        read=form.read,
        progress=False,
    )


def touched(batches: Any) -> dict[str, float]:
    """Go through an epoch and read from every page of every image, as a network would have to."""
    return {
        # Plain, because MONAI takes a batch apart to index it: voxel by voxel here.
        batch["case"][0]: float(plain_tensor(batch["image"]).flatten()[::PAGE_VALUES].sum())
        for batch in batches
    }


def our_epoch(cases: Any, *, num_workers: int = 0, **augmentation: Any) -> dict[str, float]:
    """Go through an epoch of the loader that trains."""
    return touched(our_loader(cases, epoch=1, num_workers=num_workers, **augmentation))


def our_loader(cases: Any, *, epoch: int, num_workers: int, **augmentation: Any) -> DataLoader:
    """Return the loader that trains, at the start of an epoch."""
    loader, sampler = training_loader(
        cases,
        augmentation=build_augmentation(**augmentation),
        seed=SEED,
        batch_size=1,
        num_workers=num_workers,
    )
    sampler.start(epoch=epoch)
    return loader


def epoch_without_threads(cases: Any, **augmentation: Any) -> dict[str, float]:
    """Go through the same epoch with everything done in turn, by the caller."""
    sampler = EpochSampler(len(cases), seed=SEED)
    chain = build_augmentation(**augmentation)
    dataset = AugmentedCases(cases, augmentation=chain, seed=SEED)
    return touched(DataLoader(dataset, batch_size=1, sampler=sampler, collate_fn=plain_batch))


def _same_epoch(left: dict[str, float], right: dict[str, float]) -> str:
    assert left == right
    return f"the same values in {len(left)} cases, to the last bit"


def _memory(
    reference: CacheDataset, forms: dict[FormName, CachedCases], data: str, repeats: int
) -> list[Comparison]:
    """Sizes do not vary from run to run: each of them stands for all."""
    num_cases = len(reference)
    per_case = sum(item_bytes(item) for item in reference._cache) / num_cases

    def side(name: str, num_bytes: float) -> Side:
        return Side(name, (Run(0.0, 0.0, 0, round(num_bytes), 0.0),) * repeats)

    for dataset in forms.values():
        for index in range(num_cases):
            ours, monai = dataset[index]["image"], reference[index]["image"]
            assert ours.as_tensor().numpy().tobytes() == monai.as_tensor().numpy().tobytes()
    return [
        Comparison(
            "C4",
            f"memory per cached case, {FORMS[name]}",
            reference=side("MONAI CacheDataset", per_case),
            ours=side(name, dataset.num_bytes / num_cases),
            goal=GOALS.get(name),
            same="every image the same to the last bit",
            data=data,
            of="peak_bytes",
            notes=("bytes of the tensors that are kept, mean over the cases",),
        )
        for name, dataset in forms.items()
    ]


def _epochs(
    reference: CacheDataset, forms: dict[FormName, CachedCases], data: str, repeats: int
) -> list[Comparison]:
    # As a user of MONAI writes it: the defaults, but for the shuffling, which costs nothing.
    loader = DataLoader(reference, batch_size=1, shuffle=True, num_workers=0)
    return [
        compare(
            "C5",
            f"{len(reference)} cached cases, no augmentation, {FORMS[name]}",
            reference=("CacheDataset + DataLoader", partial(touched, loader)),
            ours=(f"{name}, 2 threads", partial(our_epoch, dataset, **NO_AUGMENTATION)),
            same=_same_epoch,
            goal=0.25 if name == "whole" else None,
            data=data,
            repeats=repeats,
            notes=("the form that is taken where all cases fit into memory",)
            if name == "whole"
            else (),
        )
        for name, dataset in forms.items()
    ]


def _threads(forms: dict[FormName, CachedCases], data: str, repeats: int) -> list[Comparison]:
    sides: list[tuple[str, FormName, dict[str, Any], float | None, int]] = [
        # Nothing is done here but to hand tensors over: 2 ms a case at most, whoever does it.
        ("no augmentation, whole", "whole", NO_AUGMENTATION, None, 0),
        ("no augmentation, without background", "ready", NO_AUGMENTATION, 1.0, 0),
        ("no augmentation, filtered at each use", "compact", NO_AUGMENTATION, 1.0, 0),
        ("the article's augmentation, whole", "whole", {}, 1.0, 0),
        ("no augmentation, whole", "whole", NO_AUGMENTATION, None, 2),
        ("the article's augmentation, whole", "whole", {}, None, 2),
    ]
    comparisons = []
    for what, form, augmentation, goal, num_workers in sides:
        ours: Callable[[], dict[str, float]] = partial(
            our_epoch, forms[form], num_workers=num_workers, **augmentation
        )
        comparisons.append(
            compare(
                "C6",
                f"{len(forms[form])} cached cases, {what}",
                reference=(
                    "all in turn",
                    partial(epoch_without_threads, forms[form], **augmentation),
                ),
                ours=("2 processes" if num_workers else "2 threads", ours),
                same=_same_epoch,
                goal=goal,
                data=data,
                repeats=repeats,
            )
        )
    return comparisons
