"""A disk that is really full, wherever a file is written: exit 4, old files whole, nothing else."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_cohort
from models import UNET, save_model
from prediction_files import write_prediction

from pipeline import evaluate, export, infer
from pipeline.bundle import export as exporting
from pipeline.bundle.gate import Verification
from pipeline.cli import LOG_NAME, main_of, new_parser, open_log
from pipeline.data.files import replace_files
from pipeline.data.lock import locked_folder
from pipeline.errors import ResourceError
from pipeline.model.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.tensorboard import Board

LOG = logging.getLogger("pipeline.tests")
PAGE = 4096
CASES = 2
FULL = r"the disk is full: \d+ bytes needed, \d+ bytes free"

Limited = Callable[[int], AbstractContextManager[None]]


@contextmanager
def limited(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond `num_bytes`; Python ignores the signal that would end it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def filled(folder: Path, num_bytes: int) -> Iterator[None]:
    """Leave `num_bytes` of the disk that `folder` is on, rounded up to pages."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as stream:
        free = os.statvfs(folder).f_bavail * PAGE
        stream.write(bytes(free))
        stream.truncate(stream.tell() - -(-num_bytes // PAGE) * PAGE)
    try:
        yield
    finally:
        filler.unlink()


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB of its own; where this process may mount none, the test is skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here; the limit on file sizes is tested beside it")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(params=["limit", "tmpfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Limited]:
    """A folder, and a context in which a file in it can take only so many bytes."""
    if request.param == "limit":
        folder = tmp_path / "disk"
        folder.mkdir()
        return folder, limited
    folder = request.getfixturevalue("tmpfs")
    return folder, lambda num_bytes: filled(folder, num_bytes)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files in `folder` that are to stay as they are, by name."""
    passing = {LOG_NAME, "run.lock", "filler"}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in passing}


def test_the_checkpoint(disk: tuple[Path, Limited]) -> None:
    folder, full = disk
    save_model(folder)
    content = load_checkpoint(folder / "best.pt")
    before = contents(folder)
    larger = {**content, "weights": {"w": torch.rand(30_000)}}
    with full(PAGE), pytest.raises(ResourceError, match=rf"best\.pt: {FULL}"):
        save_checkpoint(folder / "best.pt", larger)
    assert contents(folder) == before
    assert load_checkpoint(folder / "best.pt")["network"]["num_filters"] == UNET["num_filters"]


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Two cases whose masks take some pages of a disk."""
    (tmp_path / "data").mkdir()
    return make_cohort(tmp_path / "data", num_cases=CASES, shape=(40, 40, 40))


def segment(tmp_path: Path, out: Path, *options: str) -> int:
    listed = str(tmp_path / "data" / "cohort.json")
    return infer.main(["-m", str(tmp_path / "run"), "-o", str(out), listed, *options])


def test_the_mask(
    disk: tuple[Path, Limited], cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, full = disk
    save_model(tmp_path / "run")
    assert segment(tmp_path, out, "--cases", "case_000") == 0
    before = contents(out)
    assert len(before["case_000_seg.nii.gz"]) > 2 * PAGE, "too small to be what fails"
    with full(PAGE):
        assert segment(tmp_path, out) == 4
    message = capsys.readouterr().err
    assert "ResourceError: case_001_seg.nii.gz: the disk is full: " in message
    assert "bytes needed" in message
    assert contents(out) == before
    assert segment(tmp_path, out) == 0
    assert contents(out).keys() > {"case_001_seg.nii.gz", "case_001.json"}


def test_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mask without its record is done again, because the record comes last."""
    (tmp_path / "data").mkdir()
    make_cohort(tmp_path / "data", num_cases=CASES)
    save_model(tmp_path / "run")
    out = tmp_path / "out"
    assert segment(tmp_path, out, "--cases", "case_000") == 0
    before = contents(out)
    # The seconds in it have more or fewer digits each time.
    with limited(len(before["case_000.json"]) - 50):
        assert segment(tmp_path, out) == 4
    assert "ResourceError: case_001.json: the disk is full: " in capsys.readouterr().err
    assert set(contents(out)) == {*before, "case_001_seg.nii.gz"}
    assert segment(tmp_path, out) == 0
    assert "1 cases segmented, 1 were finished before" in capsys.readouterr().out


def test_the_reports_of_an_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three files that belong together: none is of another evaluation than the others."""
    listed = make_cohort(tmp_path, num_cases=CASES)
    for index in range(CASES):
        write_prediction(tmp_path / "masks", f"case_{index:03d}", "shifted")
    command = [str(tmp_path / "masks"), str(listed), "-o", str(tmp_path / "out")]
    assert evaluate.main(command) == 0
    before = contents(tmp_path / "out")
    write_prediction(tmp_path / "masks", "case_000", "empty")
    with limited(max(map(len, before.values())) - PAGE // 4):
        assert evaluate.main(command) == 4
    assert "summary.json: the disk is full: " in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_files_that_belong_together_wait_for_a_name_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(ResourceError, match="b: cannot be written: Is a directory"):
        replace_files(tmp_path, {"a": b"new", "b": b"new"})
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("options", [[], ["--zip"]])
def test_the_bundle(
    disk: tuple[Path, Limited],
    tmp_path: Path,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, full = disk
    save_model(tmp_path / "run")
    proven = Verification("phantom", 8, ("background",), 0.0, {})
    monkeypatch.setattr(exporting, "verify_bundle", lambda *_, **__: proven)
    command = [str(tmp_path / "run"), "-o", str(folder / "bundle"), *options]
    # The largest of its files is a module of some 10 kB, and the zip is larger than any.
    with full(PAGE * (25 if options and full is limited else 2)):
        assert export.main(command) == 4
    assert "disk is full" in capsys.readouterr().err
    assert contents(folder) == {}


def test_a_line_of_the_log(tmp_path: Path) -> None:
    """The line that does not fit is not there in part, and the run does not go on without it."""

    def write_two() -> None:
        with open_log(tmp_path):
            LOG.info("the first")
            with limited((tmp_path / LOG_NAME).stat().st_size + 40):
                LOG.info("the second, %s", "x" * 100)

    with pytest.raises(ResourceError, match=r"log\.txt: cannot be written: the disk is full"):
        write_two()
    lines = (tmp_path / LOG_NAME).read_text().splitlines()
    assert lines[0].endswith("the first")
    assert [line for line in lines if "x" * 100 in line] == []
    assert lines[-1].endswith("Free some space or choose another folder.")


def test_what_went_wrong_is_told_though_the_log_has_no_room_for_it(tmp_path: Path) -> None:
    with limited(0), pytest.raises(ValueError, match="what went wrong"), open_log(tmp_path):
        raise ValueError("what went wrong")
    assert (tmp_path / LOG_NAME).read_bytes() == b""


def test_the_lock(tmp_path: Path) -> None:
    with (
        limited(0),
        pytest.raises(ResourceError, match=r"cannot be written to: File too large\. Free some"),
        locked_folder(tmp_path / "run"),
    ):
        pass
    with locked_folder(tmp_path / "run"):
        pass


def test_the_curves_end_a_run_and_do_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SummaryWriter writes in a thread of its own, which raises in ours a few scalars later."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # it dies of it, and says so

    def work(_: argparse.Namespace) -> None:
        with ExitStack() as stack:
            board = Board(tmp_path, first_iteration=0)
            stack.callback(board.close)
            stack.enter_context(limited(PAGE))
            for iteration in range(1, 10_000):
                board.add_iteration(iteration, loss=1.0, learning_rate=0.1)

    assert main_of(new_parser("verb", ""), work, []) == 4
    told = capsys.readouterr().err
    assert "ResourceError: tensorboard: the curves cannot be written: the disk is full." in told


OUTPUTS = {
    "buffered": "print('text' * 100)",
    "unbuffered": "print('text' * 100, flush=True)",
    "rich": "from pipeline.cli import console; console().print('text' * 100)",
}
COMMAND = """
import sys
from pipeline.cli import main_of, new_parser

def work(_):
    {}

sys.exit(main_of(new_parser("verb", ""), work, []))
"""


@pytest.mark.parametrize("how", OUTPUTS)
def test_a_full_disk_behind_the_output(how: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = _written_to(full.fileno(), how)
    assert done.returncode == 4
    assert done.stderr.startswith("ResourceError: a file or the output: the disk is full.")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("how", OUTPUTS)
def test_a_reader_of_the_output_that_ends_too_early(how: str) -> None:
    """As `| head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    done = _written_to(writer, how)
    os.close(writer)
    told = "ResourceError: what reads the output has ended before the command."
    assert (done.returncode, done.stderr) == (4, f"{told}\n")


def _written_to(descriptor: int, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND.format(OUTPUTS[how])]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    return subprocess.run(
        command,
        stdout=descriptor,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[1],
        check=False,
    )


def test_a_pipe_that_breaks_elsewhere_is_a_bug_of_ours() -> None:
    def work(_: argparse.Namespace) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    with pytest.raises(BrokenPipeError, match="Broken pipe"):
        main_of(new_parser("verb", ""), work, [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_any_other_file(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def work(_: argparse.Namespace) -> None:
        raise OSError(number, os.strerror(number), "/somewhere/else.tmp")

    assert main_of(new_parser("verb", ""), work, []) == 4
    assert "ResourceError: else.tmp: the disk is full." in capsys.readouterr().err


def test_an_error_of_another_kind_is_a_bug_of_ours() -> None:
    def work(_: argparse.Namespace) -> Any:
        raise OSError(errno.EINVAL, "not ours to explain")

    with pytest.raises(OSError, match="not ours to explain"):
        main_of(new_parser("verb", ""), work, [])
