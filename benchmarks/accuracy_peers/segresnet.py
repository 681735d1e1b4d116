"""MONAI's zoo recipe for BraTS, in processes of this Python (`segresnet_script.py`)."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.accuracy_peers.budget import Plan, mean_after, whole_epochs
from benchmarks.accuracy_peers.peer import Job, Peer, Result

NAME = "segresnet"
MODULE = "benchmarks.accuracy_peers.segresnet_script"
# Steps of the calibration, of which the first ones are left out.
WARM_UP = {"cpu": 2, "cuda": 20}
TIMED = {"cpu": 4, "cuda": 40}


class ZooSegResNet(Peer):
    """The zoo's recipe in one comparison."""

    name = NAME

    def calibrate(self) -> Result:
        """Train a few steps; the first ones are left out."""
        warm_up, device = WARM_UP[self.task.device], self.task.device
        most = warm_up + TIMED[device]
        fold = self.task.folds[0]
        num_cases = len(self.task.datalist.split(fold)[0])
        job = {
            "fold": fold,
            "epochs": -(-most // min(most, num_cases)),
            "max_cases": most,
            "weights": str(self.path("calibration.pt")),
        }
        found = self._run("train", job, name="calibration")
        step_s = mean_after(found["step_seconds"], left_out=warm_up)
        epoch_s = step_s * num_cases
        plan = whole_epochs(self.task.budget_s, epoch_s=epoch_s, steps_per_epoch=num_cases)
        return {"step_s": step_s, **asdict(plan), "found": found}

    def train(self, fold: int, plan: Plan) -> Result:
        """Train as `Peer.train` says."""
        job = {
            "fold": fold,
            "epochs": plan.epochs,
            "max_cases": None,
            "weights": str(self._weights(fold)),
        }
        return self._run("train", job, name=f"fold_{fold}_train")

    def predict(self, fold: int) -> Result:
        """Predict as `Peer.predict` says."""
        masks = self.path("masks")
        masks.mkdir(exist_ok=True)
        job = {
            "cases": [case.id for case in self.cases_of(fold)],
            "weights": str(self._weights(fold)),
            "masks": str(masks),
        }
        return self._run("predict", job, name=f"fold_{fold}_predict")

    def _run(self, stage: str, job: Job, *, name: str) -> Result:
        common = {
            "list": str(self.task.datalist.path.resolve()),
            "allow_outside_root": self.task.allow_outside_root,
            "spacing_mm": self.task.spacing_mm,
            "threads": self.task.threads,
            "device": self.task.device,
        }
        command = [sys.executable, "-m", MODULE, stage]
        environment = self.task.environment()
        return self.run_script(command, {**common, **job}, name=name, environment=environment)

    def _weights(self, fold: int) -> Path:
        return self.path(f"fold_{fold}.pt")
