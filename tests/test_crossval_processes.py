"""The processes of a cross-validation: their order, their signals, and how they may end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
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

SECONDS = 60  # more than any step takes on a busy machine

# Notes each signal that asks it to stop; ends with 75 some time after the first.
PATIENT = """
import signal, sys, time
from pathlib import Path
noted = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, _: noted.append(signal.Signals(number).name))
Path("ready").touch()
while not noted:
    time.sleep(0.01)
time.sleep(0.3)
Path("noted").write_text(" ".join(noted))
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

    def start(command: Command, *, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-I", "-c", *command.arguments]
        return subprocess.Popen(words, env={**os.environ, **environment})

    monkeypatch.setattr(processes, "start", start)


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
def test_a_signal_is_passed_on_once_and_waited_for(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_came_from_the_terminal", lambda _: False)
    thread = send_when(tmp_path / "ready", number)
    with pytest.raises(RunStopped, match=f"stopped by {number.name}; .* Repeat the command"):
        run_jobs([job(PATIENT, append("next")), job(append("other"))], devices=["cpu"])
    thread.join()
    assert (tmp_path / "noted").read_text() == number.name
    assert not (tmp_path / "told").exists()


def test_a_ctrl_c_that_all_have_got_is_not_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_came_from_the_terminal", lambda number: number == 2)
    sleep = "import time; open('ready', 'w'); time.sleep(0.5); open('slept', 'w')"
    thread = send_when(tmp_path / "ready", signal.SIGINT)
    with pytest.raises(RunStopped, match="stopped by SIGINT"):
        run_jobs([job(sleep, append("next"))], devices=["cpu"])
    thread.join()
    assert (tmp_path / "slept").exists()
    assert not (tmp_path / "told").exists()


def test_without_a_terminal_no_signal_came_from_one() -> None:
    code = (
        "import os, signal; os.setsid()\n"
        "from pipeline.crossvalidation.processes import _came_from_the_terminal as came\n"
        "assert not came(signal.SIGINT) and not came(signal.SIGTERM)"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


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
    assert (tmp_path / "noted").read_text() == "SIGTERM"


def test_a_command_is_a_verb_of_this_project(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    run_jobs([lambda _: [Command("phantom", ("--help",), "what it does")]], devices=["cpu"])
    assert "usage: python -m pipeline.phantom" in capfd.readouterr().out
