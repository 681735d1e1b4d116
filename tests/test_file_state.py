from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CaseFactory
from image_files import phantom, save_dicom

from pipeline import versions
from pipeline.data import file_state
from pipeline.data.datalist import Case
from pipeline.data.file_state import case_state

EXPECTATIONS = {"border_crop": ((1, 1), (1, 1), (1, 1)), "mask_nonfinite": False}


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files of this moment count: tests cannot wait until they are old."""
    monkeypatch.setattr(file_state, "SETTLED_NS", 0)


def state(case: Case) -> str | None:
    return case_state(case, expectations=EXPECTATIONS)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def flipped_and_dated_back(path: Path) -> None:
    """Change a bit in place and restore the time of modification: the time of change tells."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-9, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_ino) == (before.st_size, before.st_ino)
    assert after.st_mtime_ns == before.st_mtime_ns


def replaced_by_a_copy(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.replace(path)


def touched(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 1))


def linked_elsewhere(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(other)


@pytest.mark.parametrize(
    "change", [longer, flipped_and_dated_back, replaced_by_a_copy, touched, linked_elsewhere]
)
@pytest.mark.parametrize("index", [2, 4])
def test_each_change_of_a_file_is_seen(
    case_factory: CaseFactory, change: Callable[[Path], None], index: int
) -> None:
    case = case_factory()
    path = (*case.images, case.label)[index]
    assert path is not None
    before = state(case)
    assert before is not None
    assert state(case) == before
    change(path)
    assert state(case) not in (before, None)


def test_what_is_renamed_in_another_folder_is_the_same(case_factory: CaseFactory) -> None:
    case = case_factory()
    before = state(case)
    folder = case.images[0].parent.rename(case.images[0].parent.with_name("moved"))
    assert case.label is not None
    moved = replace(
        case,
        images=tuple(folder / path.name for path in case.images),
        label=folder / case.label.name,
    )
    assert state(moved) == before


def test_what_the_list_and_the_check_say_counts(case_factory: CaseFactory) -> None:
    case = case_factory()
    assert case.label is not None
    others = [
        state(replace(case, id="other")),
        state(replace(case, label_values=(0, 1, 2, 3))),
        state(replace(case, images=case.images[::-1])),
        state(replace(case, label=None)),
        case_state(case, expectations={**EXPECTATIONS, "mask_nonfinite": True}),
        case_state(case, expectations={**EXPECTATIONS, "border_crop": None}),
    ]
    assert len({state(case), *others}) == 7


def test_other_code_may_find_something_else(
    case_factory: CaseFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files, under a copy of the checks in which one number is another."""
    case = case_factory()
    before = state(case)
    for folder in ("pipeline/data", "transforms"):
        (tmp_path / "code" / folder).mkdir(parents=True)
    for pattern in file_state.CODE:
        for path in versions.ROOT.glob(pattern):
            shutil.copy(path, tmp_path / "code" / path.relative_to(versions.ROOT))
    monkeypatch.setattr(versions, "ROOT", tmp_path / "code")
    versions.code_digest.cache_clear()
    assert state(case) == before
    checks = tmp_path / "code" / "pipeline" / "data" / "content.py"
    checks.write_text(checks.read_text().replace("AFFINE_TOLERANCE = 1e-3", "AFFINE_TOLERANCE = 1"))
    versions.code_digest.cache_clear()
    assert state(case) != before
    versions.code_digest.cache_clear()


def test_a_missing_file_has_no_state(case_factory: CaseFactory) -> None:
    case = case_factory()
    case.images[3].unlink()
    assert state(case) is None


def test_a_series_is_all_that_lies_in_its_folder(tmp_path: Path) -> None:
    slices = save_dicom(tmp_path / "t1", phantom())
    case = Case("one", "one", (tmp_path / "t1",), None, None, (0, 1))
    before = state(case)
    longer(slices[1])
    changed = state(case)
    (tmp_path / "t1" / "more.dcm").write_bytes(b"")
    grown = state(case)
    slices[0].unlink()
    assert len({before, changed, grown, state(case)}) == 4


def test_what_was_written_a_moment_ago_has_no_state(
    case_factory: CaseFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written again within one tick of a coarse clock, a file would look the same."""
    monkeypatch.undo()
    case = case_factory()
    assert file_state.SETTLED_NS == 3 * 10**9
    assert state(case) is None
    ahead = max(path.stat().st_ctime_ns for path in case.images) + 2 * file_state.SETTLED_NS
    monkeypatch.setattr("time.time_ns", lambda: ahead)
    assert state(case) is not None
