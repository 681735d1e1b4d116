"""Writes cohorts of phantoms: the project's embedded data for demos, tests and first trials."""

from __future__ import annotations

import multiprocessing
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.files import replace_file
from pipeline.data.json_files import json_bytes, read_json
from pipeline.data.nifti import write_volume
from pipeline.data.phantom_case import (
    MODALITIES,
    Phantom,
    average_frame,
    check_settings,
    make_phantom,
)
from pipeline.errors import ResourceError, SettingsError

__all__ = ["Cohort", "Needs", "Phantom", "make_phantom", "write_cohort"]

MANIFEST = "cohort.json"
# Raise it with every change of the generator that changes its output.
GENERATOR = 1
MAX_CASES = 100_000
FILES = (*MODALITIES, "seg")
# Measured on one core at 1, 2 and 6 mm: time and memory go with the voxels on which the head is
# made, disk with those of them that are kept.
SECONDS_PER_VOXEL = 2.2e-6
MEMORY_PER_VOXEL = 250
DISK_PER_VOXEL = 2.5


@dataclass(frozen=True)
class Cohort:
    """Where a cohort lies and how its cases are made. `num_cases` may grow later."""

    folder: Path
    num_cases: int
    shape: tuple[int, int, int]
    spacing_mm: float
    seed: int

    def check(self) -> None:
        """Raise SettingsError for a setting out of range, or if the folder holds other phantoms."""
        if not 1 <= self.num_cases <= MAX_CASES:
            raise SettingsError(f"{self.num_cases} cases: expected 1 to {MAX_CASES}")
        check_settings(shape=self.shape, spacing_mm=self.spacing_mm, seed=self.seed)
        manifest = self.folder / MANIFEST
        if manifest.exists():
            found = read_json(manifest)
            if found != self.settings():
                raise SettingsError(
                    f"{manifest}: the folder holds a cohort of other settings: expected "
                    f"{self.settings()}, found {found}. Choose another folder, or its settings."
                )
        elif any(self.folder.glob("Phantom_*")):
            raise SettingsError(
                f"{self.folder}: holds phantoms but no {MANIFEST} that says how they were made. "
                "Choose another folder."
            )

    def settings(self) -> dict[str, Any]:
        """Return what decides about the content of a case, as JSON values."""
        return {
            "generator": GENERATOR,
            "seed": self.seed,
            "shape": list(self.shape),
            "spacing_mm": float(self.spacing_mm),
        }

    def case_folder(self, index: int) -> Path:
        """Return the folder of case `index`."""
        return self.folder / f"Phantom_{index:05d}"

    def missing(self) -> list[int]:
        """Return the cases that are not complete yet."""
        return [index for index in range(self.num_cases) if not self._is_complete(index)]

    def _is_complete(self, index: int) -> bool:
        folder = self.case_folder(index)
        return all((folder / f"{folder.name}_{name}.nii.gz").is_file() for name in FILES)


@dataclass(frozen=True)
class Needs:
    """What making the missing cases of a cohort takes, roughly."""

    num_cases: int
    num_processes: int
    disk_bytes: int
    seconds: float
    memory_bytes: int  # of each process

    @classmethod
    def of(cls, cohort: Cohort, *, num_workers: int) -> Needs:
        """Estimate for what is missing of `cohort`.

        Raises SettingsError as `Cohort.check` does, and for less than one worker.
        """
        cohort.check()
        if num_workers < 1:
            raise SettingsError(f"{num_workers} workers: expected at least 1")
        num_cases = len(cohort.missing())
        num_processes = max(1, min(num_workers, num_cases))
        frame = average_frame(cohort.shape, cohort.spacing_mm)
        num_voxels = int(np.prod(frame.fine.shape))
        kept = num_voxels / frame.factor**3
        return cls(
            num_cases=num_cases,
            num_processes=num_processes,
            disk_bytes=round(num_cases * kept * DISK_PER_VOXEL),
            seconds=num_cases * num_voxels * SECONDS_PER_VOXEL / num_processes,
            memory_bytes=150 * 2**20 + num_voxels * MEMORY_PER_VOXEL,
        )


def write_cohort(
    folder: Path,
    *,
    num_cases: int,
    shape: tuple[int, int, int],
    spacing_mm: float,
    seed: int,
    num_workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write cases 0 to `num_cases` - 1 below `folder` and return their folders, in order.

    Each case is `<case>/<case>_{flair,t1,t1ce,t2,seg}.nii.gz` as in BraTS, and appears complete or
    not at all. Complete ones are left alone, so that a run that was stopped can be repeated, and a
    cohort can grow. `progress(done, all)` is called at the start and after each case. With
    `num_workers` above 1 the cases are made in that many new processes.

    Raises SettingsError for a setting out of range or a folder that holds a cohort of other
    settings, ResourceError where the folder cannot be written to or has not enough space.
    """
    cohort = Cohort(Path(folder), num_cases, shape, spacing_mm, seed)
    needs = Needs.of(cohort, num_workers=num_workers)
    _claim(cohort)
    _require_space(cohort, needs)
    missing = cohort.missing()
    report = progress or _silent
    report(num_cases - len(missing), num_cases)
    for number, _ in enumerate(_make_all(cohort, missing, needs.num_processes), start=1):
        report(num_cases - len(missing) + number, num_cases)
    return [cohort.case_folder(index) for index in range(num_cases)]


def _silent(done: int, total: int) -> None:
    """Report nothing."""


def _claim(cohort: Cohort) -> None:
    """Make the folder, and note the settings in it."""
    try:
        cohort.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _resource_error(cohort.folder, error) from error
    manifest = cohort.folder / MANIFEST
    if not manifest.exists():
        replace_file(manifest, json_bytes(cohort.settings()))


def _require_space(cohort: Cohort, needs: Needs) -> None:
    free = shutil.disk_usage(cohort.folder).free
    if free < needs.disk_bytes:
        raise ResourceError(
            f"{cohort.folder}: about {needs.disk_bytes} bytes needed, {free} bytes free. Make "
            "fewer or coarser cases, free some space, or choose another folder."
        )


def _make_all(cohort: Cohort, indices: list[int], num_processes: int) -> Iterator[int]:
    """Make the cases and yield the number of each as it is done."""
    if num_processes == 1:
        for index in indices:
            yield _write_case(cohort, index)
        return
    # Forking is unsafe once the caller has threads, as every user of torch has.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        futures = [pool.submit(_write_case, cohort, index) for index in indices]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _write_case(cohort: Cohort, index: int) -> int:
    """Make case `index` and put it in its place."""
    phantom = make_phantom(
        shape=cohort.shape, spacing_mm=cohort.spacing_mm, seed=cohort.seed, index=index
    )
    with _replaced_folder(cohort.case_folder(index)) as folder:
        stem = cohort.case_folder(index).name
        for name, image in phantom.images.items():
            path = folder / f"{stem}_{name}.nii.gz"
            write_volume(path, image, affine=phantom.affine, dtype=np.int16)
        path = folder / f"{stem}_seg.nii.gz"
        write_volume(path, phantom.label, affine=phantom.affine, dtype=np.uint8)
    return index


@contextmanager
def _replaced_folder(target: Path) -> Iterator[Path]:
    """Give a new folder beside `target`, to be filled, that then takes its place in one step."""
    for left_over in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(left_over)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        try:
            yield temporary
            if target.exists():  # incomplete, or it would not be made again
                shutil.rmtree(target)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise _resource_error(target, error) from error


def _resource_error(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"{path}: cannot be written ({error.strerror}). Choose another place, or free space."
    )
