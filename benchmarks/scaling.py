"""C11: what a case costs does not depend on how many there are; and memory stays flat.

python -m benchmarks.scaling [--cases N] [--epochs N] [--workers N] [--form NAME] [--output FILE]

As a command, this is the proof of the memory: N cases of full size are cached, the loader goes
through so many epochs, and the resident memory of this process, and what each worker has for
itself, are shown, kept in a file, and held against each other. A few cases of full size stand for
many: they come again under other names, and are read, preprocessed and kept once for each name.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import psutil

from benchmarks.caching import (
    FORMS,
    NO_AUGMENTATION,
    NUM_CASES,
    SETTINGS,
    cached,
    listed,
    our_loader,
)
from benchmarks.data import benchmark_cases
from benchmarks.machine import describe_machine
from benchmarks.measure import Comparison, Run, Side, measure
from benchmarks.plot import draw_costs
from benchmarks.tables import RESULTS, write_table
from benchmarks.works import light_model, segment, train_epoch
from pipeline.data.caching import CachedCases
from pipeline.data.datalist import Case
from pipeline.data.files import replace_file
from pipeline.data.forms import FormName, Preparation
from pipeline.model.heap import give_back, settle_memory
from pipeline.model.trained import TrainedModel

Costs: TypeAlias = dict[str, dict[int, list[Run]]]

SIZES = (8, 16, 32, 64)
GOAL = 1.05
FORM: FormName = "ready"
NOTES = (
    "a U-Net of four levels, full-size volumes, but 2 filters and kernels of one voxel: next to "
    "nothing, so that it does not hide what may grow",
    "files are read from the system's memory: a few cases stand for many",
)
# What the allocator may keep for itself after the first epochs, which fill its pools.
SLACK_BYTES = 50e6
# A worker is looked at at any moment, with a batch more or less in its hands.
WORKER_SLACK_BYTES = 150e6
SETTLED_EPOCHS = 2
LOOK_EVERY = 10  # batches


def run(*, repeats: int) -> list[Comparison]:
    """Measure what a case costs at 16, 32 and 64 cases against 8, and draw it."""
    costs, data = measured_costs(repeats)
    draw_costs(costs, RESULTS / "scaling.svg", title="What a case costs, by how many there are")
    return [
        Comparison(
            "C11",
            f"{what}, per case",
            reference=Side(f"{SIZES[0]} cases", tuple(runs[SIZES[0]])),
            ours=Side(f"{size} cases", tuple(runs[size])),
            goal=GOAL,
            same="the same files, each as often as the others",
            data=data,
            notes=NOTES,
        )
        for what, runs in costs.items()
        for size in SIZES[1:]
    ]


def measured_costs(repeats: int) -> tuple[Costs, str]:
    """Return the runs of each work by the number of cases, per case; and in words the cases."""
    cases, data = many_cases(max(SIZES))
    preparation = Preparation(SETTINGS, mask_nonfinite=False)
    preparation.measure(cases[0])
    model = light_model()
    costs_of(cases[: SIZES[0]], preparation, model)  # warms up
    costs: Costs = {}
    for number in range(repeats):
        for size in SIZES if number % 2 == 0 else reversed(SIZES):
            for what, cost in costs_of(cases[:size], preparation, model).items():
                costs.setdefault(what, {each: [] for each in SIZES})[size].append(cost)
    return costs, data


def many_cases(num_cases: int) -> tuple[list[Case], str]:
    """Return `num_cases` cases of full size, and in words what they are."""
    found, data = benchmark_cases(NUM_CASES)
    originals = [listed(case) for case in found]
    cases = [
        replace(originals[number % len(originals)], id=f"case_{number:03d}")
        for number in range(num_cases)
    ]
    return cases, f"{data}, each again under other names"


def costs_of(
    cases: Sequence[Case], preparation: Preparation, model: TrainedModel
) -> dict[str, Run]:
    """Cache `cases`, train an epoch on them, and segment them; return how it went, per case."""
    made: list[CachedCases] = []
    costs = {
        "caching": _settled(lambda: made.append(cached(cases, preparation, FORM))),
        "a training step with its data": _settled(lambda: train_epoch(made[0], model)),
    }
    made.clear()
    costs["segmentation, files to mask"] = _settled(lambda: segment(cases, model))
    return {
        what: replace(
            whole,
            seconds=whole.seconds / len(cases),
            cpu_seconds=whole.cpu_seconds / len(cases),
        )
        for what, whole in costs.items()
    }


def _settled(work: Callable[[], object]) -> Run:
    """Measure `work` with memory as a command begins with it, whatever ran before."""
    settle_memory()
    give_back()
    return measure(work)


# ---- The proof of the memory --------------------------------------------------------------------


def prove(*, num_cases: int, num_epochs: int, num_workers: int, form: FormName) -> dict[str, Any]:
    """Cache, go through the epochs, show the memory, and return it; `is_flat` is the verdict."""
    before = resident_bytes()
    cases, data = many_cases(num_cases)
    preparation = Preparation(SETTINGS, mask_nonfinite=False)
    preparation.measure(cases[0])
    start = time.perf_counter()
    dataset = cached(cases, preparation, form)
    caching_s = time.perf_counter() - start
    after = resident_bytes()
    print(
        f"{num_cases} cases ({data}), {FORMS[form]}: {dataset.num_bytes / 1e9:.2f} GB kept, "
        f"resident memory {before / 1e9:.2f} -> {after / 1e9:.2f} GB, {caching_s:.0f} s",
        flush=True,
    )
    resident: list[int] = []
    of_workers: list[int] = []
    epoch_s: list[float] = []
    for epoch in range(1, num_epochs + 1):
        start = time.perf_counter()
        of_workers.append(max(_walk(dataset, epoch, num_workers), default=0))
        epoch_s.append(time.perf_counter() - start)
        resident.append(resident_bytes())
        print(
            f"epoch {epoch}: {resident[-1] / 1e9:.3f} GB resident, a worker's own at most "
            f"{of_workers[-1] / 1e9:.3f} GB, {epoch_s[-1]:.1f} s",
            flush=True,
        )
    return {
        "data": data,
        "num_cases": num_cases,
        "num_workers": num_workers,
        "form": FORMS[form],
        "kept_bytes": dataset.num_bytes,
        "bytes_before": before,
        "bytes_cached": after,
        "bytes_of_epochs": resident,
        "bytes_of_workers": of_workers,
        "caching_s": caching_s,
        "epoch_s": epoch_s,
        "is_flat": stays_flat(resident, slack=SLACK_BYTES)
        and stays_flat(of_workers, slack=WORKER_SLACK_BYTES),
    }


def stays_flat(series: Sequence[int], *, slack: float) -> bool:
    """Whether no later epoch takes more than the first ones did, but for `slack` bytes."""
    return max(series[SETTLED_EPOCHS:], default=0) <= max(series[:SETTLED_EPOCHS]) + slack


def resident_bytes() -> int:
    """Return what this process has in memory."""
    return int(psutil.Process().memory_info().rss)


def _walk(dataset: CachedCases, epoch: int, num_workers: int) -> Iterator[int]:
    """Go through an epoch; yield what the workers have for themselves now and then, in bytes."""
    loader = our_loader(dataset, epoch=epoch, num_workers=num_workers, **NO_AUGMENTATION)
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
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/memory_FORM.json")
    arguments = parser.parse_args(argv)
    if arguments.epochs <= SETTLED_EPOCHS:
        parser.error(f"--epochs: expected more than {SETTLED_EPOCHS}; found {arguments.epochs}")
    settle_memory()
    proof = prove(
        num_cases=arguments.cases,
        num_epochs=arguments.epochs,
        num_workers=arguments.workers,
        form=arguments.form,
    )
    print("flat" if proof["is_flat"] else "it grew")
    content = {"machine": describe_machine(), "proof": proof}
    output = arguments.output or RESULTS / f"memory_{arguments.form}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, json.dumps(content, indent=1).encode())
    if output.resolve().parent == RESULTS:
        write_table()
    return 0 if proof["is_flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
