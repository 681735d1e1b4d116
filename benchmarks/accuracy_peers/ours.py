"""This project's side: `pipeline.crossval` with as many epochs as the minutes allow."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.accuracy_peers.budget import LEAST_EPOCHS, timed_epochs, whole_epochs
from benchmarks.accuracy_peers.claims import claimed
from benchmarks.accuracy_peers.costs import Costs
from benchmarks.accuracy_peers.machines import distinct, machines_of
from benchmarks.accuracy_peers.measured import Usage, Usages, run_measured
from benchmarks.accuracy_peers.methods import Method
from benchmarks.accuracy_peers.task import Task
from pipeline.data.files import replace_file
from pipeline.data.json_files import json_bytes, read_json
from pipeline.training.stored import stored_state
from pipeline.training.tensorboard import FOLDER_NAME

TRAIN, INFER = "pipeline.train", "pipeline.infer"
LOSS = "training/loss"  # of each iteration, with its time, in TensorBoard's files


class Ours:
    """One method of ours in one comparison."""

    def __init__(self, task: Task, method: Method) -> None:
        self.task = task
        self.method = method
        self.name = method.name
        self.folder = task.folder / method.name

    def run(self) -> Costs:
        """Do all that is not finished; the masks are then in `<folder>/masks`."""
        calibration = self.task.stage(f"{self.name}/calibration", self._calibrate)
        found = self.task.stage(
            f"{self.name}/crossval", lambda: self._crossval(calibration["epochs"])
        )
        training, inference = Usage(**found["training"]), Usage(**found["inference"])
        num_folds = len(self.task.folds)
        return Costs(
            epochs=calibration["epochs"],
            steps=found["steps"],
            step_s=calibration["epoch_s"] / calibration["steps_per_epoch"],
            training=Usage(
                training.wall_s / num_folds, training.cpu_s / num_folds, training.peak_bytes
            ),
            inference_s=inference.wall_s / len(self.task.cases()),
            inference_bytes=inference.peak_bytes,
            details={
                "preset": self.method.preset,
                "assignments": list(self.method.assignments),
                "timed_epochs": calibration.get("timed_epochs", LEAST_EPOCHS),
                "starts": found["starts"],
            },
        )

    def is_finished(self) -> bool:
        """Tell whether all masks are there."""
        return self.task.is_finished(f"{self.name}/crossval")

    def _settings(self, epochs: int) -> list[str]:
        """Return preset and settings as `train` and `crossval` take them; a method's own come last.

        All sides work on the same grid, unless a method says otherwise.
        """
        assignments = (
            f"preprocessing.spacing_mm={self.task.spacing_mm}",
            *self.method.assignments,
            f"training.max_epochs={epochs}",
        )
        words = ["--preset", str(self.method.preset), "--device", self.task.device]
        return [*words, *(f"--set={assignment}" for assignment in assignments)]

    def _calibrate(self) -> dict[str, Any]:
        """Return how long an epoch takes, and how many fill the budget.

        Methods that train the same network on one machine share what was found first: by the noise
        of another calibration alone, their networks would differ.
        """
        for other in claimed(self.task):
            stage = f"{other.name}/calibration"
            if self._trains_like(other) and self.task.is_finished(stage):
                return dict(read_json(self.task.stage_path(stage)))
        epoch_s, steps = self._timed(LEAST_EPOCHS)
        num_epochs = timed_epochs(self.task.budget_s, epoch_s=epoch_s)
        if num_epochs > LEAST_EPOCHS:
            epoch_s, steps = self._timed(num_epochs)
        plan = whole_epochs(self.task.budget_s, epoch_s=epoch_s, steps_per_epoch=steps)
        return {"epoch_s": epoch_s, "timed_epochs": num_epochs, **asdict(plan)}

    def _trains_like(self, other: Method) -> bool:
        machines = [
            each for name in (self.name, other.name) for each in machines_of(self.task, name)
        ]
        return self.method.trains_like(other) and len(distinct(machines)) <= 1

    def _timed(self, num_epochs: int) -> tuple[float, int]:
        """Train some epochs; return the seconds and the optimiser's steps of one.

        The first one, and what comes before it, is left out of the seconds.
        """
        scratch = self.task.stage_path(f"{self.name}/calibration").with_name("scratch")
        shutil.rmtree(scratch, ignore_errors=True)
        fold = str(self.task.folds[0])
        command = [sys.executable, "-m", TRAIN, *self.task.list_words]
        command += [*self._settings(num_epochs), "--set=validation.every_epochs=null"]
        self._measured([*command, "--fold", fold, "--output-dir", str(scratch)], name="calibration")
        epoch_s = seconds_of_an_epoch(scratch, num_epochs=num_epochs)
        steps = self._steps(scratch) // num_epochs
        shutil.rmtree(scratch)
        return epoch_s, steps

    def _crossval(self, epochs: int) -> dict[str, Any]:
        """Cross-validate, or go on with it; what earlier starts took is counted too."""
        command = [sys.executable, "-m", "pipeline.crossval", *self.task.list_words]
        command += [*self._settings(epochs), "--folds", *map(str, self.task.folds)]
        command += ["-o", str(self.folder), "--no-report", "--no-probabilities"]
        starts = self.task.stage_path(f"{self.name}/starts")
        before = list(read_json(starts)) if starts.exists() else []

        def save(usages: Usages) -> None:
            latest = {label: usage.to_dict() for label, usage in usages.items()}
            replace_file(starts, json_bytes([*before, latest]))

        self._measured(command, name="crossval", save=save)
        every = list(read_json(starts))
        folds = [self.folder / f"fold_{fold}" for fold in self.task.folds]
        return {
            "training": _sum(every, TRAIN).to_dict(),
            "inference": _sum(every, INFER).to_dict(),
            "steps": round(sum(map(self._steps, folds)) / len(folds)),
            "starts": len(every),
        }

    def _measured(self, command: Sequence[str], *, name: str, save: Any = lambda _: None) -> None:
        run_measured(
            command,
            what=f"{self.name}, {name}",
            log=self.task.log(f"{self.name}_{name}"),
            environment=self.task.environment(),
            label_of=label_of,
            save=save,
        )

    def _steps(self, folder: Path) -> int:
        """Return the optimiser's steps of a finished run."""
        state = stored_state(folder, resume=True)
        assert state is not None, folder
        # The schedule is moved once a step, however many batches make one.
        return int(state.content["progress"]["scheduler"]["last_epoch"])


def seconds_of_an_epoch(folder: Path, *, num_epochs: int) -> float:
    """Return the mean seconds of an epoch of a finished run, without the first one.

    From the end of the last iteration of one epoch to that of the next: checkpoints are included.
    """
    events = EventAccumulator(str(folder / FOLDER_NAME), size_guidance={"scalars": 0})
    times = [event.wall_time for event in events.Reload().Scalars(LOSS)]
    length = len(times) // num_epochs
    return float(times[-1] - times[length - 1]) / (num_epochs - 1)


def label_of(words: Sequence[str]) -> str | None:
    """Return which of the two verbs a command line runs, if one of them."""
    for option, module in pairwise(words):
        if option == "-m" and module in (TRAIN, INFER):
            return module
    return None


def _sum(starts: Sequence[dict[str, Any]], label: str) -> Usage:
    total = Usage()
    for start in starts:
        if label in start:
            total = total.plus(Usage(**start[label]))
    return total
