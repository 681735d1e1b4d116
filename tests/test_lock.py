"""One run per folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.data.lock import LOCK_NAME, locked_folder
from pipeline.errors import ResourceError

HOLD = """
import sys
from pathlib import Path
from pipeline.data.lock import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""

HOLD_WITH_WORKER = """
import os, signal, sys
from pathlib import Path
from pipeline.data.lock import locked_folder
with locked_folder(Path(sys.argv[1])):
    if not os.fork():
        print("forked", flush=True)
    signal.pause()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `tmp_path / "run"` until it dies."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_the_folder_is_made_and_says_who_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "latest"
    with locked_folder(folder):
        assert (folder / LOCK_NAME).read_text() == f"process {os.getpid()}"


def test_another_process_is_kept_out_and_told_by_whom(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    message = f"run: in use by process {holder.pid}. Wait for it or choose another --output-dir"
    with pytest.raises(ResourceError, match=message), locked_folder(tmp_path / "run"):
        pass


def test_the_kernel_frees_the_lock_of_a_killed_process(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    holder.wait()
    with locked_folder(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_NAME).read_text() == f"process {os.getpid()}"


def test_a_killed_process_whose_workers_live_on_does_not_hold_the_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD_WITH_WORKER, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        with pytest.raises(ResourceError, match="in use by process"), locked_folder(tmp_path):
            pass
        process.kill()
        process.wait()
        try:
            with locked_folder(tmp_path):
                pass
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # the worker; it fails if there is none


def test_the_lock_is_freed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="training failed"), locked_folder(tmp_path):
        raise RuntimeError("training failed")
    with locked_folder(tmp_path):
        pass


def test_a_second_run_of_the_same_process_is_kept_out(tmp_path: Path) -> None:
    with (
        locked_folder(tmp_path),
        pytest.raises(ResourceError, match="in use by process"),
        locked_folder(tmp_path),
    ):
        pass


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = "run: cannot be written to: Not a directory. Choose another --output-dir"
    with pytest.raises(ResourceError, match=message), locked_folder(tmp_path / "file" / "run"):
        pass


def test_a_planted_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / LOCK_NAME).symlink_to(victim)
    with locked_folder(folder):
        pass
    assert victim.read_text() == "mine"
    assert not (folder / LOCK_NAME).is_symlink()
