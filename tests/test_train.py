"""The verb `train`: its exit codes, its messages, and what it leaves in the folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import datalist_entry, make_case, make_cohort, save_nifti, write_datalist

from networks import build_network
from pipeline import train
from pipeline.data import checking
from pipeline.data.lock import LOCK_NAME, locked_folder
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.trained import subject_digest
from pipeline.training.run import TrainingRun

ROOT = Path(__file__).parents[1]
TINY = [
    "--fold=0",
    "--set=preprocessing.border_crop=null",
    '--set=network.settings={"num_levels": 2, "num_filters": 2}',
    "--set=training.max_epochs=1",
    "--device=cpu",
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("cohort"), num_cases=4)


def run(cohort: Path, folder: Path, *options: str) -> int:
    return train.main([str(cohort), "--output-dir", str(folder), *TINY, *options])


def test_trains_says_where_everything_is_and_is_not_done_twice(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a [bold] run"
    assert run(cohort, folder) == 0
    first = capsys.readouterr().out
    for told in (
        "everything is background",
        str(folder / "best.pt"),
        "metrics.csv",
        "tensorboard --host",
    ):
        assert told in first
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"]["epoch"] == 1
    written = (folder / "last.pt").stat().st_mtime_ns
    assert run(cohort, folder, "--resume") == 0
    second = capsys.readouterr().out
    assert "This run is finished" in second
    assert "Checking" not in second, "finished work is not done again"
    assert "everything is background" in second
    assert (folder / "last.pt").stat().st_mtime_ns == written


def test_what_a_kill_after_the_last_checkpoint_leaves_undone_is_done_by_a_resume(
    cohort: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert run(cohort, folder) == 0
    before = {name: (folder / name).read_bytes() for name in ("metrics.csv", "summary.json")}
    names = {path.name for path in folder.iterdir()}
    (folder / "metrics.csv").write_bytes(before["metrics.csv"].splitlines(keepends=True)[0])
    (folder / "summary.json").unlink()
    (folder / f".{'0' * 32}.tmp.summary.json").write_bytes(b"{")
    assert run(cohort, folder, "--resume") == 0
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert {path.name for path in folder.iterdir()} == names


def test_an_unfinished_score_table_is_shown_for_the_last_epoch_without_a_best(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.training.progress import Progress

    monkeypatch.setattr(Progress, "is_better", lambda self, score: False)
    assert run(cohort, tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["best"] is None


def test_a_run_in_the_folder_is_not_overwritten(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.csv").write_text("epoch\n")
    assert run(cohort, tmp_path) == 2
    assert "there is a run in this folder" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_starts_again_and_says_so(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_text("{}")
    assert run(cohort, tmp_path, "--resume") == 0
    assert f"no checkpoint to resume from in {tmp_path}" in capsys.readouterr().out


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {name: name.encode() for name in ("best.pt", "last.pt", "last.previous.pt")}
    for name in content:
        (tmp_path / name).write_bytes(content[name])
    assert run(cohort, tmp_path, "--resume") == 3
    told = capsys.readouterr().err
    assert all(f"{name}: " in told for name in content), told
    (tmp_path / LOCK_NAME).unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == content


def test_other_settings_are_refused_on_resume(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cohort, tmp_path) == 0
    assert run(cohort, tmp_path, "--resume", "--set=training.loss=dice") == 2
    assert "training.loss: 'cross_entropy' -> 'dice'" in capsys.readouterr().err
    assert run(cohort, tmp_path, "--resume", "--preset=quick") == 2
    assert "preprocessing.spacing_mm: None -> 2.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--set=training.max_epoch=3", "Did you mean training.max_epochs"),
        ("--preset=quik", "Did you mean quick"),
        ("--device=cuda:7", "--device cuda:7: there is no such device"),
        ('--set=network.settings={"num_filter": 2}', "num_filters"),
        ('--set=network.name="UNet"', "UNet3D"),
    ],
)
def test_wrong_settings_end_with_2(
    cohort: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    message: str,
) -> None:
    assert run(cohort, tmp_path / "run", option) == 2
    assert message in capsys.readouterr().err


def test_wrong_data_end_with_3_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = make_cohort(tmp_path / "cohort", num_cases=2)
    (cohort.parent / "case_000" / "case_000_t1.nii.gz").unlink()
    (cohort.parent / "case_001" / "case_001_t2.nii.gz").write_bytes(b"")
    assert run(cohort, tmp_path / "run") == 3
    table = "".join(capsys.readouterr().out.split())
    assert "case_000" in table, "every problem is listed, not only the first"
    assert "case_001" in table
    assert not (tmp_path / "run").exists()


def test_a_file_lost_after_the_check_is_still_a_case_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = make_cohort(tmp_path / "cohort", num_cases=2)
    (cohort.parent / "case_001" / "case_001_t1.nii.gz").write_bytes(b"")
    monkeypatch.setattr("pipeline.data.checking.check_visibly", lambda *_, **__: [])
    assert run(cohort, tmp_path / "run") == 3
    message = capsys.readouterr().err
    assert "case_001" in message
    assert "case_001_t1.nii.gz" in message


def test_a_batch_of_cases_of_several_sizes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = []
    for number, size in enumerate((16, 16, 24)):
        case = make_case(tmp_path, f"case_{number}", shape=(size, 16, 16), fold=min(number, 1))
        entries.append(datalist_entry(case, tmp_path))
    entries[1]["fold"] = 1
    cohort = write_datalist(tmp_path / "sizes.json", {"training": entries})
    assert run(cohort, tmp_path / "run", "--set=training.batch_size=2") == 2
    message = capsys.readouterr().err
    assert "training.batch_size: 2 cases can be stacked only if all have one size" in message
    assert "[(16, 16, 16), (24, 16, 16)]" in message


def test_a_folder_in_use_is_refused_with_4(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked_folder(tmp_path):
        assert run(cohort, tmp_path) == 4
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err


def test_a_place_that_is_no_folder_is_refused_with_4_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "no list.json", tmp_path / "file" / "run") == 4
    assert "file: expected a folder; found a file" in capsys.readouterr().err


def test_settings_come_from_preset_then_file_then_assignments(cohort: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.json"
    config.write_text('{"training": {"learning_rate": 0.5, "batch_size": 2}}')
    options = (f"--config={config}", "--set=training.learning_rate=1e-4", "--seed=7")
    assert run(cohort, tmp_path / "run", *options) == 0
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["training"]["learning_rate"] == 1e-4
    assert settings["training"]["batch_size"] == 2
    assert settings["seed"] == 7


def test_a_finished_run_makes_masks_as_it_was_told(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cohort, tmp_path / "run") == 0
    assert run(cohort, tmp_path / "run", "--resume", "--set=inference.flips=true") == 2
    assert "inference.flips: False -> True" in capsys.readouterr().err


def test_init_weights_from_a_checkpoint(cohort: Path, tmp_path: Path) -> None:
    assert run(cohort, tmp_path / "first") == 0
    frozen = "--set=training.learning_rate=1e-30"
    weights = f"--init-weights={tmp_path / 'first' / 'last.pt'}"
    assert run(cohort, tmp_path / "second", weights, frozen) == 0
    first, second = (
        load_checkpoint(tmp_path / name / "last.pt")["weights"] for name in ("first", "second")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_bring_along_whom_they_have_seen(cohort: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(cohort, first) == 0
    weights = f"--init-weights={first / 'best.pt'}"
    assert run(cohort, second, "--fold=1", weights) == 0
    seen, both = (load_checkpoint(each / "best.pt")["trained_on"] for each in (first, second))
    assert set(seen) < set(both)
    every = [f"case_{number:03d}" for number in range(4)]
    assert set(both) == {subject_digest(case) for case in every}
    # A resumed run does not forget.
    assert run(cohort, second, "--fold=1", "--resume", "--set=training.max_epochs=2") == 0
    assert load_checkpoint(second / "last.pt")["trained_on"] == both


def test_init_weights_of_another_network_are_refused(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cohort, tmp_path / "first") == 0
    larger = '--set=network.settings={"num_levels": 2, "num_filters": 3}'
    weights = f"--init-weights={tmp_path / 'first' / 'best.pt'}"
    assert run(cohort, tmp_path / "second", weights, larger) == 2
    assert "made by another network" in capsys.readouterr().err


def test_init_weights_of_another_modality_order_are_refused(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cohort, tmp_path / "first") == 0
    document = json.loads(cohort.read_text())
    document["modality"] = ["t1", "flair", "t1ce", "t2"]
    other = cohort.with_name("other_order.json")
    other.write_text(json.dumps(document))
    weights = f"--init-weights={tmp_path / 'first' / 'best.pt'}"
    assert run(other, tmp_path / "second", weights) == 3
    message = capsys.readouterr().err
    assert "['flair', 't1', 't1ce', 't2']" in message
    assert "['t1', 'flair', 't1ce', 't2']" in message


def test_init_weights_from_a_keras_file(cohort: Path, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    network = build_network("UNet3D", in_channels=4, out_channels=4, num_levels=2, num_filters=2)
    path = tmp_path / "model2.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights")
        names = []
        convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv3d)]
        for number, layer in enumerate(convolutions):
            name = f"conv3d_{number}" if number else "conv3d"
            names.append(name)
            inner = group.create_group(name)
            kernel = torch.full_like(layer.weight, 0.01 * (number + 1)).permute(2, 3, 4, 1, 0)
            inner[f"{name}/kernel:0"] = kernel.detach().numpy()
            inner[f"{name}/bias:0"] = layer.bias.detach().numpy()
            inner.attrs["weight_names"] = [f"{name}/kernel:0", f"{name}/bias:0"]
        group.attrs["layer_names"] = names
    options = (f"--init-weights={path}", "--set=training.learning_rate=1e-30")
    assert run(cohort, tmp_path / "run", *options) == 0
    weights = load_checkpoint(tmp_path / "run" / "last.pt")["weights"]
    first = next(value for name, value in weights.items() if name.endswith("weight"))
    assert torch.equal(first, torch.full_like(first, 0.01))
    # Whom the article's network has seen, nobody can say.
    assert load_checkpoint(tmp_path / "run" / "last.pt")["trained_on"] is None


def test_an_end_that_is_past_without_weights_is_refused(
    cohort: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = ("--set=validation.every_epochs=null", "--set=training.max_epochs=3")
    finish = TrainingRun._finish_epoch

    def stop_after_two(self: TrainingRun) -> None:
        finish(self)
        if self.progress.num_epochs_done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_finish_epoch", stop_after_two)
        assert run(cohort, tmp_path / "run", *options) == 75
    shorter = "--set=training.max_epochs=2"
    assert run(cohort, tmp_path / "run", *options[:1], "--resume", shorter) == 2
    assert "has 2 epochs behind it, and keeps best.pt at its end only" in capsys.readouterr().err
    assert run(cohort, tmp_path / "run", *options, "--resume") == 0
    assert (tmp_path / "run" / "best.pt").exists()


@pytest.mark.slow
def test_sigterm_ends_with_75_and_resumes(cohort: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.train", str(cohort), *TINY]
    command += ["--output-dir", str(tmp_path / "run"), "--set=training.max_epochs=5000"]
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "metrics.csv").exists():
            assert time.monotonic() < deadline, (tmp_path / "output").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 75
    assert "--resume" in (tmp_path / "output").read_text()
    done = load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["counters"]["history"][-1]
    enough = f"--set=training.max_epochs={done['epoch'] + 1}"
    assert run(cohort, tmp_path / "run", "--resume", enough) == 0


def test_nonfinite_voxels_are_refused_and_taken_for_0_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = make_cohort(tmp_path / "cohort", num_cases=4)
    path = cohort.parent / "case_002" / "case_002_t1.nii.gz"
    volume = np.asarray(nib.load(path).dataobj).astype(np.float32)
    volume[5, 5, 5] = np.inf
    save_nifti(path, volume)
    assert run(cohort, tmp_path / "refused") == 3
    assert "--mask-nonfinite" in capsys.readouterr().out
    assert run(cohort, tmp_path / "masked", "--mask-nonfinite") == 0
    assert run(cohort, tmp_path / "masked", "--resume", "--set", "training.max_epochs=2") == 0
    options = ("--resume", "--set", "loading.mask_nonfinite=false")
    assert run(cohort, tmp_path / "masked", *options) == 2
    assert "loading.mask_nonfinite: True -> False" in capsys.readouterr().err


def test_what_was_found_good_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = make_cohort(tmp_path / "cohort", num_cases=4)
    monkeypatch.setattr("pipeline.data.file_state.SETTLED_NS", 0)
    asked: list[Path | None] = []
    check = checking.check_visibly

    def note(*arguments: Any, **options: Any) -> Any:
        asked.append(options["digests"])
        return check(*arguments, **options)

    monkeypatch.setattr(checking, "check_visibly", note)
    digests = tmp_path / "digests.json"
    assert run(cohort, tmp_path / "run", "--digests", str(digests)) == 0
    assert asked == [digests]
    assert digests.is_file()


def test_without_validation_the_cases_of_the_fold_are_not_even_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = make_cohort(tmp_path / "cohort", num_cases=4)
    entries = json.loads(cohort.read_text())["training"]
    for entry in entries:
        if entry["fold"] == 0:
            for key in ("flair", "seg"):
                (cohort.parent / entry[key]).write_bytes(b"not an image")
    assert run(cohort, tmp_path / "validated") == 3
    folder = tmp_path / "run"
    assert run(cohort, folder, "--set=validation.every_epochs=null") == 0
    said = capsys.readouterr().out
    assert "best.pt (last epoch)" in said
    assert "everything is background" not in said
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["best"], summary["last"], summary["epochs"]) == (None, None, 1)
    assert run(cohort, folder, "--set=validation.every_epochs=null", "--resume") == 0
    assert "This run is finished" in capsys.readouterr().out
    assert run(cohort, tmp_path / "other", "--set=validation.every_epochs=null", "--fold=7") == 3
    assert "no case of the training section is in fold 7" in capsys.readouterr().err


def test_patches_of_one_size_can_be_stacked_whatever_the_cases_have(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--set=preprocessing.brain_box=true",
        "--set=training.batch_size=2",
        "--set=augmentation.deformation.patch_size=[8, 8, 4]",
    )
    assert run(cohort, tmp_path / "run", *options) == 0
    assert (tmp_path / "run" / "best.pt").is_file()
    assert run(cohort, tmp_path / "odd", "--set=augmentation.deformation.patch_size=[8, 7, 8]") == 2
    assert "patch_size: expected multiples of 2" in capsys.readouterr().err
