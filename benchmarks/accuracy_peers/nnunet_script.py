"""PYTHON nnunet_script.py (versions | prepare | train | predict) JOB.json

Executed by the Python that nnU-Net v2 is installed for: it imports nothing of this project. The job
is a JSON object; the folders come from nnU-Net's own environment variables. What a stage has to say
it writes, as JSON, to the job's `result`.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import (  # type: ignore[import-not-found]
    extract_fingerprints,
    plan_experiments,
    preprocess,
)
from nnunetv2.inference.predict_from_raw_data import (  # type: ignore[import-not-found]
    nnUNetPredictor,
)
from nnunetv2.paths import nnUNet_preprocessed  # type: ignore[import-not-found]
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import (  # type: ignore[import-not-found]
    nnUNetTrainer,
)

CONFIGURATION = "3d_fullres"
PLANS = "nnUNetPlans"
CHECKPOINT = "checkpoint_final.pth"


class BudgetTrainer(nnUNetTrainer):
    """nnU-Net's default trainer, which also notes when its steps and epochs end."""

    clock: float

    def on_train_start(self) -> None:
        """Prepare as nnU-Net does."""
        super().on_train_start()
        self.step_seconds: list[list[float]] = []
        self.pause_seconds: list[float] = []

    def on_train_epoch_start(self) -> None:
        """Start the clock of the first step."""
        super().on_train_epoch_start()
        self.step_seconds.append([])
        self.clock = time.perf_counter()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take nnU-Net's step; its seconds include waiting for the batch."""
        result: dict[str, Any] = super().train_step(batch)
        now = time.perf_counter()
        self.step_seconds[-1].append(now - self.clock)
        self.clock = now
        return result

    def on_epoch_end(self) -> None:
        """Note what lies between two epochs: validation, curves, checkpoints."""
        super().on_epoch_end()
        self.pause_seconds.append(time.perf_counter() - self.clock)


def versions(_job: dict[str, Any]) -> dict[str, Any]:
    """Return the versions of this Python."""
    return {name: version(name) for name in ("nnunetv2", "torch", "numpy")}


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Take the fingerprint, plan on the wanted grid, and preprocess; return the plan."""
    number, processes = job["number"], job["processes"]
    extract_fingerprints([number], num_processes=processes, check_dataset_integrity=True)
    spacing = [float(job["spacing_mm"])] * 3
    plan_experiments([number], overwrite_target_spacing=spacing)
    preprocess([number], PLANS, configurations=(CONFIGURATION,), num_processes=[processes])
    plan = _read(_folder(job) / f"{PLANS}.json")["configurations"][CONFIGURATION]
    network = plan["architecture"]["arch_kwargs"]
    return {
        "patch_size": plan["patch_size"],
        "batch_size": plan["batch_size"],
        "spacing_mm": plan["spacing"],
        "median_image_size": plan["median_image_size_in_voxels"],
        "network": plan["architecture"]["network_class_name"].rsplit(".", 1)[-1],
        "features_per_stage": network["features_per_stage"],
    }


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train one fold from scratch for the job's epochs; return the seconds of its steps."""
    trainer = _trainer(job)
    trainer.num_epochs = job["epochs"]
    trainer.num_iterations_per_epoch = job["steps_per_epoch"]
    # It chooses checkpoint_best, which is not used: one batch is the least.
    trainer.num_val_iterations_per_epoch = 1
    torch.backends.cudnn.benchmark = True
    trainer.run_training()
    return {
        "steps": sum(map(len, trainer.step_seconds)),
        "step_seconds": trainer.step_seconds,
        "pause_seconds": trainer.pause_seconds,
        "parameters": sum(each.numel() for each in trainer.network.parameters()),
    }


def predict(job: dict[str, Any]) -> dict[str, Any]:
    """Predict the job's cases with the weights after the last epoch, mirrored as by default."""
    trainer = _trainer(job)
    trainer.load_checkpoint(str(Path(trainer.output_folder) / CHECKPOINT))
    trainer.set_deep_supervision_enabled(False)
    network: Any = getattr(trainer.network, "_orig_mod", trainer.network)
    predictor = nnUNetPredictor(device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    predictor.predict_from_files(
        job["images"],
        job["outputs"],
        num_processes_preprocessing=1,
        num_processes_segmentation_export=1,
    )
    return {"cases": len(job["outputs"])}


def _trainer(job: dict[str, Any]) -> BudgetTrainer:
    folder = _folder(job)
    if job["device"] == "cuda":
        torch.set_num_threads(1)  # as nnUNetv2_train does
    return BudgetTrainer(
        plans={**_read(folder / f"{PLANS}.json"), "continue_training": False},
        configuration=CONFIGURATION,
        fold=job["fold"],
        dataset_json=_read(folder / "dataset.json"),
        device=torch.device(job["device"]),
    )


def _folder(job: dict[str, Any]) -> Path:
    return Path(str(nnUNet_preprocessed)) / str(job["dataset"])


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


STAGES = {"versions": versions, "prepare": prepare, "train": train, "predict": predict}


def main() -> None:
    """Run one stage."""
    stage, path = sys.argv[1:]
    job = _read(Path(path))
    Path(job["result"]).write_text(json.dumps(STAGES[stage](job)))


if __name__ == "__main__":
    main()
