"""The comparison with nnU-Net and MONAI's recipe: equal terms, resuming, and an honest table."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch
from conftest import LABELS, CohortFactory, make_case, nested_label, save_nifti
from torch.utils.tensorboard import SummaryWriter

from benchmarks import accuracy
from benchmarks.accuracy_peers import measured, nnunet, ours, segresnet
from benchmarks.accuracy_peers.budget import (
    Plan,
    free_epochs,
    mean_after,
    timed_epochs,
    whole_epochs,
)
from benchmarks.accuracy_peers.claims import claim
from benchmarks.accuracy_peers.costs import Costs
from benchmarks.accuracy_peers.machines import note_machine
from benchmarks.accuracy_peers.measured import Usage, run_measured
from benchmarks.accuracy_peers.methods import Method, parse_methods
from benchmarks.accuracy_peers.regions import nested_regions
from benchmarks.accuracy_peers.segresnet_script import preprocessing, voxels
from benchmarks.accuracy_peers.task import Task
from pipeline.data.datalist import parse_datalist, read_datalist
from pipeline.data.nifti import write_volume
from pipeline.data.prediction_files import mask_path
from pipeline.errors import DataError, ResourceError, RunStopped, SettingsError
from pipeline.presets import PRESETS

GRID = np.diag([1.0, 1.0, 1.0, 1.0])


def make_task(path: Path, folder: Path, **changes: Any) -> Task:
    values: dict[str, Any] = {
        "datalist": read_datalist(path),
        "folds": (0, 1),
        "folder": folder,
        "minutes": 0.001,
        "spacing_mm": 4.0,
        "threads": 1,
        "device": "cpu",
        "allow_outside_root": False,
    }
    return Task(**{**values, **changes})


@pytest.fixture
def task(cohort_factory: CohortFactory, tmp_path: Path) -> Task:
    return make_task(cohort_factory(), tmp_path / "out")


# Methods ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quick", Method("quick", "quick")),
        ("nnunet", Method("nnunet")),
        ("plain=quick", Method("plain", "quick")),
        (
            "a.1=quick:training.loss=dice,network.settings.dropout=0.1",
            Method("a.1", "quick", ("training.loss=dice", "network.settings.dropout=0.1")),
        ),
        (
            'b=quick:network.settings={"num_filters": 4, "dropout": 0.1},seed=3',
            Method("b", "quick", ('network.settings={"num_filters": 4, "dropout": 0.1}', "seed=3")),
        ),
    ],
    ids=["preset", "peer", "name", "settings", "json"],
)
def test_a_method_is_a_preset_a_variant_or_a_peer(text: str, expected: Method) -> None:
    assert parse_methods([text, "original"])[0] == expected


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["quick", "quick"], "quick twice"),
        (["nnunet"], "expected one of ours"),
        (["no-preset"], "a preset .*; found 'no-preset'"),
        (["a=quick:training.los=dice"], "Did you mean training.loss"),
        (["../a=quick"], "expected a name of letters"),
        (["scores=quick"], "not taken"),
        (["nnunet=quick"], "not taken"),
    ],
    ids=["twice", "no-ours", "preset", "setting", "path", "folder", "peer"],
)
def test_a_wrong_method_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_methods(texts)


# Budget -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget_s", [1.0, 59.0, 600.0, 1200.0, 36_000.0])
@pytest.mark.parametrize(("step_s", "pause_s"), [(8.0, 2.0), (0.1, 3.0), (30.0, 12.0)])
def test_the_steps_fill_the_budget_to_within_an_epoch(
    budget_s: float, step_s: float, pause_s: float
) -> None:
    plan = free_epochs(budget_s, step_s=step_s, pause_s=pause_s)
    epoch_s = plan.steps_per_epoch * step_s + pause_s
    assert plan.epochs * epoch_s <= max(budget_s, step_s + pause_s)
    assert (plan.epochs + 1) * epoch_s > budget_s
    assert plan.epochs <= 101


def test_long_epochs_keep_the_pauses_short() -> None:
    plan = free_epochs(1200.0, step_s=0.1, pause_s=3.0)
    assert 0.11 * plan.steps_per_epoch * 0.1 >= 3.0
    assert plan.epochs > 10


def test_whole_epochs_never_exceed_the_budget_but_are_one_at_least() -> None:
    assert whole_epochs(100.0, epoch_s=9.0, steps_per_epoch=12) == Plan(11, 12)
    assert whole_epochs(1.0, epoch_s=9.0, steps_per_epoch=12) == Plan(1, 12)


@pytest.mark.parametrize(
    ("budget_s", "epoch_s", "expected"),
    [(1200.0, 5.0, 13), (240.0, 5.0, 6), (1200.0, 50.0, 3), (1200.0, 200.0, 3)],
    ids=["a-minute", "a-tenth", "whole-epochs", "three-at-least"],
)
def test_a_calibration_takes_a_minute_or_a_tenth_of_the_budget(
    budget_s: float, epoch_s: float, expected: int
) -> None:
    assert timed_epochs(budget_s, epoch_s=epoch_s) == expected


def test_the_first_steps_are_left_out_where_others_are_there() -> None:
    assert mean_after([100.0, 1.0, 3.0], left_out=1) == 2.0
    assert mean_after([100.0], left_out=1) == 100.0


# What a process takes ---------------------------------------------------------------------------

BUSY = """
import sys, time
held = bytearray(80_000_000)
end = time.process_time() + 0.5
while time.process_time() < end: pass
time.sleep(0.5)
"""
PARENT = f"""
import subprocess, sys
subprocess.run([sys.executable, '-c', {BUSY!r}, 'marked'])
"""


def test_what_a_child_takes_is_counted_under_its_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "INTERVAL_S", 0.05)
    saved: list[measured.Usages] = []
    usages = run_measured(
        [sys.executable, "-c", PARENT],
        what="test",
        log=tmp_path / "log.txt",
        environment=os.environ,
        label_of=lambda words: "child" if "marked" in words else None,
        save=saved.append,
    )
    assert list(usages) == ["child"]
    assert 0.4 < usages["child"].cpu_s < 2.0
    assert usages["child"].wall_s > 0.5
    assert 80e6 < usages["child"].peak_bytes < 200e6
    assert saved == [usages]


@pytest.mark.parametrize(
    ("code", "kind"),
    [(75, RunStopped), (2, SettingsError), (3, DataError), (1, ResourceError)],
    ids=["stopped", "settings", "data", "bug"],
)
def test_a_process_that_fails_is_told_with_its_last_words(
    tmp_path: Path, code: int, kind: type[Exception]
) -> None:
    command = [sys.executable, "-c", f"print('last words'); raise SystemExit({code})"]
    with pytest.raises(kind, match=rf"(?s)nnunet, train: ended with {code}.*last words"):
        run_measured(
            command, what="nnunet, train", log=tmp_path / "log.txt", environment=os.environ
        )


def test_an_interruption_leaves_no_process_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "INTERVAL_S", 0.05)
    sleeper = "import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeper!r}])"
    seen: list[psutil.Process] = []

    def interrupt(self: measured.Watch, process: psutil.Process) -> None:
        if below := process.children():
            seen.extend([process, *below])
            raise KeyboardInterrupt

    monkeypatch.setattr(measured.Watch, "look", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_measured(
            [sys.executable, "-c", parent],
            what="test",
            log=tmp_path / "log.txt",
            environment=os.environ,
        )
    _, alive = psutil.wait_procs(seen, timeout=5)
    assert len(seen) == 2
    assert not alive


# The cases for nnU-Net --------------------------------------------------------------------------


def test_regions_are_nested_from_the_largest(task: Task) -> None:
    regions = nested_regions(task.datalist)
    assert [(each.name, each.classes, each.painted) for each in regions] == [
        ("WT", (1, 2, 3), 2),
        ("TC", (1, 3), 1),
        ("ET", (3,), 3),
    ]


def test_regions_that_are_not_nested_are_refused(tmp_path: Path) -> None:
    document = {
        "modality": ["t1"],
        "labels": {"background": 0, "a": 1, "b": 2},
        "regions": {"A": ["a"], "B": ["b"]},
        "training": [{"case": "x", "t1": "x.nii.gz", "seg": "y.nii.gz"}],
    }
    datalist = parse_datalist(document, path=tmp_path / "list.json", allow_outside_root=False)
    with pytest.raises(SettingsError, match="expected regions that lie in each other"):
        nested_regions(datalist)


def test_the_dataset_has_linked_images_own_labels_and_regions(tmp_path: Path, task: Task) -> None:
    # The first case's mask codes the enhancing tumour otherwise than the list.
    document = json.loads(task.datalist.path.read_text())
    entry = document["training"][0]
    values = np.array([0, 1, 2, 3], dtype=np.uint8)[nested_label((12, 14, 10))]
    save_nifti(task.datalist.path.parent / entry["seg"], values)
    entry["labels"] = {"enhancing_tumour": 3}
    task.datalist.path.write_text(json.dumps(document))
    datalist = read_datalist(task.datalist.path)
    for _ in range(2):  # as after a run that was stopped
        nnunet.write_dataset(datalist, tmp_path / "raw")
    for case in datalist.training:
        for index, image in enumerate(case.images):
            link = tmp_path / "raw" / "imagesTr" / f"{case.id}_{index:04d}.nii.gz"
            assert link.resolve() == image
        label = nib.load(tmp_path / "raw" / "labelsTr" / f"{case.id}.nii.gz")
        np.testing.assert_array_equal(np.asarray(label.dataobj), nested_label((12, 14, 10)))
        np.testing.assert_allclose(label.affine, nib.load(case.images[0]).affine)
    assert json.loads((tmp_path / "raw" / "dataset.json").read_text()) == {
        "channel_names": {"0": "flair", "1": "t1", "2": "t1ce", "3": "t2"},
        "labels": {"background": 0, "WT": [1, 2, 3], "TC": [1, 3], "ET": [3]},
        "regions_class_order": [2, 1, 3],
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }


def test_the_splits_are_the_lists_folds(task: Task) -> None:
    assert nnunet.splits_of(task.datalist, task.folds) == [
        {"train": ["case_001", "case_003"], "val": ["case_000", "case_002"]},
        {"train": ["case_000", "case_002"], "val": ["case_001", "case_003"]},
    ]


def test_images_that_nnunet_cannot_read_are_refused(tmp_path: Path) -> None:
    document = {
        "modality": ["t1", "t2"],
        "labels": {"background": 0, "tumour": 1},
        "training": [{"case": "x", "image": "x.nii.gz", "seg": "y.nii.gz"}],
    }
    datalist = parse_datalist(document, path=tmp_path / "list.json", allow_outside_root=False)
    with pytest.raises(DataError, match=r"x, x\.nii\.gz: .*one \.nii\.gz file for each of 2"):
        nnunet.write_dataset(datalist, tmp_path / "raw")


def test_a_prediction_gets_the_lists_values_on_the_cases_grid(tmp_path: Path) -> None:
    case = make_case(tmp_path, "case")
    predicted = save_nifti(tmp_path / "predicted.nii.gz", nested_label((12, 14, 10)))
    path = nnunet.write_mask(case, predicted, folder=tmp_path, values=tuple(LABELS.values()))
    assert path == mask_path(tmp_path, "case")
    assert case.label is not None
    expected = nib.load(case.label)
    np.testing.assert_array_equal(nib.load(path).dataobj, expected.dataobj)
    np.testing.assert_allclose(nib.load(path).affine, expected.affine)


@pytest.mark.parametrize(
    ("shape", "affine"), [((12, 14, 9), None), ((12, 14, 10), GRID)], ids=["shape", "affine"]
)
def test_a_prediction_on_another_grid_is_refused(
    tmp_path: Path, shape: tuple[int, int, int], affine: np.ndarray | None
) -> None:
    case = make_case(tmp_path, "case")
    volume = np.zeros(shape, dtype=np.uint8)
    own = nib.load(case.images[0]).affine
    predicted = save_nifti(tmp_path / "predicted.nii.gz", volume, own if affine is None else affine)
    with pytest.raises(DataError, match=r"case, predicted\.nii\.gz: prediction-grid"):
        nnunet.write_mask(case, predicted, folder=tmp_path, values=(0, 1, 2, 4))


@pytest.mark.parametrize(
    ("python", "found"),
    [
        (None, "found none"),
        (Path("/no/python"), "No such file"),
        (Path(sys.executable), "nnunetv2"),
    ],
    ids=["none", "no-file", "no-package"],
)
def test_a_missing_nnunet_is_told_with_the_command_that_installs_it(
    python: Path | None, found: str
) -> None:
    with pytest.raises(SettingsError, match=rf"(?s)--nnunet-python.*{found}.*pip install nnunetv2"):
        nnunet.require_nnunet(python)


def fake_script(command: list[str], *, environment: dict[str, str], **_: Any) -> dict[str, Usage]:
    """Do what `nnunet_script.py` does, but learn nothing: every prediction is the right one."""
    stage, path = command[-2:]
    job = json.loads(Path(path).read_text())
    found: dict[str, Any] = {"nnunetv2": "0"}
    if stage == "prepare":
        folder = Path(environment["nnUNet_raw"]) / job["dataset"]
        assert (folder / "dataset.json").exists()
        found = {"patch_size": [8, 8, 8], "spacing_mm": [job["spacing_mm"]] * 3}
    if stage == "train":
        steps = [[9.0, 9.0], *[[0.5] * job["steps_per_epoch"]] * (job["epochs"] - 1)]
        pauses = [9.0, *[0.1] * (job["epochs"] - 1)]
        found = {"steps": job["epochs"] * job["steps_per_epoch"], "parameters": 5}
        found |= {"step_seconds": steps, "pause_seconds": pauses}
    if stage == "predict":
        for images, output in zip(job["images"], job["outputs"], strict=True):
            affine = nib.load(images[0]).affine
            save_nifti(Path(f"{output}.nii.gz"), nested_label((12, 14, 10)), affine)
    Path(job["result"]).write_text(json.dumps(found))
    return {"all": Usage(60.0, 100.0, 7)}


def test_nnunets_stages_lead_to_masks_and_are_run_once(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = []

    def run(command: list[str], **options: Any) -> dict[str, Usage]:
        stages.append((command[-2], Path(command[-1]).stem))
        return fake_script(command, **options)

    monkeypatch.setattr("benchmarks.accuracy_peers.peer.run_measured", run)
    task = make_task(task.datalist.path, task.folder, minutes=0.1)
    costs = nnunet.NnUNet(task, python=Path(sys.executable)).run()
    # 6 s: steps of 0.5 s and pauses of 0.1 s, which are to be a tenth at most.
    assert (costs.epochs, costs.steps, costs.step_s) == (5, 10, 0.5)
    assert costs.training == Usage(60.0, 100.0, 7)
    assert costs.inference_s == 30.0
    assert costs.details == {
        "nnunetv2": "0",
        "patch_size": [8, 8, 8],
        "spacing_mm": [4.0, 4.0, 4.0],
        "usage": {"wall_s": 60.0, "cpu_s": 100.0, "peak_bytes": 7},
        "parameters": 5,
    }
    assert accuracy.score(task, "nnunet").summaries["dice_ET"].mean == 1.0
    assert [stage for stage, _ in stages] == [
        "versions", "prepare", "train", *["train", "predict"] * 2
    ]  # fmt: skip
    stages.clear()
    assert nnunet.NnUNet(task, python=Path(sys.executable)).run() == costs
    # A run that was stopped while fold 1 was trained goes on there.
    for name in ("train", "predict"):
        task.stage_path(f"nnunet/fold_1_{name}").unlink()
    nnunet.NnUNet(task, python=Path(sys.executable)).run()
    assert stages == [("train", "fold_1_train"), ("predict", "fold_1_predict")]


# SegResNet --------------------------------------------------------------------------------------


def test_the_recipes_sizes_are_the_published_ones_at_1_mm() -> None:
    assert voxels((224, 224, 144), 1.0) == (224, 224, 144)
    assert voxels((224, 224, 144), 2.0) == (112, 112, 72)
    assert voxels((240, 240, 160), 2.0) == (120, 120, 80)


# MONAI's loader warns of optional readers that are not installed; NIfTI needs none of them.
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")
def test_the_recipe_normalises_the_brain_alone_and_keeps_labels_whole(tmp_path: Path) -> None:
    from monai.transforms import Compose

    case = make_case(tmp_path, "case", affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    chain = Compose(preprocessing(("image", "label"), spacing_mm=2.0))
    item = chain({"image": list(map(str, case.images)), "label": str(case.label)})
    image = item["image"].as_tensor()
    inside = image[:, 1:-1, 1:-1, 1:-1]
    assert image.shape == (4, 12, 14, 10)
    assert (image[:, 0] == 0).all()
    torch.testing.assert_close(inside.mean(dim=(1, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    np.testing.assert_array_equal(
        item["label"][0].numpy(), np.array([0, 1, 2, 4])[nested_label((12, 14, 10))]
    )


@pytest.mark.slow
def test_segresnet_from_the_list_to_masks(
    cohort_factory: CohortFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segresnet, "WARM_UP", {"cpu": 1})
    monkeypatch.setattr(segresnet, "TIMED", {"cpu": 1})
    affine = np.diag([-8.0, 8.0, 8.0, 1.0])
    path = cohort_factory(num_cases=2, shape=(14, 14, 12), affine=affine)
    task = make_task(path, tmp_path / "out", folds=(0,), spacing_mm=16.0)
    costs = segresnet.ZooSegResNet(task).run()
    assert costs.epochs == costs.steps == 1
    assert costs.training.cpu_s > 0
    assert costs.training.peak_bytes > 1e8
    report = accuracy.score(task, "segresnet")
    assert [result.case for result in report.results] == ["case_000"]
    mask = nib.load(mask_path(tmp_path / "out" / "segresnet" / "masks", "case_000"))
    assert mask.shape == (14, 14, 12)
    assert set(np.unique(np.asarray(mask.dataobj))) <= set(LABELS.values())
    # What is finished is not started again.
    monkeypatch.setattr("benchmarks.accuracy_peers.peer.run_measured", None)
    assert segresnet.ZooSegResNet(task).run() == costs


# The whole comparison ---------------------------------------------------------------------------

COSTS = Costs(
    epochs=3,
    steps=6,
    step_s=0.5,
    training=Usage(60.0, 90.0, 10**9),
    inference_s=2.0,
    inference_bytes=10**9,
)


def write_masks(task: Task, name: str, *, wrong: bool) -> None:
    folder = task.folder / name / "masks"
    folder.mkdir(parents=True)
    for case in task.cases():
        assert case.label is not None
        label = nib.load(case.label)
        values = np.asarray(label.dataobj)
        write_volume(
            mask_path(folder, case.id),
            np.where(values == 4, 1, values) if wrong else values,
            affine=label.affine,
            dtype=np.uint8,
        )


class StandIn:
    """Writes masks in place of training: wrong ones for a name in `wrong`."""

    wrong: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    started: list[str]

    def __init__(self, task: Task, method: Method, **_: Any) -> None:
        self.task, self.name = task, method.name

    def is_finished(self) -> bool:
        return self.task.is_finished(f"{self.name}/all")

    def run(self) -> Costs:
        self.task.stage(f"{self.name}/all", self._work)
        return COSTS

    def _work(self) -> dict[str, Any]:
        self.started.append(self.name)
        if self.name in self.stopped:
            raise RunStopped(f"{self.name} was stopped")
        write_masks(self.task, self.name, wrong=self.name in self.wrong)
        return {}


MACHINE = {
    "processor": "P",
    "cores": 2,
    "threads": 2,
    "memory_gb": 8,
    "python": "3",
    "versions": {"torch": "2"},
    "sgemm_gflops": 200.0,
    "copy_gb_per_s": 20.0,
}


def let_stand_in(monkeypatch: pytest.MonkeyPatch, *, wrong: tuple[str, ...]) -> type[StandIn]:
    monkeypatch.setattr(StandIn, "started", [], raising=False)
    monkeypatch.setattr(StandIn, "wrong", wrong)
    monkeypatch.setattr(accuracy, "side_of", StandIn)
    monkeypatch.setattr(accuracy, "describe_machine", lambda: MACHINE)
    return StandIn


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let masks be written in place of training; return the names that were run."""
    return let_stand_in(monkeypatch, wrong=("segresnet",)).started


def words_of(path: Path, out: Path, *more: str) -> list[str]:
    return [str(path), "-o", str(out), "--threads=1", *more]


def test_methods_are_scored_alike_and_compared_with_ours(
    cohort_factory: CohortFactory, tmp_path: Path, stand_ins: list[str]
) -> None:
    datalist = cohort_factory()
    words = words_of(datalist, tmp_path / "out", "--methods", "segresnet", "quick")
    assert accuracy.main(words) == 0
    content = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    scores = {name: each["scores"] for name, each in content["methods"].items()}
    assert scores["quick"]["dice_ET"] == {"mean": 1.0, "interval_95": [1.0, 1.0], "num_cases": 4}
    assert scores["segresnet"]["dice_WT"]["mean"] == 1.0
    assert scores["segresnet"]["dice_ET"]["mean"] == 0.0
    assert scores["quick"]["background_dice_mean"]["mean"] == 0.0
    (comparison,) = content["comparisons"]
    assert (comparison["of"], comparison["minus"]) == ("quick", "segresnet")
    difference = comparison["differences"]["dice_mean"]
    assert difference["mean_difference"] == pytest.approx(1 / 3)
    assert difference["num_better"] == 4
    assert content["task"]["folds"] == [0, 1]
    text = (tmp_path / "out" / "accuracy.md").read_text()
    assert "| segresnet | 0.667 [0.667, 0.667] | 1.000 [1.000, 1.000] |" in text
    # The steps are beside the scores.
    assert "| 0.000 [0.000, 0.000] | 6 |" in text
    assert "| everything background | 0.000 [0.000, 0.000] |" in text
    assert (tmp_path / "out" / "scores" / "quick_against_segresnet" / "comparison.csv").exists()
    with (tmp_path / "out" / "accuracy_cases.csv").open() as stream:
        of_cases = [(row["method"], row["case"], row["dice_ET"]) for row in csv.DictReader(stream)]
    cases = [case["case"] for case in json.loads(datalist.read_text())["training"]]
    assert of_cases == [("segresnet", case, "0.0") for case in cases] + [
        ("quick", case, "1.0") for case in cases
    ]


def test_what_is_finished_is_not_run_again_and_methods_can_be_added(
    cohort_factory: CohortFactory, tmp_path: Path, stand_ins: list[str]
) -> None:
    words = words_of(cohort_factory(), tmp_path / "out", "--methods", "quick")
    assert accuracy.main(words) == 0
    assert accuracy.main([*words, "b=quick:training.loss=dice"]) == 0
    assert stand_ins == ["quick", "b"]


def names_in(out: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the methods of the table, and what is compared."""
    content = json.loads((out / "accuracy.json").read_text())
    return list(content["methods"]), [(x["of"], x["minus"]) for x in content["comparisons"]]


def test_the_tables_are_of_all_that_is_finished_in_the_folder(
    cohort_factory: CohortFactory, tmp_path: Path, stand_ins: list[str]
) -> None:
    out = tmp_path / "out"
    words = words_of(cohort_factory(), out, "--methods")
    assert accuracy.main([*words, "segresnet", "quick"]) == 0
    assert accuracy.main([*words, "b=quick:training.loss=dice"]) == 0
    assert accuracy.main([*words, "original", "quick"]) == 0
    # In the order in which they were begun.
    names, pairs = names_in(out)
    assert names == ["segresnet", "quick", "b", "original"]
    assert pairs == [("quick", "segresnet"), ("quick", "b"), ("quick", "original")]
    with (out / "accuracy_cases.csv").open() as stream:
        assert list(dict.fromkeys(row["method"] for row in csv.DictReader(stream))) == names
    assert stand_ins == ["segresnet", "quick", "b", "original"]


def test_what_is_begun_and_not_finished_is_in_no_table_and_told(
    cohort_factory: CohortFactory,
    tmp_path: Path,
    stand_ins: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = words_of(cohort_factory(), tmp_path / "out", "--methods")
    monkeypatch.setattr(StandIn, "stopped", ("original",))
    assert accuracy.main([*words, "quick", "original", "segresnet"]) == 75
    assert accuracy.main([*words, "quick"]) == 0
    assert names_in(tmp_path / "out") == (["quick"], [])
    told = capsys.readouterr().out
    assert "original: begun, not finished" in told
    assert "segresnet: begun, not finished" in told


@pytest.mark.parametrize("name", ["quick", "nnunet", "segresnet"])
def test_a_side_is_finished_with_its_last_stage(task: Task, name: str) -> None:
    side = accuracy.side_of(task, *parse_methods([name, "original"])[:1])
    last = "crossval" if name == "quick" else "fold_1_predict"
    for stage in ("calibration", "starts", "fold_0_train", "fold_0_predict", "fold_1_train"):
        task.note(f"{name}/{stage}", {})
    assert not side.is_finished()
    task.note(f"{name}/{last}", {})
    assert side.is_finished()


def test_a_preset_that_was_changed_is_not_gone_on_with(
    cohort_factory: CohortFactory,
    tmp_path: Path,
    stand_ins: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = words_of(cohort_factory(), tmp_path / "out", "--methods")
    assert accuracy.main([*words, "quick"]) == 0
    changed = {**PRESETS["quick"], "seed": 3}
    monkeypatch.setitem(PRESETS, "quick", changed)
    # Also where it is not named: its masks are those of the old preset, in a table of the new one.
    for name in ("quick", "original"):
        assert accuracy.main([*words, name, "segresnet"]) == 2
        assert (
            "out, quick: expected the settings that it was begun with; these differ: seed: 0"
            in (capsys.readouterr().err)
        )
    assert stand_ins == ["quick"]


def test_a_setting_that_is_gone_is_told_with_the_folder(
    cohort_factory: CohortFactory,
    tmp_path: Path,
    stand_ins: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = words_of(cohort_factory(), out, "--methods", "quick")
    assert accuracy.main(words) == 0
    note = out / "stages" / "quick" / "method.json"
    document = json.loads(note.read_text())
    document["settings"]["training"]["gone"] = 1
    note.write_text(json.dumps(document))
    assert accuracy.main(words) == 2
    assert "out, quick: expected settings that still exist; training.gone" in (
        capsys.readouterr().err
    )


def make_old(out: Path) -> None:
    """Leave in a folder what it had before settings and machines were noted."""
    for note in (out / "stages").glob("*/method.json"):
        document = json.loads(note.read_text())
        old = {key: document[key] for key in ("preset", "assignments")}
        note.write_text(json.dumps(old))
        note.with_name("machines.json").unlink()


def test_a_folder_of_an_older_version_is_gone_on_with(
    cohort_factory: CohortFactory, tmp_path: Path, stand_ins: list[str]
) -> None:
    out = tmp_path / "out"
    words = words_of(cohort_factory(), out, "--methods")
    assert accuracy.main([*words, "quick", "b=quick:training.loss=dice,seed=2"]) == 0
    make_old(out)
    os.utime(out / "stages" / "quick" / "method.json", (1, 1))
    # The same settings in other words.
    assert accuracy.main([*words, "segresnet", "b=quick:seed=2,training.loss=dice"]) == 0
    assert stand_ins == ["quick", "b", "segresnet"]
    assert names_in(out)[0] == ["quick", "b", "segresnet"]
    text = (out / "accuracy.md").read_text()
    assert "is not known of quick, b: begun before that was noted" in text
    assert "Not all ran on one machine" not in text
    assert "| quick | unknown |" in text
    assert "P, 2 cores, 8 GB; Python 3, brain-tumour-segmentation" in text.split("\n\n")[1]


@pytest.mark.parametrize(
    ("changes", "is_other"),
    [
        ({"processor": "Q"}, True),
        ({"versions": {"torch": "3"}}, True),
        ({"sgemm_gflops": 100.0}, True),
        ({"sgemm_gflops": 180.0}, False),
    ],
    ids=["processor", "version", "half-as-quick", "noise"],
)
def test_methods_of_different_machines_are_told_apart(
    cohort_factory: CohortFactory,
    tmp_path: Path,
    stand_ins: list[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    is_other: bool,
) -> None:
    out = tmp_path / "out"
    words = words_of(cohort_factory(), out, "--methods", "quick")
    assert accuracy.main(words) == 0
    monkeypatch.setattr(accuracy, "describe_machine", lambda: {**MACHINE, **changes})
    assert accuracy.main([*words, "segresnet"]) == 0
    text = (out / "accuracy.md").read_text()
    assert ("compare rows of one machine only" in text) == is_other
    assert ("The machines are listed below" in text) == is_other
    methods = json.loads((out / "accuracy.json").read_text())["methods"]
    # What is finished stays what it was: it is not run here.
    (quick,), (segresnet,) = (methods[name]["machines"] for name in ("quick", "segresnet"))
    assert {key: quick[key] for key in MACHINE if key != "versions"} == {
        key: MACHINE[key] for key in MACHINE if key != "versions"
    }
    changed = next(iter(changes))
    assert (quick[changed] != segresnet[changed]) == (changes[changed] != MACHINE[changed])


def test_a_method_that_goes_on_elsewhere_has_both_machines(
    cohort_factory: CohortFactory,
    tmp_path: Path,
    stand_ins: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    words = words_of(cohort_factory(), out, "--methods", "quick")
    monkeypatch.setattr(StandIn, "stopped", ("quick",))
    assert accuracy.main(words) == accuracy.main(words) == 75
    monkeypatch.setattr(StandIn, "stopped", ())
    monkeypatch.setattr(accuracy, "describe_machine", lambda: {**MACHINE, "cores": 4})
    assert accuracy.main(words) == 0
    machines = json.loads((out / "accuracy.json").read_text())["methods"]["quick"]["machines"]
    assert [machine["cores"] for machine in machines] == [2, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--minutes=7"], "expected minutes 20.0, as the folder was begun with; found 7.0"),
        (["--spacing-mm=1"], "expected spacing_mm 2.0"),
        (
            ["--methods", "quick=quick:training.loss=dice"],
            "these differ: training.loss: 'dice_ce' -> 'dice'",
        ),
    ],
    ids=["minutes", "grid", "variant"],
)
def test_a_folder_is_for_one_comparison(
    cohort_factory: CohortFactory,
    tmp_path: Path,
    stand_ins: list[str],
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    message: str,
) -> None:
    words = words_of(cohort_factory(), tmp_path / "out", "--methods", "quick")
    assert accuracy.main(words) == 0
    assert accuracy.main([*words, *change]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("folds", [["0"], ["0", "5"]], ids=["one", "unknown"])
def test_folds_are_two_of_the_lists_at_least(
    cohort_factory: CohortFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    folds: list[str],
) -> None:
    words = words_of(cohort_factory(), tmp_path / "out", "--methods", "quick", "--folds", *folds)
    assert accuracy.main(words) == 2
    assert "expected at least two of the folds of cohort.json (0, 1)" in capsys.readouterr().err


def test_without_nnunets_python_nothing_is_begun(
    cohort_factory: CohortFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(cohort_factory(), tmp_path / "out", "--methods", "quick", "nnunet")
    assert accuracy.main(words) == 2
    assert "pip install nnunetv2==" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_stage_that_failed_is_run_again(task: Task) -> None:
    def fail() -> dict[str, Any]:
        raise ResourceError("no memory")

    with pytest.raises(ResourceError, match="no memory"):
        task.stage("a/b", fail)
    assert task.stage("a/b", lambda: {"value": 1}) == {"value": 1}
    assert task.stage("a/b", fail) == {"value": 1}


# Ours -------------------------------------------------------------------------------------------


def test_the_verbs_are_told_apart_by_their_command_lines() -> None:
    assert ours.label_of(["python", "-m", "pipeline.train", "list.json"]) == "pipeline.train"
    assert ours.label_of(["python", "-m", "pipeline.crossval", "pipeline.train"]) is None


def test_an_epochs_seconds_leave_out_the_first_and_include_the_pauses(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path / ours.FOLDER_NAME))
    for number, wall_s in enumerate((100.0, 150.0, 153.0, 155.0, 158.0, 160.0), start=1):
        writer.add_scalar(ours.LOSS, 0.0, number, walltime=wall_s)
    writer.close()
    assert ours.seconds_of_an_epoch(tmp_path, num_epochs=3) == 5.0


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let epochs take 1.0 s or, in longer calibrations, 1.5 s; return how many were timed."""
    found: list[int] = []

    def time(self: ours.Ours, num_epochs: int) -> tuple[float, int]:
        found.append(num_epochs)
        return (1.0 if num_epochs == 3 else 1.5), 4

    monkeypatch.setattr(ours.Ours, "_timed", time)
    return found


def test_the_longer_calibration_is_what_counts(task: Task, timed: list[int]) -> None:
    task = make_task(task.datalist.path, task.folder, minutes=1.0)
    found = ours.Ours(task, Method("quick", "quick"))._calibrate()
    assert timed == [3, 7]
    assert found == {"epoch_s": 1.5, "timed_epochs": 7, "epochs": 40, "steps_per_epoch": 4}


def test_three_epochs_that_take_long_enough_are_not_repeated(task: Task, timed: list[int]) -> None:
    assert ours.Ours(task, Method("quick", "quick"))._calibrate()["epoch_s"] == 1.0
    assert timed == [3]


@pytest.mark.parametrize(
    ("assignment", "is_elsewhere", "is_shared"),
    [
        ("inference.flips=false", False, True),
        ("inference.flips=false", True, False),
        ("seed=3", False, False),
    ],
    ids=["masks", "another-machine", "training"],
)
def test_the_same_training_has_the_same_number_of_epochs(
    task: Task, timed: list[int], assignment: str, is_elsewhere: bool, is_shared: bool
) -> None:
    first, second = Method("quick", "quick"), Method("b", "quick", (assignment,))
    claim(task, [first, second])
    note_machine(task, "quick", MACHINE)
    note_machine(task, "b", {**MACHINE, "cores": 4} if is_elsewhere else MACHINE)
    found = task.stage("quick/calibration", ours.Ours(task, first)._calibrate)
    timed.clear()
    assert ours.Ours(task, second)._calibrate() == found
    assert timed == ([] if is_shared else [3])


def test_what_earlier_starts_took_is_counted_too(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = task.stage_path("quick/starts")
    starts.write_text(json.dumps([{ours.TRAIN: {"wall_s": 5.0, "cpu_s": 7.0, "peak_bytes": 9}}]))
    commands = []

    def run(command: list[str], *, save: Any, **_: Any) -> None:
        commands.append(command)
        save({ours.TRAIN: Usage(1.0, 2.0, 3), ours.INFER: Usage(4.0, 4.0, 4)})

    monkeypatch.setattr(ours, "run_measured", run)
    monkeypatch.setattr(ours.Ours, "_steps", lambda *_: 8)
    task.note("quick/calibration", {"epoch_s": 4.0, "epochs": 2, "steps_per_epoch": 4})
    method = Method("quick", "quick", ("training.loss=dice",))
    costs = ours.Ours(task, method).run()
    assert (costs.epochs, costs.steps, costs.step_s) == (2, 8, 1.0)
    assert costs.training == Usage(3.0, 4.5, 9)
    assert costs.inference_s == 1.0
    assert costs.details["starts"] == 2
    (command,) = commands
    assert "--set=training.loss=dice" in command
    assert command.index("--set=preprocessing.spacing_mm=4.0") < command.index(
        "--set=training.loss=dice"
    )
    assert "--set=training.max_epochs=2" in command
