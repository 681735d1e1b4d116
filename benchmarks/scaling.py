"""C11: what a case costs does not depend on how many there are; and memory stays flat.

python -m benchmarks.scaling [--cases N] [--epochs N] [--workers N] [--form NAME]

As a command, this is the proof of the memory: N cases of full size are cached, the loader goes
through so many epochs, and the resident memory of this process, and what each worker has for
itself, are shown and held against each other. A few cases of full size stand for many: they come
again under other names, and are read, preprocessed and kept once for each name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import psutil

from benchmarks.caching import (
    FORMS,
    NO_AUGMENTATION,
    NUM_CASES,
    SEED,
    SETTINGS,
    cached,
    listed,
    our_epoch,
)
from benchmarks.data import benchmark_cases
from benchmarks.measure import Comparison, Run, Side, measure
from pipeline.data.caching import CachedCases
from pipeline.data.datalist import Case
from pipeline.data.forms import FormName, Preparation
from pipeline.data.loaders import training_loader
from transforms import build_augmentation

SIZES = (8, 16, 32, 64)
GOAL = 1.05
FORM: FormName = "ready"
EPOCHS_PER_RUN = 4  # one alone is over too soon to be timed
# What the allocator may keep for itself after the first epochs, which fill its pools.
SLACK_BYTES = 50e6
# A worker is looked at at any moment, with a batch more or less in its hands.
WORKER_SLACK_BYTES = 150e6
SETTLED_EPOCHS = 2
LOOK_EVERY = 10  # batches


def run(*, repeats: int) -> list[Comparison]:
    """Measure caching and an epoch, per case, at 16, 32 and 64 cases against 8."""
    cases, data = many_cases(max(SIZES))
    preparation = Preparation(SETTINGS, mask_nonfinite=False)
    preparation.measure(cases[0])
    filling: dict[int, list[Run]] = {size: [] for size in SIZES}
    walking: dict[int, list[Run]] = {size: [] for size in SIZES}
    for number in range(repeats + 1):  # the first round warms up
        for size in SIZES if number % 2 == 0 else reversed(SIZES):
            fill, walk = _measured(cases[:size], preparation)
            if number:
                filling[size].append(fill)
                walking[size].append(walk)
    return [
        _comparison(what, runs, size, data)
        for what, runs in (("caching", filling), ("a cached epoch", walking))
        for size in SIZES[1:]
    ]


def many_cases(num_cases: int) -> tuple[list[Case], str]:
    """Return `num_cases` cases of full size, and in words what they are."""
    found, data = benchmark_cases(NUM_CASES)
    originals = [listed(case) for case in found]
    cases = [
        replace(originals[number % len(originals)], id=f"case_{number:03d}")
        for number in range(num_cases)
    ]
    return cases, f"{data}, each again under other names"


def _measured(cases: Sequence[Case], preparation: Preparation) -> tuple[Run, Run]:
    """Return how caching these cases, and an epoch of them, went, per case."""
    made: list[CachedCases] = []
    fill = measure(lambda: made.append(cached(cases, preparation, FORM)))

    def walk() -> None:
        for _ in range(EPOCHS_PER_RUN):
            our_epoch(made[0], **NO_AUGMENTATION)

    return _per(fill, len(cases)), _per(measure(walk), EPOCHS_PER_RUN * len(cases))


def _per(whole: Run, number: int) -> Run:
    return replace(whole, seconds=whole.seconds / number, cpu_seconds=whole.cpu_seconds / number)


def _comparison(what: str, runs: dict[int, list[Run]], size: int, data: str) -> Comparison:
    return Comparison(
        "C11",
        f"{what}, per case",
        reference=Side(f"{SIZES[0]} cases", tuple(runs[SIZES[0]])),
        ours=Side(f"{size} cases", tuple(runs[size])),
        goal=GOAL,
        same="the same files, each as often as the others",
        data=data,
    )


# ---- The proof of the memory --------------------------------------------------------------------


def prove(*, num_cases: int, num_epochs: int, num_workers: int, form: FormName) -> bool:
    """Cache, go through the epochs, show the memory, and return whether it stayed flat."""
    process = psutil.Process()
    before = process.memory_info().rss
    cases, data = many_cases(num_cases)
    preparation = Preparation(SETTINGS, mask_nonfinite=False)
    preparation.measure(cases[0])
    dataset = cached(cases, preparation, form)
    after = process.memory_info().rss
    print(
        f"{num_cases} cases ({data}), {FORMS[form]}: {dataset.num_bytes / 1e9:.2f} GB kept, "
        f"resident memory {before / 1e9:.2f} -> {after / 1e9:.2f} GB",
        flush=True,
    )
    resident: list[int] = []
    of_workers: list[int] = []
    for epoch in range(1, num_epochs + 1):
        of_workers.append(max(_walk(dataset, epoch, num_workers), default=0))
        resident.append(process.memory_info().rss)
        print(
            f"epoch {epoch}: {resident[-1] / 1e9:.3f} GB resident, a worker's own at most "
            f"{of_workers[-1] / 1e9:.3f} GB",
            flush=True,
        )
    return all(
        max(series[SETTLED_EPOCHS:], default=0) <= max(series[:SETTLED_EPOCHS]) + slack
        for series, slack in ((resident, SLACK_BYTES), (of_workers, WORKER_SLACK_BYTES))
    )


def _walk(dataset: CachedCases, epoch: int, num_workers: int) -> Iterator[int]:
    """Go through an epoch; yield what the workers have for themselves now and then, in bytes."""
    loader, sampler = training_loader(
        dataset,
        augmentation=build_augmentation(**NO_AUGMENTATION),
        seed=SEED,
        batch_size=1,
        num_workers=num_workers,
    )
    sampler.start(epoch=epoch)
    for number, _ in enumerate(loader):
        if num_workers and number % LOOK_EVERY == LOOK_EVERY - 1:
            for child in psutil.Process().children():
                yield child.memory_full_info().uss


def main(argv: Sequence[str] | None = None) -> int:
    """Run the proof; 1 if the memory grew."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--form", choices=list(FORMS), default="compact")
    arguments = parser.parse_args(argv)
    is_flat = prove(
        num_cases=arguments.cases,
        num_epochs=arguments.epochs,
        num_workers=arguments.workers,
        form=arguments.form,
    )
    print("flat" if is_flat else "it grew")
    return 0 if is_flat else 1


if __name__ == "__main__":
    sys.exit(main())
