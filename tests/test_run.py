"""A whole run: what it leaves, and that an interrupted one ends like one that was not."""

from __future__ import annotations

import csv
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_cohort
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config import build_settings
from pipeline.data.datalist import read_datalist
from pipeline.errors import DataError, NumericalError, RunStopped, SettingsError
from pipeline.model.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint
from pipeline.model.generations import PREVIOUS
from pipeline.model.trained import load_model
from pipeline.training import run as run_module
from pipeline.training.progress import Progress
from pipeline.training.run import METRICS, TrainingRun
from pipeline.training.schedule import rate_factor
from pipeline.training.start import train
from pipeline.training.stored import stored_state

# Four training and four validation cases: two epochs of four iterations.
TINY = {
    "fold": 0,
    "preprocessing": {"border_crop": [[1, 1], [1, 1], [1, 1]]},
    "network": {"settings": {"num_levels": 2, "num_filters": 2}},
    "training": {"max_epochs": 2, "accumulation_steps": 3, "schedule": "cosine"},
    "validation": {"num_pictures": 1},
}
OFTEN = {"checkpoint": {"every_iterations": 2}}
Runner = Callable[..., Progress]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("cohort"), num_cases=8)


@pytest.fixture
def runner(cohort: Path) -> Runner:
    def run(folder: Path, *, resume: bool = False, **changes: Any) -> Progress:
        folder.mkdir(exist_ok=True)
        return train(
            read_datalist(cohort),
            folder=folder,
            settings=build_settings(TINY, changes).model_dump(mode="json"),
            device=torch.device("cpu"),
            state=stored_state(folder, resume=resume),
        )

    return run


@pytest.fixture(scope="module")
def whole(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    settings = build_settings(TINY).model_dump(mode="json")
    train(read_datalist(cohort), folder=folder, settings=settings, device=torch.device("cpu"))
    return folder


def stop_after(monkeypatch: pytest.MonkeyPatch, iteration: int) -> None:
    """Send this process SIGTERM in the middle of that iteration's bookkeeping."""
    original = TrainingRun._after_iteration

    def after_iteration(self: TrainingRun, engine: Any) -> None:
        original(self, engine)
        if engine.state.iteration == iteration:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainingRun, "_after_iteration", after_iteration)


def assert_same(left: Any, right: Any, where: str = "checkpoint") -> None:
    """Equal to the last bit, tensors and plain values alike."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    else:
        assert left == right, where


def assert_same_run(left: Path, right: Path, *, apart_from: tuple[str, ...] = ()) -> None:
    assert (left / METRICS).read_bytes() == (right / METRICS).read_bytes()
    for name in (LAST, BEST):
        one, other = load_checkpoint(left / name), load_checkpoint(right / name)
        for content in (one, other):
            for stage in apart_from:
                content["settings"].pop(stage)
        assert_same(one, other, name)


def test_a_run_leaves_everything(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert {BEST, LAST, METRICS, "settings.json", "tensorboard"} <= names
    assert not [name for name in names if ".tmp." in name]
    content = load_checkpoint(whole / LAST)
    assert content["header"]["modality"] == ["flair", "t1", "t1ce", "t2"]
    assert content["progress"]["counters"]["iteration"] == 8
    lines = (whole / METRICS).read_text().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("epoch,iteration,learning_rate,training_loss,dice_mean,dice_WT")
    assert "background_article_dice" in lines[0]


def test_the_rates_that_are_told_are_those_of_the_steps(whole: Path) -> None:
    settings = build_settings(TINY).training
    assert settings.warmup_fraction == 0
    # A step after three iterations and at the end of an epoch: the epochs end with the second and
    # the fourth.
    expected = [
        settings.learning_rate * rate_factor(step, schedule="cosine", num_steps=4, num_warmup=0)
        for step in (1, 3)
    ]
    rows = csv.DictReader((whole / METRICS).read_text().splitlines())
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(expected)
    events = EventAccumulator(str(whole / "tensorboard")).Reload()
    first = events.Scalars("training/learning_rate")[0].value
    assert first == pytest.approx(settings.learning_rate)


def test_masks_of_a_validation_are_made_in_the_windows_of_the_run(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    build = run_module.build_evaluator

    def noting(*arguments: Any, **options: Any) -> Any:
        found.append((options["window"], options["divisor"]))
        return build(*arguments, **options)

    monkeypatch.setattr(run_module, "build_evaluator", noting)
    for name, window in (("windows", [8, 8, 8]), ("auto", "auto")):
        runner(tmp_path / name, inference={"window": window})
    assert found == [([8, 8, 8], 2), (None, 2)]


# torch's compiler makes an instance of each autograd function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_network_is_the_same_network(
    runner: Runner, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    compile_module = torch.nn.Module.compile

    def compile_eagerly(self: torch.nn.Module) -> None:
        compiled.append(self)
        compile_module(self, backend="eager")  # the same graph, without a C++ compiler

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    runner(tmp_path / "run", training={"torch_compile": True})
    assert len(compiled) == 1
    found, expected = (
        load_checkpoint(folder / LAST)["weights"] for folder in (tmp_path / "run", whole)
    )
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, rtol=0, atol=1e-4)


# 4 is the end of an epoch before its validation; accumulation is open after 1, 2 and 5.
@pytest.mark.parametrize("iteration", [1, 2, 3, 4, 5, 7])
def test_resumed_equals_uninterrupted(
    runner: Runner, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iteration: int
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, iteration)
        with pytest.raises(RunStopped, match=f"SIGTERM after iteration {iteration} of 8"):
            runner(tmp_path / "run")
    runner(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_resumed_equals_uninterrupted_with_workers(
    runner: Runner, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = {"loading": {"num_workers": 2}}
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(RunStopped, match="iteration 3"):
            runner(tmp_path / "run", **workers)
    runner(tmp_path / "run", resume=True, **workers)
    # Neither the interruption nor the number of workers may show, except in the settings.
    assert_same_run(tmp_path / "run", whole, apart_from=("loading",))


def test_resumed_from_an_earlier_checkpoint_equals_uninterrupted(
    runner: Runner, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after kill -9: two iterations are lost with the process, and done again."""

    class KilledError(Exception):
        pass

    def killed(self: TrainingRun, engine: Any) -> None:
        original(self, engine)
        if engine.state.iteration == 7:
            raise KilledError

    original = TrainingRun._after_iteration
    often = {"checkpoint": {"every_iterations": 5}}
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_after_iteration", killed)
        with pytest.raises(KilledError):
            runner(tmp_path / "run", **often)
    assert load_checkpoint(tmp_path / "run" / LAST)["progress"]["counters"]["iteration"] == 5
    runner(tmp_path / "run", resume=True, **often)
    assert_same_run(tmp_path / "run", whole, apart_from=("checkpoint",))


def damage(path: Path, kind: str) -> None:
    data = bytearray(path.read_bytes())
    # A weight: in the padding between the parts, a bit has no meaning.
    biases = [value for value in load_checkpoint(path)["weights"].values() if value.ndim == 1]
    data[data.index(biases[0].numpy().tobytes())] ^= 1
    path.unlink()
    if kind != "deleted":
        path.write_bytes(data if kind == "flipped" else data[: len(data) // 2])


class KilledError(Exception):
    """Ends a run as kill -9 does: nothing is saved."""


@pytest.fixture(scope="module")
def killed(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died in iteration 7: `last` is from 6; `best` and the one before last from 4."""
    folder = tmp_path_factory.mktemp("killed")
    original = TrainingRun._after_iteration

    def after_iteration(self: TrainingRun, engine: Any) -> None:
        if engine.state.iteration == 7:
            raise KilledError
        original(self, engine)

    settings = build_settings(TINY, OFTEN).model_dump(mode="json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "_after_iteration", after_iteration)
        with pytest.raises(KilledError):
            train(
                read_datalist(cohort), folder=folder, settings=settings, device=torch.device("cpu")
            )
    return folder


@pytest.mark.parametrize("kind", ["flipped", "truncated", "deleted"])
@pytest.mark.parametrize(
    ("damaged", "used"), [((LAST,), PREVIOUS), ((LAST, BEST), PREVIOUS), ((LAST, PREVIOUS), BEST)]
)
def test_a_damaged_last_goes_on_from_an_older_one_and_equals_uninterrupted(
    runner: Runner,
    whole: Path,
    killed: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    damaged: tuple[str, ...],
    used: str,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    for name in damaged:
        damage(folder / name, kind)
    os.utime(folder / used, (0, 0))  # the clock was set back
    runner(folder, resume=True, **OFTEN)
    remark = f"The run goes on from {used}, the newest whole checkpoint, after iteration 4"
    assert caplog.text.count(remark) == 1
    assert_same_run(folder, whole, apart_from=("checkpoint",))
    assert load_checkpoint(folder / PREVIOUS)["progress"]["counters"]["iteration"] == 8


def test_a_finished_run_whose_last_is_lost_gets_it_back_from_its_best(
    runner: Runner, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    newest = load_checkpoint(folder / BEST)["progress"]["counters"]["iteration"]
    assert newest == 8, "the last epoch was the best: nothing is left to train"
    (folder / LAST).unlink()
    runner(folder, resume=True)
    assert_same_run(folder, whole)


def test_where_no_checkpoint_is_whole_the_run_does_not_begin_anew(
    runner: Runner, killed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    for name in (LAST, PREVIOUS, BEST):
        damage(folder / name, "deleted")
    with pytest.raises(DataError, match=r"(?s)last\.pt.*last\.previous\.pt.*best\.pt: unusable-ch"):
        runner(folder, resume=True)
    with pytest.raises(SettingsError, match="there is a run in this folder"):
        runner(folder)
    assert len((folder / METRICS).read_text().splitlines()) == 2, "its history is still there"


def test_a_signal_while_a_checkpoint_is_written(
    runner: Runner, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.fsync
    num_calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal num_calls
        num_calls += 1
        # 1 and 2 are settings.json and its folder, 3 and 4 the checkpoint of iteration 2.
        if num_calls == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(RunStopped, match="SIGUSR1 after iteration 2 of 8"):
            runner(tmp_path / "run", **OFTEN)
    runner(tmp_path / "run", resume=True, **OFTEN)
    assert_same_run(tmp_path / "run", whole, apart_from=("checkpoint",))


def test_a_signal_during_validation_leaves_the_epoch_open(
    runner: Runner, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run_module.CaseScores._score_own_grid

    def score(self: Any, engine: Any) -> None:
        original(self, engine)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.CaseScores, "_score_own_grid", score)
        with pytest.raises(RunStopped, match="SIGTERM after iteration 4 of 8"):
            runner(tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / LAST)["progress"]["counters"]["history"] == []
    runner(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_a_finished_run_is_not_trained_again(runner: Runner, whole: Path) -> None:
    before = (whole / LAST).stat().st_mtime_ns
    progress = runner(whole, resume=True)
    assert progress.num_epochs_done == 2
    assert (whole / LAST).stat().st_mtime_ns == before


def test_a_finished_run_goes_on_with_more_epochs(
    runner: Runner, tmp_path: Path, whole: Path
) -> None:
    constant = {"training": {"schedule": "constant"}}
    runner(tmp_path / "run", **constant)
    longer = {"training": {"schedule": "constant", "max_epochs": 3}}
    runner(tmp_path / "run", resume=True, **longer)
    runner(tmp_path / "at once", **longer)
    # Only the stored settings of the best epoch tell that the end was once set earlier.
    assert_same_run(tmp_path / "run", tmp_path / "at once", apart_from=("training",))


def test_early_stopping_ends_the_run_and_stays_ended(runner: Runner, tmp_path: Path) -> None:
    # A rate of practically nothing: no validation is better than the first.
    still = {"training": {"max_epochs": 9, "early_stopping": 2, "learning_rate": 1e-12}}
    assert runner(tmp_path / "run", **still).num_epochs_done == 3
    assert runner(tmp_path / "run", resume=True, **still).num_epochs_done == 3


def test_a_loss_that_is_no_number_leaves_the_checkpoints(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return logits.mean() * (float("nan") if len(calls) == 6 else 1.0)

    monkeypatch.setattr(run_module, "build_loss", lambda name, **_: loss)
    with pytest.raises(NumericalError, match=r"iteration 6: the loss is nan for .*case_00"):
        runner(tmp_path / "run")
    content = load_checkpoint(tmp_path / "run" / LAST)
    assert content["progress"]["counters"]["iteration"] == 4
    assert all(torch.isfinite(value).all() for value in content["weights"].values())


def test_a_run_is_not_overwritten(runner: Runner, whole: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is a run in this folder.*--resume"):
        runner(whole)


def test_other_data_are_refused_on_resume(whole: Path, tmp_path: Path) -> None:
    other = read_datalist(make_cohort(tmp_path, num_cases=6))
    state = stored_state(whole, resume=True)
    with pytest.raises(DataError, match="changed-data"):
        train(
            other,
            folder=whole,
            settings=build_settings(TINY).model_dump(mode="json"),
            device=torch.device("cpu"),
            state=state,
        )


def save_for_ever(folder: Path, content: dict[str, Any]) -> None:
    number = 0
    while True:
        number += 1
        for name in (LAST, BEST):
            save_checkpoint(folder / name, {**content, "settings": {"number": number}})


def test_killed_while_saving_leaves_whole_checkpoints(whole: Path, tmp_path: Path) -> None:
    content = load_checkpoint(whole / LAST)
    # As large as the article's network with Adam's state, so that the kill hits the writing.
    content["weights"] = {"weight": torch.zeros(7_000_000)}
    for name in (LAST, BEST):
        save_checkpoint(tmp_path / name, content)
    for attempt in range(20):
        before = (tmp_path / BEST).stat().st_mtime_ns
        process = multiprocessing.get_context("fork").Process(
            target=save_for_ever, args=(tmp_path, content)
        )
        process.start()
        deadline = time.monotonic() + 60
        while (tmp_path / BEST).stat().st_mtime_ns == before:
            assert time.monotonic() < deadline, "nothing is being saved: nothing would be tested"
            time.sleep(0.001)
        # It saves one file after the other without a pause: any moment is one of writing.
        time.sleep(0.005 * attempt)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        for name in (LAST, BEST):
            assert load_checkpoint(tmp_path / name)["settings"]["number"] >= 1
    assert list(tmp_path.glob(".*.tmp.*")), "no kill hit the writing: nothing was tested"


AVERAGED = {
    "training": {"ema_decay": 0.5, "accumulation_steps": 3},
    "network": {"outputs": "regions", "settings": {"num_levels": 3, "deep_supervision": 1}},
}


def test_averaged_weights_are_what_is_validated_and_kept(runner: Runner, tmp_path: Path) -> None:
    progress = runner(tmp_path / "run", **AVERAGED)
    content = load_checkpoint(tmp_path / "run" / LAST)
    trained = content["progress"]["trained_weights"]
    assert any(not torch.equal(content["weights"][name], trained[name]) for name in trained)
    assert content["network"]["regions"] == [[1, 2, 3], [1, 3], [3]]
    model = load_model(tmp_path / "run" / LAST)
    assert model.scores["dice_mean"] == progress.history[-1]["dice_mean"]


def test_a_resumed_run_goes_on_with_trained_and_averaged_weights(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner(tmp_path / "whole", **AVERAGED)
    with monkeypatch.context() as patched:
        stop_after(patched, 6)
        with pytest.raises(RunStopped, match="after iteration 6"):
            runner(tmp_path / "parts", **AVERAGED)
    runner(tmp_path / "parts", resume=True, **AVERAGED)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_without_validation_the_last_state_is_the_model(runner: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    progress = runner(folder, validation={"every_epochs": None})
    assert progress.best_score is None
    assert progress.num_epochs_done == 2
    best, last = (load_checkpoint(folder / name) for name in (BEST, LAST))
    assert_same(best["weights"], last["weights"])
    assert "dice" not in (folder / METRICS).read_text()


def test_without_validation_and_fold_all_are_trained_on(runner: Runner, tmp_path: Path) -> None:
    runner(tmp_path / "run", fold=None, validation={"every_epochs": None})
    content = load_checkpoint(tmp_path / "run" / LAST)
    assert content["progress"]["counters"]["iteration"] == 16
    assert len(content["trained_on"]) == 8
