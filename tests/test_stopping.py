"""Kills and signals: nothing half-written under a final name, a clear exit code, no traceback."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from conftest import make_cohort
from models import save_model
from prediction_files import write_prediction

from pipeline import evaluate, export, infer
from pipeline.bundle import conversion
from pipeline.bundle import export as exporting
from pipeline.cli import LOG_NAME, main_of, new_parser, open_log
from pipeline.data import files
from pipeline.data.lock import locked_folder
from pipeline.signals import RESEND_S, STOP_SIGNALS, Interrupted, StopRequest, raised_signals

TESTS = Path(__file__).parent
Captured = pytest.CaptureFixture[str]


def send(number: int) -> None:
    os.kill(os.getpid(), number)  # to the own process: handled before the next line


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_inference_killed_three_times(tmp_path: Path) -> None:
    save_model(tmp_path / "run")
    (tmp_path / "data").mkdir()
    make_cohort(tmp_path / "data", num_cases=4)
    command = [sys.executable, TESTS / "killed_inference.py", tmp_path, "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("3 kills in ")


# ---- Signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_ends_any_verb_with_one_line(number: signal.Signals, capsys: Captured) -> None:
    before = [signal.getsignal(each) for each in STOP_SIGNALS]

    def work(_: argparse.Namespace) -> None:
        send(number)
        raise AssertionError("the signal was missed")

    assert main_of(new_parser("verb", ""), work, []) == 75
    message = f"stopped by {number.name}; no file is half-written. Repeat the command."
    assert capsys.readouterr().err == f"RunStopped: {message}\n"
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_no_exception_handler_of_a_library_holds_it_up() -> None:
    def take_for_an_error() -> None:
        with raised_signals(), suppress(Exception):
            send(signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM"):
        take_for_an_error()


def test_a_second_signal_has_its_usual_effect() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))

    def stop_twice() -> None:
        with raised_signals(), ExitStack() as stack:
            stack.callback(send, signal.SIGTERM)
            send(signal.SIGUSR1)

    try:
        with pytest.raises(Interrupted, match="SIGUSR1"):
            stop_twice()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


class Last:
    """Does something in its destructor, where Python drops what is raised."""

    def __init__(self, last: Callable[[], None]) -> None:
        self.last = last

    def __del__(self) -> None:
        self.last()


def test_a_signal_that_python_dropped_is_sent_once_more() -> None:
    before = sys.unraisablehook

    def lose_it() -> None:
        with raised_signals():
            doomed = Last(lambda: send(signal.SIGTERM))
            del doomed
            time.sleep(60)

    with pytest.raises(Interrupted, match="SIGTERM"):
        lose_it()
    assert sys.unraisablehook is before


def test_a_signal_that_was_dropped_at_the_end_does_not_come_after_it() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    with raised_signals():
        doomed = Last(lambda: send(signal.SIGTERM))
        del doomed
    time.sleep(10 * RESEND_S)
    signal.signal(signal.SIGTERM, before)
    assert received == []


@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
def test_other_errors_that_python_drops_are_told_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(dropped.exc_type))
    with raised_signals():
        doomed = Last([].clear)
        doomed.last = lambda: [][0]
        del doomed
    assert told == [IndexError]


def test_what_is_ignored_stays_ignored() -> None:
    """As in jobs that a script starts in the background: Ctrl-C is not meant for them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with raised_signals():
            send(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_that_may_not_handle_signals_changes_nothing() -> None:
    done: list[bool] = []

    def work() -> None:
        with raised_signals():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_a_run_that_stops_by_itself_is_stopped_at_once_by_a_second_signal() -> None:
    def stop_twice() -> None:
        with raised_signals(), StopRequest() as stop:
            send(signal.SIGUSR1)
            assert stop.signal_name == "SIGUSR1"
            send(signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM"):
        stop_twice()


def test_memory_and_the_stop_are_told_in_the_log(tmp_path: Path, capsys: Captured) -> None:
    def work(_: argparse.Namespace) -> None:
        with open_log(tmp_path):
            send(signal.SIGTERM)

    assert main_of(new_parser("verb", ""), work, []) == 75
    assert (tmp_path / LOG_NAME).read_text().endswith(" ERROR Interrupted: SIGTERM\n")

    def exhaust(_: argparse.Namespace) -> None:
        raise MemoryError

    assert main_of(new_parser("verb", ""), exhaust, ["--debug"]) == 4
    message = capsys.readouterr().err
    assert "Traceback" in message
    assert message.endswith(
        "ResourceError: out of memory. End other programs, or use a machine with more.\n"
    )


def test_sigterm_while_an_evaluation_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    listed = make_cohort(tmp_path, num_cases=2)
    for index in range(2):
        write_prediction(tmp_path / "masks", f"case_{index:03d}", "shifted")
    command = [str(tmp_path / "masks"), str(listed), "-o", str(tmp_path / "out")]
    assert evaluate.main(command) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    write_prediction(tmp_path / "masks", "case_000", "empty")
    _interrupt_after(monkeypatch, num_files=2)
    assert evaluate.main(command) == 75
    assert "stopped by SIGTERM; no file is half-written" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def _interrupt_after(monkeypatch: pytest.MonkeyPatch, *, num_files: int) -> None:
    """Send SIGTERM when so many temporary files are on the disk."""
    write, written = files._write_and_sync, []

    def write_and_stop(path: Path, content: bytes) -> None:
        write(path, content)
        written.append(path)
        if len(written) == num_files:
            send(signal.SIGTERM)

    monkeypatch.setattr(files, "_write_and_sync", write_and_stop)


def test_sigterm_while_a_bundle_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    save_model(tmp_path / "run")
    (tmp_path / "bundles").mkdir()
    _interrupt_after(monkeypatch, num_files=9)
    command = [str(tmp_path / "run"), "-o", str(tmp_path / "bundles" / "bundle")]
    assert export.main(command) == 75
    assert "stopped by SIGTERM; no file is half-written" in capsys.readouterr().err
    assert names_in(tmp_path / "bundles") == []


def test_sigterm_in_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "run")
    (tmp_path / "bundles").mkdir()

    def verify(folder: Path, *_: object, **__: object) -> None:
        assert (folder / "SHA256SUMS").is_file()
        send(signal.SIGTERM)

    monkeypatch.setattr(exporting, "verify_bundle", verify)
    assert export.main([str(tmp_path / "run"), "-o", str(tmp_path / "bundles" / "b")]) == 75
    assert names_in(tmp_path / "bundles") == []


def _slow(*_: object) -> bytes:
    """Stand in for a conversion, in the process of its own that conversions have."""
    time.sleep(120)
    return b""


def test_a_conversion_is_ended_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conversion.CONVERTERS, "torchscript", _slow)
    timer = threading.Timer(5.0, send, [signal.SIGTERM])
    begun = time.monotonic()

    def convert() -> None:
        with raised_signals():
            timer.start()
            conversion.converted(network={"name": "UNet3D"}, weights=b"", formats=["torchscript"])

    with pytest.raises(Interrupted, match="SIGTERM"):
        convert()
    assert time.monotonic() - begun < 60  # the conversion takes 120 s


# ---- Folders ------------------------------------------------------------------------------------


def test_two_inferences_in_one_folder(tmp_path: Path, capsys: Captured) -> None:
    save_model(tmp_path / "run")
    listed = make_cohort(tmp_path, num_cases=1, num_folds=None)
    command = ["-m", str(tmp_path / "run"), "-o", str(tmp_path / "out"), str(listed)]
    with locked_folder(tmp_path / "out"):
        assert infer.main(command) == 4
    message = capsys.readouterr().err
    assert f"ResourceError: out: in use by process {os.getpid()}. Wait for it" in message
    assert names_in(tmp_path / "out") == ["run.lock"]


DROP_PRIVILEGES = """
import ctypes, importlib, json, os, sys
if os.geteuid() == 0:  # root may write anywhere, unless it gives that up (CAP_DAC_OVERRIDE)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    none = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        sys.exit(99)
for verb, *words in json.loads(sys.argv[1]):
    print(importlib.import_module(f"pipeline.{verb}").main(words))
"""


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_read(
    tmp_path: Path,
) -> None:
    """None of the files that are named exists: who complains of them has looked at them first."""
    sealed = tmp_path / "sealed"
    sealed.mkdir()
    commands = [
        ["infer", "-m", "nowhere.pt", "nowhere.json", "-o", str(sealed / "out")],
        ["evaluate", "nowhere", "nowhere.json", "-o", str(sealed / "out")],
        ["export", "nowhere.pt", "-o", str(sealed / "bundle")],
    ]
    sealed.chmod(0o500)
    command = [sys.executable, "-c", DROP_PRIVILEGES, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, check=False)
    sealed.chmod(0o700)
    if done.returncode == 99:
        pytest.skip("this process is root and cannot give that up")
    message = "sealed: cannot be written to. Choose a folder that can be written to."
    assert done.stderr == f"ResourceError: {message}\n" * 3
    assert done.stdout == "4\n" * 3
    assert names_in(sealed) == []


def test_a_file_in_place_of_a_folder(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").write_text("")
    command = ["-m", "nowhere.pt", "nowhere.json", "-o", str(tmp_path / "file" / "out")]
    assert infer.main(command) == 4
    assert "file: expected a folder; found a file." in capsys.readouterr().err
