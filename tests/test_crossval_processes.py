"""The processes of a cross-validation: their order, their signals, and how they may end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.crossvalidation import processes
from pipeline.crossvalidation.processes import Command, Job, run_jobs
from pipeline.errors import (
    DataError,
    NumericalError,
    PipelineError,
    ResourceError,
    RunStopped,
    SettingsError,
)
from pipeline.signals import STOP_SIGNALS, Interrupted, raised_signals

ROOT = Path(__file__).parents[1]
SECONDS = 60  # more than any step takes on a busy machine

# Ends with 75 some time after the first request to stop, its state saved; a second one ends it at
# once, without.
PATIENT = """
import sys, time
from pathlib import Path
from pipeline.signals import StopRequest, heed_parent, raised_signals
with raised_signals():
    heed_parent()
    with StopRequest() as stop:
        Path("ready").touch()
        while not stop.requested:
            time.sleep(0.01)
        time.sleep(1.5)
    Path("saved").write_text(stop.signal_name)
    sys.exit(75)
"""
STUBBORN = """
import signal, time
from pathlib import Path
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
Path("ready").touch()
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _python_for_verbs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first argument of a command is Python to run, in the place of a verb."""
    monkeypatch.chdir(tmp_path)

    def command_line(command: Command) -> list[str]:
        return [sys.executable, "-c", *command.arguments]

    monkeypatch.setattr(processes, "command_line", command_line)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def job(*sources: str, what: str = "fold 3: training") -> Job:
    def commands(device: str) -> list[Command]:
        return [Command("train", (source, device), what, "fold_3/log.txt") for source in sources]

    return commands


def append(text: str) -> str:
    return f"import sys; open('told', 'a').write({text!r} + sys.argv[1] + ' ')"


def send_when(path: Path, *numbers: int) -> threading.Thread:
    """Send signals to this process once `path` is there, the later ones a moment later."""

    def send() -> None:
        wait_for(path.exists)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.2)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_device_takes_one_job_after_the_other(tmp_path: Path) -> None:
    run_jobs([job(append("a1"), append("a2")), job(append("b1"))], devices=["cpu"])
    assert (tmp_path / "told").read_text() == "a1cpu a2cpu b1cpu "


def test_several_devices_work_at_the_same_time(tmp_path: Path) -> None:
    meet = """
import sys, time
from pathlib import Path
Path(sys.argv[1]).touch()
deadline = time.monotonic() + 60
while not (Path("x").exists() and Path("y").exists()):
    assert time.monotonic() < deadline
    time.sleep(0.01)
"""
    run_jobs([job(meet), job(meet), job(append("late"))], devices=["x", "y"])
    assert (tmp_path / "told").read_text() in ("latex ", "latey ")


def test_each_of_several_progress_bars_has_its_line(tmp_path: Path) -> None:
    position = "import os, sys; open(sys.argv[1], 'w').write(os.environ.get('TQDM_POSITION', '-'))"
    run_jobs([job(position), job(position)], devices=["x", "y"])
    assert [(tmp_path / name).read_text() for name in ("x", "y")] == ["0", "1"]
    run_jobs([job(position)], devices=["alone"])
    assert (tmp_path / "alone").read_text() == "-"


def test_more_devices_than_jobs_are_no_fault(tmp_path: Path) -> None:
    run_jobs([job(append("a"))], devices=["x", "y", "z"])
    assert (tmp_path / "told").read_text() == "ax "


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_passed_on_once_and_waited_for(number: signal.Signals, tmp_path: Path) -> None:
    thread = send_when(tmp_path / "ready", number)
    with pytest.raises(RunStopped, match=f"stopped by {number.name}; .* Repeat the command"):
        run_jobs([job(PATIENT, append("next")), job(append("other"))], devices=["cpu"])
    thread.join()
    assert (tmp_path / "saved").read_text() == number.name
    assert not (tmp_path / "told").exists()


# A parent in a group of its own, with one patient child.
PARENT = f"""
from pipeline.crossvalidation import processes
from pipeline.crossvalidation.processes import Command, run_jobs
import sys
processes.command_line = lambda command: [sys.executable, "-c", *command.arguments]
run_jobs([lambda _: [Command("train", ({PATIENT!r},), "fold 3: training")]], devices=["cpu"])
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", PARENT], start_new_session=True) as process:
        wait_for((tmp_path / "ready").exists)
        yield process


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_that_all_have_got_counts_once(
    number: signal.Signals, parent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    os.killpg(parent.pid, number)
    assert parent.wait(timeout=SECONDS) != 0
    assert (tmp_path / "saved").read_text() == number.name


def test_a_killed_parent_leaves_nothing_running(
    parent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    parent.kill()
    saved = tmp_path / "saved"
    wait_for(lambda: saved.exists() and saved.read_text() == "SIGTERM")


def test_a_second_signal_ends_what_does_not_end_by_itself(tmp_path: Path) -> None:
    begun = time.monotonic()
    thread = send_when(tmp_path / "ready", signal.SIGUSR1, signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM"), raised_signals():
        run_jobs([job(STUBBORN)], devices=["cpu"])
    thread.join()
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("exit_code", "error"),
    [
        (2, SettingsError),
        (3, DataError),
        (4, ResourceError),
        (5, NumericalError),
        (75, RunStopped),
    ],
)
def test_an_error_is_told_by_its_kind_with_the_log(
    exit_code: int, error: type[PipelineError], tmp_path: Path
) -> None:
    with pytest.raises(error, match=r"fold 3: training: ended as told above. .*fold_3/log.txt"):
        run_jobs([job(f"import sys; sys.exit({exit_code})", append("next"))], devices=["cpu"])
    assert not (tmp_path / "told").exists()


def test_a_bug_stays_a_bug() -> None:
    with pytest.raises(RuntimeError, match="fold 3: training: ended with code 1; see above"):
        run_jobs([job("import sys; sys.exit(1)")], devices=["cpu"])


def test_a_process_that_was_killed_is_short_of_memory_perhaps() -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(ResourceError, match="ended by SIGKILL, as where memory runs out"):
        run_jobs([job(kill)], devices=["cpu"])


def test_if_one_fails_the_others_save_their_state(tmp_path: Path) -> None:
    fail = """
import sys, time
from pathlib import Path
while not Path("ready").exists():
    time.sleep(0.01)
sys.exit(3)
"""
    with pytest.raises(DataError, match="ended as told above"):
        run_jobs([job(PATIENT), job(fail)], devices=["x", "y"])
    assert (tmp_path / "saved").read_text() == "SIGTERM"


def test_a_command_is_a_verb_of_this_project(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    run_jobs([lambda _: [Command("phantom", ("--help",), "what it does")]], devices=["cpu"])
    assert "usage: python -m pipeline.phantom" in capfd.readouterr().out
