"""What every side is given alike: cases, folds, grid, minutes, threads, device."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.datalist import Case, DataList
from pipeline.data.files import replace_file
from pipeline.data.json_files import json_bytes, read_json

STAGES, LOGS = "stages", "logs"


@dataclass(frozen=True)
class Task:
    """The comparison that is asked for.

    `folds` are at least two of the list's; `minutes` the time for training one fold; `spacing_mm`
    the grid that all sides work on; `threads` for the arithmetic of each side.
    """

    datalist: DataList
    folds: tuple[int, ...]
    folder: Path
    minutes: float
    spacing_mm: float
    threads: int
    device: str
    allow_outside_root: bool

    @property
    def budget_s(self) -> float:
        """The seconds for training one fold."""
        return 60 * self.minutes

    @property
    def list_words(self) -> list[str]:
        """The data list, as the verbs take it."""
        allowed = ["--allow-outside-root"] if self.allow_outside_root else []
        return [str(self.datalist.path.resolve()), *allowed]

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a side's processes: this one's, with its number of threads."""
        number = str(self.threads)
        threads = {"OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number}
        return {**os.environ, **threads, **more}

    def cases(self) -> tuple[Case, ...]:
        """Return the cases that are scored, in the list's order."""
        return tuple(case for case in self.datalist.training if case.fold in self.folds)

    def log(self, stage: str) -> Path:
        """Return where the output of a stage goes."""
        path = self.folder / LOGS / f"{stage}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def stage_path(self, name: str) -> Path:
        """Return where the result of a stage is kept."""
        path = self.folder / STAGES / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of `work`, which is called only where it was never finished before."""
        path = self.stage_path(name)
        if not self.is_finished(name):
            print(f"{name} ...", flush=True)
            replace_file(path, json_bytes(work()))
        return dict(read_json(path))

    def is_finished(self, name: str) -> bool:
        """Tell whether the result of a stage is there."""
        return self.stage_path(name).exists()

    def note(self, name: str, document: dict[str, Any]) -> dict[str, Any]:
        """Return what is noted under `name`; that is `document` where nothing was before."""
        path = self.stage_path(name)
        if not self.is_finished(name):
            replace_file(path, json_bytes(document))
        return dict(read_json(path))
