"""Whether a run has room is said before anything is cached; what would fit is not refused."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_cohort
from runs import TINY

from pipeline import train
from pipeline.config import build_settings
from pipeline.data.lock import locked_folder
from pipeline.errors import ResourceError
from pipeline.training import room
from pipeline.training.needs import Needs
from pipeline.training.room import require_disk, require_memory, require_usable

NEEDS = Needs(
    num_parameters=10,
    step_flop=1,
    step_bytes=9_000_000_000,
    new_step_bytes=8_000_000_000,
    checkpoint_bytes=5_000_000,
)
CPU = torch.device("cpu")


def settings_of(**changes: Any) -> dict[str, Any]:
    return build_settings(changes).model_dump(mode="json")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 100 kB: less than four checkpoints of the tests' network."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_too_small_for_the_checkpoints_is_refused_before_caching(
    cohort: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small_disk / "run"
    assert train.main([str(cohort), f"--output-dir={folder}", *TINY]) == 4
    told = capsys.readouterr()
    assert "run: not enough disk for the checkpoints: needed at least 0.1 MB more" in told.err
    assert "Loading dataset" not in told.err
    assert not list(folder.glob("*.pt"))


def test_a_step_too_large_for_the_memory_is_refused_before_caching(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch that no machine can hold; nothing is simulated."""
    options = (*TINY, "--set=training.batch_size=10000000")
    assert train.main([str(cohort), f"--output-dir={tmp_path / 'run'}", *options]) == 4
    told = capsys.readouterr()
    assert "not enough memory for a training step on this cpu: needed at least" in told.err
    assert "--set training.batch_size=5000000" in told.err
    assert "Loading dataset" not in told.err


def test_memory_that_just_suffices_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda _: NEEDS.new_step_bytes)
    require_memory(NEEDS, settings=settings_of(), device=CPU)
    monkeypatch.setattr(room, "free_bytes", lambda _: NEEDS.new_step_bytes - 1)
    with pytest.raises(ResourceError, match=r"needed at least 8\.00 GB, free 8\.00 GB"):
        require_memory(NEEDS, settings=settings_of(), device=CPU)


def test_half_precision_on_a_gpu_may_need_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: no GPU is asked."""
    monkeypatch.setattr(room, "free_bytes", lambda _: NEEDS.new_step_bytes // 2)
    cuda = torch.device("cuda")
    require_memory(NEEDS, settings=settings_of(), device=cuda)
    with pytest.raises(ResourceError, match=r"on this cuda: .*--set training\.amp=true"):
        require_memory(NEEDS, settings=settings_of(training={"amp": False}), device=cuda)


@pytest.mark.parametrize(
    ("epochs", "every", "there", "enough"),
    [
        (9, None, 0, 20_000_000),  # best, last, the one before it, one being written
        (1, None, 0, 10_000_000),  # best and last
        (1, 5, 0, 20_000_000),
        (9, None, 5_000_000, 15_000_000),  # one is there already
    ],
)
def test_the_checkpoints_that_will_be_there_are_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
    every: int | None,
    there: int,
    enough: int,
) -> None:
    if there:
        (tmp_path / "best.pt").write_bytes(bytes(there))
    free = SimpleNamespace(free=enough)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: free)
    settings = settings_of(training={"max_epochs": epochs}, checkpoint={"every_iterations": every})
    require_disk(NEEDS, folder=tmp_path, settings=settings)
    free.free -= 1
    with pytest.raises(ResourceError, match=r"needed at least \d+\.0 MB more, free \d+\.0 MB"):
        require_disk(NEEDS, folder=tmp_path, settings=settings)


def test_a_read_only_file_system_is_refused_before_the_list_is_read(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    arguments = [str(small_disk / "no list.json"), f"--output-dir={small_disk / 'run'}", *TINY]
    assert train.main(arguments) == 4
    assert "disk: cannot be written to" in capsys.readouterr().err


def test_a_folder_in_use_is_refused_before_the_list_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked_folder(tmp_path):
        assert train.main([str(tmp_path / "no.json"), f"--output-dir={tmp_path}", *TINY]) == 4
    assert "in use by process" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    require_usable(tmp_path / "runs" / "new")
    assert list(tmp_path.iterdir()) == []
