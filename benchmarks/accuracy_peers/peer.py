"""What the peers have in common: calibrate, train and predict each fold, each in a process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.accuracy_peers.budget import Plan
from benchmarks.accuracy_peers.costs import Costs, mean_usage
from benchmarks.accuracy_peers.measured import Usage, run_measured
from benchmarks.accuracy_peers.task import Task
from pipeline.data.datalist import Case
from pipeline.data.files import replace_file
from pipeline.data.json_files import json_bytes, read_json

Result = dict[str, Any]
Job = Mapping[str, Any]


class Peer(ABC):
    """One peer in one comparison; `folder` is all its own, and gets its masks in `masks`."""

    name: str

    def __init__(self, task: Task) -> None:
        self.task = task
        self.folder = task.folder / self.name

    def run(self) -> Costs:
        """Do all that is not finished."""
        details = self.prepare()
        calibration = self.stage("calibration", self.calibrate)
        plan = Plan(calibration["epochs"], calibration["steps_per_epoch"])
        trained, predicted = [], []
        for fold in self.task.folds:
            trained.append(self.stage(f"fold_{fold}_train", partial(self.train, fold, plan)))
            predicted.append(self.stage(f"fold_{fold}_predict", partial(self.predict, fold)))
        seconds = sum(each["usage"]["wall_s"] for each in predicted)
        return Costs(
            epochs=plan.epochs,
            steps=round(sum(each["steps"] for each in trained) / len(trained)),
            step_s=calibration["step_s"],
            training=mean_usage(trained),
            inference_s=seconds / len(self.task.cases()),
            inference_bytes=max(each["usage"]["peak_bytes"] for each in predicted),
            details={**details, "parameters": trained[0]["parameters"]},
        )

    def is_finished(self) -> bool:
        """Tell whether all masks are there."""
        return all(
            self.task.is_finished(f"{self.name}/fold_{fold}_predict") for fold in self.task.folds
        )

    def prepare(self) -> Result:
        """Do what comes before all training; return what is to be known of it."""
        return {}

    @abstractmethod
    def calibrate(self) -> Result:
        """Time a few steps: `step_s`, and the `epochs` and `steps_per_epoch` of each fold."""

    @abstractmethod
    def train(self, fold: int, plan: Plan) -> Result:
        """Train on all folds but `fold`: `usage`, `steps`, `parameters`."""

    @abstractmethod
    def predict(self, fold: int) -> Result:
        """Write the masks of the cases of `fold`: `usage`."""

    def stage(self, name: str, work: Any) -> Result:
        """Return the result of a stage, which is run only if it is not finished."""
        return self.task.stage(f"{self.name}/{name}", work)

    def cases_of(self, fold: int) -> list[Case]:
        """Return the cases of a fold."""
        return [case for case in self.task.cases() if case.fold == fold]

    def path(self, *names: str) -> Path:
        """Return a path in the peer's folder; the folders above it are there."""
        path = self.folder.joinpath(*names)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def run_script(
        self, command: Sequence[str], job: Job, *, name: str, environment: Mapping[str, str]
    ) -> Result:
        """Run `command` with the path of `job`; return the result that it writes, and its usage."""
        result = self.path("jobs", f"{name}_result.json")
        path = self.path("jobs", f"{name}.json")
        replace_file(path, json_bytes({**job, "result": str(result)}))
        usages = run_measured(
            [*command, str(path)],
            what=f"{self.name}, {name}",
            log=self.task.log(f"{self.name}_{name}"),
            environment=environment,
        )
        return {**read_json(result), "usage": usages.get("all", Usage()).to_dict()}
