from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.data import files
from pipeline.data.files import replace_file, sweep_temporaries
from pipeline.errors import ResourceError


def test_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "a.bin"
    replace_file(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(ResourceError, match=r"a.bin: the disk is full: 3 bytes needed, \d+ bytes"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_the_content_is_synced_before_the_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut can leave the new name with no content, or no name at all."""
    path = tmp_path / "a.bin"
    events = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        events.append((os.path.isdir(f"/proc/self/fd/{descriptor}"), path.exists()))  # noqa: PTH112
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", note)
    replace_file(path, b"new")
    assert events == [(False, False), (True, True)]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"a.bin: cannot be written: Not a directory"):
        replace_file(tmp_path / "file" / "a.bin", b"new")
    with pytest.raises(ResourceError, match=r"a.bin: cannot be written: No such file"):
        replace_file(tmp_path / "nowhere" / "a.bin", b"new")


def test_sweeping_removes_what_a_killed_writer_left_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.bin", ".hidden", ".a.bin.0123.tmp", "notes.tmp"):
        (tmp_path / name).write_text("")
    # A killed process removes nothing.
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
    monkeypatch.setattr(Path, "replace", lambda path, target: path)
    replace_file(tmp_path / "b.bin", b"new")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 5
    sweep_temporaries(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".a.bin.0123.tmp", ".hidden", "a.bin", "notes.tmp"]
