"""Cases in files: used again while all they depend on is the same, never when it is not."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CaseFactory

from pipeline.data import disk_cache
from pipeline.data.compact import compact_case, restore_case
from pipeline.data.datalist import Case
from pipeline.data.disk_cache import DiskCache, require_disk
from pipeline.data.packing import unpack_case
from pipeline.errors import ResourceError

MakeCache = Callable[..., DiskCache]


class Preparing:
    """Makes a case of a number, and notes how often it did so."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, case: Case) -> dict[str, Any]:
        self.calls.append(case.id)
        return compact_case({"image": torch.full((1, 4, 4, 4), 7.0), "case": case.id})


@pytest.fixture
def prepare() -> Preparing:
    return Preparing()


@pytest.fixture
def make_cache(tmp_path: Path, prepare: Preparing) -> MakeCache:
    def make(**settings: Any) -> DiskCache:
        return DiskCache(tmp_path / "cache", prepare=prepare, settings=settings)

    return make


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def assert_right(item: dict[str, Any], case: Case) -> None:
    restored = restore_case(item)
    assert restored["case"] == case.id
    assert torch.equal(restored["image"], torch.full((1, 4, 4, 4), 7.0))


def test_a_case_is_prepared_once_also_for_later_runs(
    make_cache: MakeCache, prepare: Preparing, case_factory: CaseFactory
) -> None:
    case = case_factory()
    for _ in range(2):
        cache = make_cache()
        for _ in range(2):
            assert_right(cache(case), case)
    assert prepare.calls == [case.id]
    assert [path.name for path in files_of(cache.folder)] == [f"{cache.key(case)}.case"]


def test_its_bytes_are_those_of_the_file(make_cache: MakeCache, case_factory: CaseFactory) -> None:
    case, cache = case_factory(), make_cache()
    for _ in range(2):  # made, then read
        packed = cache.packed(case)
        assert packed == cache.path(case).read_bytes()
        assert_right(unpack_case(packed, name=cache.key(case)), case)


# ---- What a file depends on ---------------------------------------------------------------------


@pytest.mark.parametrize("which", ["image", "label"])
def test_a_file_that_changed_is_noticed_by_its_content(
    make_cache: MakeCache, prepare: Preparing, case_factory: CaseFactory, which: str
) -> None:
    case = case_factory()
    make_cache()(case)
    path = case.images[2] if which == "image" else case.label
    assert path is not None
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and time stay
    make_cache()(case)
    assert len(prepare.calls) == 2


def test_a_copy_of_the_dataset_finds_its_cases(
    make_cache: MakeCache, prepare: Preparing, case_factory: CaseFactory, tmp_path: Path
) -> None:
    case = case_factory()
    make_cache()(case)
    folder = case.images[0].parent
    shutil.copytree(folder, tmp_path / "copy")
    assert case.label is not None
    copied = Case(
        id=case.id,
        subject=case.subject,
        images=tuple(tmp_path / "copy" / path.name for path in case.images),
        label=tmp_path / "copy" / case.label.name,
        fold=3,
        label_values=case.label_values,
    )
    make_cache()(copied)
    assert len(prepare.calls) == 1


def test_other_settings_make_other_files(
    make_cache: MakeCache, prepare: Preparing, case_factory: CaseFactory
) -> None:
    case = case_factory()
    for settings in ({"decimals": 3}, {"decimals": 2}, {"decimals": 3}):
        make_cache(**settings)(case)
    assert len(prepare.calls) == 2


def test_other_code_makes_other_files(
    make_cache: MakeCache,
    prepare: Preparing,
    case_factory: CaseFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = case_factory()
    make_cache()(case)
    monkeypatch.setattr(disk_cache, "code_digest", lambda *_, **__: "0" * 64)
    make_cache()(case)
    assert len(prepare.calls) == 2


@pytest.mark.parametrize("change", [{"id": "b"}, {"label_values": (0, 1, 2, 3)}, {"swap": True}])
def test_what_the_list_says_counts(
    make_cache: MakeCache, prepare: Preparing, case_factory: CaseFactory, change: dict[str, Any]
) -> None:
    case = case_factory()
    make_cache()(case)
    values: dict[str, Any] = {name: getattr(case, name) for name in Case.__dataclass_fields__}
    if change.pop("swap", False):
        change = {"images": (case.images[1], case.images[0], *case.images[2:])}
    make_cache()(Case(**{**values, **change}))
    assert len(prepare.calls) == 2


def test_a_file_that_changes_while_it_is_read_is_not_stored(
    make_cache: MakeCache, prepare: Preparing, case_factory: CaseFactory
) -> None:
    case, cache = case_factory(), make_cache()

    def prepare_and_change(case: Case) -> dict[str, Any]:
        case.images[0].write_bytes(b"other")
        return prepare(case)

    cache.prepare = prepare_and_change
    assert_right(cache(case), case)
    assert files_of(cache.folder) == []


def test_a_missing_file_is_told_by_who_reads_it(
    make_cache: MakeCache, case_factory: CaseFactory
) -> None:
    case, cache = case_factory(), make_cache()
    case.images[0].unlink()

    def prepare(case: Case) -> dict[str, Any]:
        raise FileNotFoundError(f"{case.id} has no flair")

    cache.prepare = prepare
    with pytest.raises(FileNotFoundError, match="case_000 has no flair"):
        cache(case)


# ---- Faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["byte", "cut", "empty", "folder", "of another case"])
def test_a_damaged_file_is_told_and_made_anew(
    make_cache: MakeCache,
    prepare: Preparing,
    case_factory: CaseFactory,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    case, other, cache = case_factory(), case_factory("case_001"), make_cache()
    path = cache.path(case)
    cache(case)
    cache(other)
    good = path.read_bytes()
    if damage == "byte":
        path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    elif damage == "cut":
        path.write_bytes(good[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "of another case":
        shutil.copy(cache.path(other), path)
    else:
        path.unlink()
        path.mkdir()
    with caplog.at_level(logging.WARNING):
        if damage == "folder":
            with pytest.raises(ResourceError, match="cannot be written: Is a directory"):
                make_cache()(case)
        else:
            assert_right(make_cache()(case), case)
            assert path.read_bytes() == good
    assert len(prepare.calls) == 3
    assert f"{case.id}: the cached file {path.name[:12]}... is not used" in caplog.text


def test_a_disk_that_is_full_is_told(
    make_cache: MakeCache, case_factory: CaseFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(28, "No space left on device")

    cache = make_cache()
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ResourceError, match=r"the disk is full: \d+ bytes needed, \d+ bytes free"):
        cache(case_factory())
    assert files_of(cache.folder) == []


def test_room_is_said_beforehand(
    make_cache: MakeCache, case_factory: CaseFactory, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache()
    cache(case_factory())
    with caplog.at_level(logging.INFO):
        require_disk(cache, num_cases=100, bytes_per_case=10**6)
    assert "about 1.0 MB a case, 0.10 GB for 100 cases, of which 0.00 GB are there" in caplog.text


def test_too_little_room_is_refused_beforehand_less_what_is_there(
    make_cache: MakeCache, case_factory: CaseFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, cache = case_factory(), make_cache()
    cache(case)
    size = cache.path(case).stat().st_size
    monkeypatch.setattr(disk_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=9 * size))
    require_disk(cache, num_cases=10, bytes_per_case=size)
    with pytest.raises(
        ResourceError, match=r"cache: not enough disk .* choose another --cache-dir"
    ):
        require_disk(cache, num_cases=11, bytes_per_case=size)


def test_what_killed_writers_left_is_swept_but_not_what_one_writes_now(
    make_cache: MakeCache,
) -> None:
    folder = make_cache().folder
    old, new, foreign = (
        folder / f".{'a' * 32}.tmp.{'0' * 64}.case",
        folder / f".{'b' * 32}.tmp.{'0' * 64}.case",
        folder / f".{'c' * 32}.tmp.notes.txt",
    )
    for path in (old, new, foreign):
        path.write_bytes(b"half")
    for path in (old, foreign):
        os.utime(path, (1.0, 1.0))
    make_cache()
    assert set(files_of(folder)) == {new, foreign}


def test_a_file_in_the_folder_s_place_is_refused(tmp_path: Path, prepare: Preparing) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(ResourceError, match="cache: expected a folder; found a file"):
        DiskCache(tmp_path / "cache", prepare=prepare, settings={})
