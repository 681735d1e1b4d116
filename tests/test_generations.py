"""Two generations of `last`: one is whole at any moment, and the newest whole one is found."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import DataError, ResourceError
from pipeline.model import generations
from pipeline.model.checkpoint import (
    BEST,
    FORMAT,
    LAST,
    REQUIRED_KEYS,
    load_checkpoint,
    save_checkpoint,
)
from pipeline.model.generations import PREVIOUS, load_newest, save_last


def content_of(iteration: int, *, num_epochs: int = 0, **changes: Any) -> dict[str, Any]:
    counters = {"iteration": iteration, "history": [{}] * num_epochs}
    return {
        **dict.fromkeys(REQUIRED_KEYS),
        "format": FORMAT,
        "weights": {"layer": torch.full((100,), float(iteration))},
        "progress": {"counters": counters},
        **changes,
    }


def iteration_of(path: Path) -> int:
    return load_checkpoint(path)["progress"]["counters"]["iteration"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(load_checkpoint(path)["weights"]["layer"].numpy().tobytes())] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def delete(path: Path) -> None:
    path.unlink()


def test_what_was_last_is_kept(tmp_path: Path) -> None:
    for iteration in (1, 2, 3):
        save_last(tmp_path, content_of(iteration))
    assert iteration_of(tmp_path / LAST) == 3
    assert iteration_of(tmp_path / PREVIOUS) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, LAST]


@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_a_damaged_last_does_not_displace_the_one_before(tmp_path: Path, damage: Any) -> None:
    for iteration in (1, 2):
        save_last(tmp_path, content_of(iteration))
    damage(tmp_path / LAST)
    save_last(tmp_path, content_of(3))
    assert iteration_of(tmp_path / LAST) == 3
    assert iteration_of(tmp_path / PREVIOUS) == 1


def test_a_planted_link_does_not_become_a_generation(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "foreign.pt", content_of(9))
    (tmp_path / "run" / LAST).symlink_to(tmp_path / "foreign.pt")
    save_last(tmp_path / "run", content_of(1))
    assert iteration_of(tmp_path / "foreign.pt") == 9
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LAST]
    assert not (tmp_path / "run" / LAST).is_symlink()


class DiedError(BaseException):
    """Stands for kill -9 between two system calls; nothing after it is executed."""


CALLS = [(os, "open"), (os, "fsync"), (os, "link"), (Path, "replace"), (Path, "unlink")]


def test_one_generation_is_whole_between_any_two_system_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies before the n-th call that changes the folder, for every n."""
    seen: set[tuple[int, ...]] = set()
    for fatal in range(1, 100):
        folder = tmp_path / str(fatal)
        folder.mkdir()
        for iteration in (1, 2):
            save_last(folder, content_of(iteration))
        num_calls = 0

        def dying(original: Any, fatal: int = fatal) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal num_calls
                num_calls += 1
                if num_calls >= fatal:
                    raise DiedError
                return original(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for owner, name in CALLS:
                patch.setattr(owner, name, dying(getattr(owner, name)))
            try:
                save_last(folder, content_of(3))
            except DiedError:
                pass
            else:
                break
        found = [iteration_of(folder / name) for name in (LAST, PREVIOUS)]
        assert found[0] >= 2, "last itself is always whole"
        seen.add(tuple(found))
        # Whatever the dead one left, the next one is saved and found.
        save_last(folder, content_of(4))
        assert load_newest(folder)[0]["progress"]["counters"]["iteration"] == 4
        assert iteration_of(folder / PREVIOUS) in (2, 3)
    assert seen == {(2, 1), (2, 2), (3, 2)}, "every state of the folder was met"
    assert num_calls >= 6


def test_two_names_of_one_file_after_a_kill_leave_nothing_temporary(tmp_path: Path) -> None:
    save_last(tmp_path, content_of(1))
    os.link(tmp_path / LAST, tmp_path / PREVIOUS)
    save_last(tmp_path, content_of(2))
    assert iteration_of(tmp_path / PREVIOUS) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, LAST]


def test_without_hard_links_the_names_move_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(generations.os, "link", refuse)
    for iteration in (1, 2):
        save_last(tmp_path, content_of(iteration))
    assert (iteration_of(tmp_path / LAST), iteration_of(tmp_path / PREVIOUS)) == (2, 1)


def test_another_failure_leaves_both_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for iteration in (1, 2):
        save_last(tmp_path, content_of(iteration))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(generations.os, "link", fail)
    with pytest.raises(ResourceError, match=r"last\.pt: cannot be written: Input/output error"):
        save_last(tmp_path, content_of(3))
    assert (iteration_of(tmp_path / LAST), iteration_of(tmp_path / PREVIOUS)) == (2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, LAST]


# ---- Finding the newest -------------------------------------------------------------------------


def test_a_whole_last_is_taken_without_a_word(tmp_path: Path) -> None:
    save_last(tmp_path, content_of(2))
    save_checkpoint(tmp_path / BEST, content_of(9))
    content, remark = load_newest(tmp_path)
    assert content["progress"]["counters"]["iteration"] == 2
    assert remark == ""


@pytest.mark.parametrize("damage", [flip, truncate, delete])
@pytest.mark.parametrize(
    ("previous", "best", "expected"),
    [
        ((5, 1), (4, 1), PREVIOUS),
        ((4, 0), (8, 2), BEST),
        ((4, 0), (4, 1), BEST),  # an epoch's last iteration, before and after its validation
    ],
)
def test_the_newest_is_told_by_what_is_stored_not_by_the_file_s_time(
    tmp_path: Path,
    damage: Any,
    previous: tuple[int, int],
    best: tuple[int, int],
    expected: str,
) -> None:
    positions = {PREVIOUS: previous, BEST: best, LAST: (9, 2)}
    for name, (iteration, num_epochs) in positions.items():
        save_checkpoint(tmp_path / name, content_of(iteration, num_epochs=num_epochs))
    damage(tmp_path / LAST)
    # A clock that was set back: what is newest has the oldest time.
    for name in (PREVIOUS, BEST):
        os.utime(tmp_path / name, (0, 0) if name == expected else None)
    content, remark = load_newest(tmp_path)
    counters = content["progress"]["counters"]
    assert (counters["iteration"], len(counters["history"])) == positions[expected]
    assert remark.startswith(f"{LAST}: ")
    assert f"goes on from {expected}, the newest whole checkpoint" in remark
    assert "\n" not in remark


def test_where_none_is_whole_all_are_named(tmp_path: Path) -> None:
    for iteration in (1, 2):
        save_last(tmp_path, content_of(iteration))
    flip(tmp_path / LAST)
    truncate(tmp_path / PREVIOUS)
    found = r"(?s)last\.pt: .*damaged.*last\.previous\.pt: .*damaged.*best\.pt: .*No such file"
    with pytest.raises(DataError, match=found) as raised:
        load_newest(tmp_path)
    assert len(raised.value.problems) == 3


def test_a_last_of_a_newer_version_is_not_damage(tmp_path: Path) -> None:
    """Going back to an older one would overwrite it."""
    save_last(tmp_path, content_of(1))
    save_last(tmp_path, content_of(2))
    torch.save(content_of(3, format=FORMAT + 1), tmp_path / LAST)
    with pytest.raises(DataError, match=r"newer-checkpoint: expected format 1; found format 2"):
        load_newest(tmp_path)
