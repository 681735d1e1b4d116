from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHAPE, CohortFactory, save_nifti

from pipeline.data import digest_file, file_state, integrity
from pipeline.data.content import CaseContent, read_content
from pipeline.data.datalist import Case, DataList, read_datalist
from pipeline.data.digest_file import FORMAT, DigestFile
from pipeline.data.integrity import check_datalist
from pipeline.data.json_files import json_bytes
from pipeline.errors import Problem, SettingsError

CROP = ((5, 0), (0, 0), (0, 0))  # tumour is lost to it: every case has a warning


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files of this moment count: tests cannot wait until they are old."""
    monkeypatch.setattr(file_state, "SETTLED_NS", 0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the cases whose images are read, as they are read."""
    seen: list[str] = []

    def spy(case: Case, **options: Any) -> tuple[CaseContent, list[Problem]]:
        seen.append(case.id)
        return read_content(case, **options)

    monkeypatch.setattr(integrity, "read_content", spy)
    return seen


@pytest.fixture
def datalist(cohort_factory: CohortFactory) -> DataList:
    return read_datalist(cohort_factory(num_cases=4))


def check(
    datalist: DataList, path: Path | None, *, recheck: bool = False, **options: Any
) -> tuple[list[Problem], DigestFile | None]:
    known = None if path is None else DigestFile(path, recheck=recheck)
    problems = check_datalist(
        datalist, known=known, num_workers=2, **{"border_crop": CROP, **options}
    )
    if known is not None:
        known.save()
    return problems, known


def complaint_of(path: Path) -> str:
    return DigestFile(path).complaint


# --- what is remembered ------------------------------------------------------------------------


def test_what_is_unchanged_is_not_read_twice(
    datalist: DataList, tmp_path: Path, reads: list[str]
) -> None:
    path = tmp_path / "digests.json"
    first, known = check(datalist, path)
    assert known is not None
    assert (sorted(reads), known.num_recalled) == ([case.id for case in datalist.training], 0)
    reads.clear()
    second, known = check(datalist, path)
    assert known is not None
    assert (reads, known.num_recalled, known.complaint) == ([], 4, "")
    assert second == first == check(datalist, None)[0]
    assert [problem.kind for problem in first] == ["tumour-cropped"] * 4


def test_the_file_is_the_same_after_every_check(datalist: DataList, tmp_path: Path) -> None:
    path = tmp_path / "digests.json"
    check(datalist, path)
    content = path.read_bytes()
    check(datalist, path)
    assert path.read_bytes() == content
    assert str(tmp_path).encode() not in content


def test_only_what_changed_is_read_again(
    datalist: DataList, tmp_path: Path, reads: list[str]
) -> None:
    path = tmp_path / "digests.json"
    check(datalist, path)
    damaged = datalist.training[2].images[1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    reads.clear()
    problems, _ = check(datalist, path)
    assert reads == ["case_002"]
    assert (problems[0].case, problems[0].kind) == ("case_002", "checksum")
    assert problems == check(datalist, None)[0]


def test_a_case_with_an_error_is_read_every_time(
    datalist: DataList, tmp_path: Path, reads: list[str]
) -> None:
    path = tmp_path / "digests.json"
    check(datalist, path)
    missing = datalist.training[1].images[0]
    content = missing.read_bytes()
    missing.unlink()
    for _ in range(2):
        reads.clear()
        problems, _ = check(datalist, path)
        assert reads == ["case_001"]
        assert problems[0].kind == "missing-file"
    missing.write_bytes(content)
    assert "missing-file" not in {problem.kind for problem in check(datalist, path)[0]}


def test_another_preset_or_option_is_another_check(
    datalist: DataList, tmp_path: Path, reads: list[str]
) -> None:
    path = tmp_path / "digests.json"
    check(datalist, path)
    for options in ({"border_crop": None}, {"border_crop": None, "mask_nonfinite": True}):
        reads.clear()
        problems, _ = check(datalist, path, **options)
        assert len(reads) == 4
        assert problems == []


def test_recheck_reads_everything_and_remembers_it(
    datalist: DataList, tmp_path: Path, reads: list[str]
) -> None:
    path = tmp_path / "digests.json"
    first, _ = check(datalist, path)
    reads.clear()
    assert check(datalist, path, recheck=True)[0] == first
    assert len(reads) == 4
    reads.clear()
    check(datalist, path)
    assert reads == []


def test_cases_of_other_lists_stay_remembered(
    datalist: DataList, tmp_path: Path, reads: list[str]
) -> None:
    path = tmp_path / "digests.json"
    check(replace(datalist, training=datalist.training[:3]), path)
    check(replace(datalist, training=datalist.training[3:]), path)
    reads.clear()
    check(datalist, path)
    assert reads == []


def test_cases_against_each_other_from_what_is_remembered(
    datalist: DataList, tmp_path: Path, reads: list[str]
) -> None:
    """A copied image, a subject in two folds: found although no image is read."""
    path = tmp_path / "digests.json"
    first, second, third, fourth = datalist.training
    third.images[2].write_bytes(first.images[2].read_bytes())
    datalist = replace(
        datalist,
        training=(first, replace(second, subject="anna"), third, replace(fourth, subject="anna")),
    )
    # The folds are 0 1 0 1; put one of hers into the other.
    datalist = replace(
        datalist, training=(*datalist.training[:3], replace(datalist.training[3], fold=0))
    )
    once, _ = check(datalist, path)
    reads.clear()
    again, _ = check(datalist, path)
    assert reads == []
    assert once == again == check(datalist, None)[0]
    assert [problem.kind for problem in again[:2]] == ["subject-leak", "duplicate-case"]


def test_a_constant_image_is_a_remembered_warning(
    datalist: DataList, tmp_path: Path, reads: list[str]
) -> None:
    for case in datalist.training[:2]:
        save_nifti(case.images[0], np.zeros(SHAPE, dtype=np.int16))
    path = tmp_path / "digests.json"
    once, _ = check(datalist, path)
    reads.clear()
    assert check(datalist, path)[0] == once
    assert reads == []
    assert sorted(problem.kind for problem in once if problem.case == "case_000") == [
        "constant-image",
        "tumour-cropped",
    ]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    datalist: DataList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "digests.json"
    replaced = datalist.training[0].images[3]

    def read_and_replace(case: Case, **options: Any) -> tuple[CaseContent, list[Problem]]:
        found = read_content(case, **options)
        if case.id == "case_000":
            save_nifti(replaced, np.full(SHAPE, 9, dtype=np.int16))
        return found

    monkeypatch.setattr(integrity, "read_content", read_and_replace)
    check(datalist, path)
    assert set(json.loads(path.read_text())["cases"]) == {"case_001", "case_002", "case_003"}


# --- a file that is not believed ---------------------------------------------------------------


def resealed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change the cases in the file and state their SHA-256 anew, as a forger would."""

    def apply(path: Path) -> None:
        document = json.loads(path.read_text())
        change(document["cases"])
        document["sha256"] = hashlib.sha256(json_bytes(document["cases"])).hexdigest()
        path.write_bytes(json_bytes(document))

    return apply


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def one_digit_changed(path: Path) -> None:
    document = json.loads(path.read_text())
    state = document["cases"]["case_000"]["state"]
    document["cases"]["case_000"]["state"] = ("1" if state[0] == "0" else "0") + state[1:]
    path.write_bytes(json_bytes(document))


def a_key_more(path: Path) -> None:
    path.write_bytes(json_bytes({**json.loads(path.read_text()), "more": 1}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncated, "json-syntax"),
        (emptied, "json-syntax"),
        (one_digit_changed, "does not have the SHA-256 that it states"),
        (a_key_more, "expected the keys cases, format, sha256"),
        (resealed(lambda cases: cases.update(case_000=[])), "case_000: expected the keys"),
        (resealed(lambda cases: cases["case_000"].update(state=5)), "case_000: expected SHA-256"),
        (
            resealed(lambda cases: cases["case_000"]["digests"].update(t1="../../etc")),
            "case_000: expected SHA-256",
        ),
        (
            resealed(lambda cases: cases["case_000"]["warnings"][0].update(case="case_001")),
            "warnings of this case",
        ),
        (
            resealed(lambda cases: cases["case_000"]["warnings"][0].update(severity="none")),
            "warnings of this case",
        ),
        (
            resealed(lambda cases: cases["case_000"]["warnings"][0].pop("kind")),
            "warnings of this case",
        ),
    ],
)
def test_a_damaged_file_is_reported_and_replaced(
    datalist: DataList,
    tmp_path: Path,
    reads: list[str],
    damage: Callable[[Path], None],
    words: str,
) -> None:
    path = tmp_path / "digests.json"
    first, _ = check(datalist, path)
    damage(path)
    reads.clear()
    second, known = check(datalist, path)
    assert known is not None
    assert words in known.complaint
    assert known.complaint.startswith("digests.json is not believed: ")
    assert known.complaint.endswith("The file will be replaced.")
    assert len(reads) == 4
    assert second == first
    assert complaint_of(path) == ""


@pytest.mark.parametrize(
    "content",
    [
        b'{"name": "my list", "training": []}',
        b"\x89PNG\r\n",
        b"[" * 100_000,
        json_bytes({"format": "something else"}),
        b'{"format": "' + FORMAT.encode() + b'"}',  # not as we write it
    ],
)
def test_a_foreign_file_is_reported_and_stays(
    datalist: DataList, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "precious.json"
    path.write_bytes(content)
    problems, known = check(datalist, path)
    assert known is not None
    assert "stays as it is; name another one" in known.complaint
    assert problems == check(datalist, None)[0]
    assert path.read_bytes() == content


def test_the_next_version_s_file_is_foreign(datalist: DataList, tmp_path: Path) -> None:
    path = tmp_path / "digests.json"
    check(datalist, path)
    path.write_text(path.read_text().replace(FORMAT, FORMAT[:-1] + "2"))
    assert "stays as it is" in complaint_of(path)


def test_a_folder_a_loop_and_a_file_that_cannot_be_read_stay(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    unreadable = Path("/proc/self/mem")  # reading its start is an input/output error
    for path in (tmp_path / "folder", tmp_path / "loop", unreadable):
        known = DigestFile(path)
        assert "stays as it is" in known.complaint
        known.save()
    assert (tmp_path / "loop").is_symlink()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a file in an existing folder"):
        DigestFile(tmp_path / "nowhere" / "digests.json")


def test_a_planted_link_is_replaced_not_followed(datalist: DataList, tmp_path: Path) -> None:
    path, target = tmp_path / "digests.json", tmp_path / "target"
    target.write_bytes(b"")
    path.symlink_to(target)
    check(datalist, path)
    assert target.read_bytes() == b""
    assert not path.is_symlink()


def test_every_file_of_ours_begins_alike(datalist: DataList, tmp_path: Path) -> None:
    """By this, a torn file of ours is told from one that must not be replaced."""
    path = tmp_path / "digests.json"
    check(datalist, path)
    assert path.read_bytes().startswith(digest_file.OPENING)
