"""What comes from outside while a run is prepared or trains: signals, kills, dead workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import make_cohort
from runs import TINY, output_of, start_training
from test_run import assert_same_run

from pipeline import train
from pipeline.data import checking, loaders
from pipeline.data.loading import LoadCase
from pipeline.training.handlers import LossWatch

TESTS = Path(__file__).parent
SECONDS = 60  # more than any step takes on a busy machine


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("cohort"), num_cases=12)


def run(cohort: Path, folder: Path, *options: str) -> int:
    one_epoch = "--set=training.max_epochs=1"
    return train.main([str(cohort), f"--output-dir={folder}", *TINY, one_epoch, *options])


def wait_until(condition: Callable[[], bool], process: ForkServerProcess, folder: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        told = output_of(folder).read_text() if output_of(folder).exists() else ""
        assert process.exitcode is None, told
        assert time.monotonic() < deadline, told
        time.sleep(0.01)


# ---- Before the first iteration -----------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_during_the_check_ends_with_75_and_leaves_nothing(
    cohort: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    original = checking.check_datalist

    def check(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checking, "check_datalist", check)
        assert run(cohort, tmp_path / "run") == 75
    assert f"stopped by {number.name}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_a_signal_while_caching_ends_with_75_within_a_case_and_the_command_can_be_repeated(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    original = LoadCase.__call__
    num_loaded = 0

    def load(self: LoadCase, case: Any) -> Any:
        nonlocal num_loaded
        num_loaded += 1
        if num_loaded == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # as long as a real case takes
        return original(self, case)

    with monkeypatch.context() as patch:
        patch.setattr(LoadCase, "__call__", load)
        assert run(cohort, tmp_path / "run") == 75
        at_the_end = num_loaded
        time.sleep(0.3)
    # Two threads: each may finish the case that it has; the other one is quicker here.
    assert num_loaded == at_the_end < 12, "no thread goes on behind the back of the command"
    assert not list((tmp_path / "run").glob("*.pt"))
    assert run(cohort, tmp_path / "run", *(["--resume"] if resume else [])) == 0


# ---- In a process of its own --------------------------------------------------------------------


def slow_iterations() -> None:
    """Make every iteration take at least a fifth of a second."""
    original = LossWatch._add

    def add(self: LossWatch, engine: Any) -> None:
        time.sleep(0.2)
        original(self, engine)

    LossWatch._add = add  # type: ignore[method-assign]


def endless_iterations() -> None:
    """Let the first iteration not end."""

    def add(_: LossWatch, __: Any) -> None:
        print("in the iteration", flush=True)
        time.sleep(10 * SECONDS)

    LossWatch._add = add  # type: ignore[method-assign]


def test_a_second_signal_stops_at_once(cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start_training(cohort, folder, before=endless_iterations)
    wait_until(
        lambda: output_of(folder).exists() and "in the iteration" in output_of(folder).read_text(),
        process,
        folder,
    )
    os.kill(process.pid, signal.SIGTERM)
    process.join(1)
    assert process.exitcode is None, "the first one waits for the end of the iteration"
    os.kill(process.pid, signal.SIGTERM)
    process.join(SECONDS)
    assert process.exitcode in (75, -signal.SIGTERM)


def start_with_workers(cohort: Path, folder: Path) -> tuple[ForkServerProcess, psutil.Process]:
    process = start_training(
        cohort,
        folder,
        "--set=loading.num_workers=2",
        "--set=training.max_epochs=500",
        before=slow_iterations,
    )
    main = psutil.Process(process.pid)
    wait_until(lambda: (folder / "last.pt").exists(), process, folder)
    wait_until(lambda: len(main.children()) == 2, process, folder)
    return process, main


def test_a_killed_worker_ends_with_4_and_says_why(cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start_training(
        cohort, folder, "--set=loading.num_workers=2", before=endless_iterations
    )
    wait_until(
        lambda: output_of(folder).exists() and "in the iteration" in output_of(folder).read_text(),
        process,
        folder,
    )
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    workers[0].kill()
    process.join(SECONDS)
    told = output_of(folder).read_text()
    assert process.exitcode == 4, told
    assert "a loader worker failed after iteration 0" in told
    assert "killed by signal: Killed" in told
    assert "--resume --set loading.num_workers=1" in told
    assert "Traceback" not in told
    psutil.wait_procs(workers, timeout=SECONDS)
    assert not any(worker.is_running() for worker in workers), "nobody is left behind"


def stop_oneself(_worker: int) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def stopped_workers() -> None:
    """Let workers be stopped at their start, and wait for them two seconds only."""
    loaders.WORKER_TIMEOUT_S = 2.0
    loaders.outlive_one_signal = stop_oneself


def test_a_stuck_worker_ends_with_4_within_a_time_limit(cohort: Path, tmp_path: Path) -> None:
    """As by SIGSTOP, a debugger, or a network share that does not answer."""
    folder = tmp_path / "run"
    process = start_training(cohort, folder, "--set=loading.num_workers=2", before=stopped_workers)
    wait_until(lambda: len(psutil.Process(process.pid).children()) == 2, process, folder)
    workers = psutil.Process(process.pid).children()
    process.join(SECONDS)
    told = output_of(folder).read_text()
    assert process.exitcode == 4, told
    assert "a loader worker failed after iteration" in told
    assert "DataLoader timed out after 2" in told
    assert "Traceback" not in told
    psutil.wait_procs(workers, timeout=SECONDS)
    assert not any(worker.is_running() for worker in workers), "nobody is left behind"


def test_a_signal_to_every_process_of_the_job_is_answered_by_the_run(
    cohort: Path, tmp_path: Path
) -> None:
    """As SLURM, systemd, timeout and Ctrl-C do: the workers last until the iteration is done."""
    folder = tmp_path / "run"
    process, main = start_with_workers(cohort, folder)
    for each in (*main.children(), main):
        each.send_signal(signal.SIGTERM)
    process.join(SECONDS)
    assert process.exitcode == 75, output_of(folder).read_text()
    assert "stopped by SIGTERM after iteration" in output_of(folder).read_text()


# ---- kill -9, again and again -------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_equals_one_that_is_not(
    cohort: Path, tmp_path: Path
) -> None:
    options = ("--set=training.max_epochs=6", "--set=checkpoint.every_iterations=3")
    start = time.monotonic()
    whole = start_training(cohort, tmp_path / "whole", *options)
    whole.join(SECONDS)
    assert whole.exitcode == 0, output_of(tmp_path / "whole").read_text()
    seconds = time.monotonic() - start
    folder = tmp_path / "run"
    for share in (0.2, 0.5, 0.6, 0.7):
        process = start_training(cohort, folder, "--resume", *options)
        process.join(share * seconds)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), output_of(folder).read_text()
    process = start_training(cohort, folder, "--resume", *options)
    process.join(SECONDS)
    assert process.exitcode == 0, output_of(folder).read_text()
    assert_same_run(folder, tmp_path / "whole")
    assert not list(folder.glob(".*.tmp.*")), "what the killed ones left is swept"


@pytest.mark.slow
def test_kills_within_each_phase_change_nothing(tmp_path: Path) -> None:
    command = [sys.executable, TESTS / "killed_training.py", tmp_path, "6"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("6 kills (4 aimed, 3 with loader workers) in ")
