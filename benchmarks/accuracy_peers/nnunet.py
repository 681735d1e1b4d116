"""nnU-Net v2 with its own plan, preprocessing, training and prediction, on our cases and folds."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy_peers.budget import Plan, free_epochs, mean_after
from benchmarks.accuracy_peers.peer import Job, Peer, Result
from benchmarks.accuracy_peers.regions import nested_regions
from benchmarks.accuracy_peers.task import Task
from pipeline.data.datalist import Case, DataList
from pipeline.data.files import replace_file
from pipeline.data.images import read_image
from pipeline.data.json_files import json_bytes
from pipeline.data.loading import class_indices
from pipeline.data.nifti import write_volume
from pipeline.data.prediction_files import mask_path
from pipeline.errors import DataError, Problem, SettingsError

NAME = "nnunet"
VERSION = "2.8.1"
SCRIPT = Path(__file__).with_name("nnunet_script.py")
NUMBER, DATASET = 1, "Dataset001_Cases"
ENDING = ".nii.gz"
# Epochs of the calibration, of which the first is left out, and their steps.
CALIBRATION_EPOCHS = 3
CALIBRATION_STEPS = {"cpu": 2, "cuda": 20}
GRID_TOLERANCE_MM = 1e-3


class NnUNet(Peer):
    """nnU-Net in one comparison, in its own Python and folders.

    `python` may be None where all is finished.
    """

    name = NAME

    def __init__(self, task: Task, *, python: Path | None) -> None:
        super().__init__(task)
        self.python = python

    def prepare(self) -> Result:
        """Write the cases as nnU-Net's dataset; let it plan and preprocess."""
        versions = self.stage("versions", self._versions)
        return {**versions, **self.stage("prepare", self._prepare)}

    def calibrate(self) -> Result:
        """Train a few epochs of a few steps; the first epoch is left out."""
        job = {
            "fold": 0,
            "epochs": CALIBRATION_EPOCHS,
            "steps_per_epoch": CALIBRATION_STEPS[self.task.device],
        }
        found = self._run("train", job, name="calibration", results="calibration")
        shutil.rmtree(self._folder("calibration"))
        epochs = [statistics.fmean(of_epoch) for of_epoch in found["step_seconds"]]
        step_s = mean_after(epochs, left_out=1)
        pause_s = mean_after(found["pause_seconds"], left_out=1)
        plan = free_epochs(self.task.budget_s, step_s=step_s, pause_s=pause_s)
        return {"step_s": step_s, "pause_s": pause_s, **asdict(plan), "found": found}

    def train(self, fold: int, plan: Plan) -> Result:
        """Train as `Peer.train` says."""
        job = {"fold": self.task.folds.index(fold), **asdict(plan)}
        return self._run("train", job, name=f"fold_{fold}_train")

    def predict(self, fold: int) -> Result:
        """Predict as `Peer.predict` says, and bring the masks to the list's label values."""
        folder = self._folder("predicted", f"fold_{fold}")
        cases = self.cases_of(fold)
        job = {
            "fold": self.task.folds.index(fold),
            "images": [list(map(str, case.images)) for case in cases],
            "outputs": [str(folder / case.id) for case in cases],
        }
        found = self._run("predict", job, name=f"fold_{fold}_predict")
        values = tuple(self.task.datalist.labels.values())
        for case in cases:
            predicted = folder / f"{case.id}{ENDING}"
            write_mask(case, predicted, folder=self._folder("masks"), values=values)
        return found

    def _versions(self) -> Result:
        found = self._run("versions", {}, name="versions")
        return {name: number for name, number in found.items() if name != "usage"}

    def _prepare(self) -> Result:
        write_dataset(self.task.datalist, self._folder("raw", DATASET))
        job = {
            "number": NUMBER,
            "processes": self.task.threads,
            "spacing_mm": self.task.spacing_mm,
        }
        found = self._run("prepare", job, name="prepare")
        splits = splits_of(self.task.datalist, self.task.folds)
        replace_file(self.path("preprocessed", DATASET, "splits_final.json"), json_bytes(splits))
        return found

    def _run(self, stage: str, job: Job, *, name: str, results: str = "results") -> Result:
        """Run a stage of the script; `results` is where nnU-Net keeps its models."""
        assert self.python is not None, "required before"
        return self.run_script(
            [str(self.python), str(SCRIPT), stage],
            {**job, "dataset": DATASET, "device": self.task.device},
            name=name,
            environment=self.task.environment(
                nnUNet_raw=str(self._folder("raw")),
                nnUNet_preprocessed=str(self._folder("preprocessed")),
                nnUNet_results=str(self._folder(results)),
                nnUNet_n_proc_DA=str(os.cpu_count()),
                nnUNet_def_n_proc=str(self.task.threads),
            ),
        )

    def _folder(self, *names: str) -> Path:
        path = self.path(*names)
        path.mkdir(parents=True, exist_ok=True)
        return path


def require_nnunet(python: Path | None) -> Path:
    """Return `python` if nnU-Net can be imported there.

    Raises:
        SettingsError: It is not given, cannot be started, or has no nnU-Net v2.
    """
    wanted = "a Python with nnU-Net v2"
    remedy = (
        f"Make one (python -m venv nnunet; nnunet/bin/pip install nnunetv2=={VERSION}) and name it:"
        " --nnunet-python nnunet/bin/python. Or leave nnunet out of --methods."
    )
    if python is None:
        raise SettingsError(f"--nnunet-python: expected {wanted}; found none. {remedy}")
    try:
        done = subprocess.run(
            [str(python), "-c", "import nnunetv2"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise SettingsError(
            f"--nnunet-python {python}: expected {wanted}; {error.strerror}. {remedy}"
        ) from error
    if done.returncode:
        found = (done.stderr.strip().splitlines() or ["no word of why not"])[-1]
        raise SettingsError(f"--nnunet-python {python}: expected {wanted}; {found}. {remedy}")
    return python


def write_dataset(datalist: DataList, folder: Path) -> None:
    """Write the training section as a dataset of nnU-Net's: images as links, own labels.

    A label's voxels are class indices, whatever values the case's file uses: nnU-Net wants
    consecutive integers.

    Raises:
        DataError: A case's images are not one .nii.gz each, or its label cannot be read.
    """
    images, labels = folder / "imagesTr", folder / "labelsTr"
    for path in (images, labels):
        path.mkdir(parents=True, exist_ok=True)
    for case in datalist.training:
        _require_linkable(case, num_modalities=len(datalist.modalities))
        for index, path in enumerate(case.images):
            link = images / f"{case.id}_{index:04d}{ENDING}"
            link.unlink(missing_ok=True)
            link.symlink_to(path)
        if case.label is None:
            continue
        volume, affine = read_image(case.label, dtype=np.int32)
        classes = class_indices(volume, values=case.label_values)
        write_volume(labels / f"{case.id}{ENDING}", classes, affine=affine, dtype=np.uint8)
    replace_file(folder / "dataset.json", json_bytes(dataset_document(datalist)))


def dataset_document(datalist: DataList) -> dict[str, Any]:
    """Return `dataset.json` for training by regions, as nnU-Net's documentation shows for BraTS."""
    regions = nested_regions(datalist)
    return {
        "channel_names": {str(index): name for index, name in enumerate(datalist.modalities)},
        "labels": {"background": 0, **{each.name: list(each.classes) for each in regions}},
        "regions_class_order": [each.painted for each in regions],
        "numTraining": len(datalist.training),
        "file_ending": ENDING,
    }


def splits_of(datalist: DataList, folds: Sequence[int]) -> list[dict[str, list[str]]]:
    """Return `splits_final.json`: for each fold in turn, the cases that train and the others."""
    splits = []
    for fold in folds:
        train, validate = datalist.split(fold)
        splits.append({"train": [case.id for case in train], "val": [case.id for case in validate]})
    return splits


def write_mask(case: Case, predicted: Path, *, folder: Path, values: Sequence[int]) -> Path:
    """Write nnU-Net's class indices in the data list's `values` on the case's own grid.

    Raises:
        DataError: The prediction cannot be read, or lies on another grid.
    """
    classes, affine = read_image(predicted, dtype=np.int32)
    image, own_affine = read_image(case.images[0], dtype=np.float32)
    same_shape = classes.shape == image.shape
    if not same_shape or not np.allclose(affine, own_affine, atol=GRID_TOLERANCE_MM):
        raise DataError.of(
            Problem(
                case=case.id,
                kind="prediction-grid",
                file=predicted.name,
                expected=f"the grid of {case.images[0].name}, {image.shape}",
                found=f"{classes.shape}, another affine" if same_shape else f"{classes.shape}",
                remedy="Remove the folder of this fold's predictions and run again.",
            )
        )
    path = mask_path(folder, case.id)
    mask = np.asarray(values, dtype=np.int32)[classes]
    write_volume(path, mask, affine=own_affine, dtype=np.uint8)
    return path


def _require_linkable(case: Case, *, num_modalities: int) -> None:
    names = [path.name for path in case.images]
    if len(names) == num_modalities and all(name.endswith(ENDING) for name in names):
        return
    raise DataError.of(
        Problem(
            case=case.id,
            kind="not-linkable",
            file=names[0],
            expected=f"one {ENDING} file for each of {num_modalities} modalities",
            found=", ".join(names),
            remedy="nnU-Net takes nothing else: convert them, or leave nnunet out of --methods.",
        )
    )
