"""What becomes of freed memory; what cannot be taken back, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.model import heap
from pipeline.model.heap import give_back, keep_freed_memory, kept_bytes, settle_memory

ROOT = Path(__file__).parents[1]
MB = 2**20

START = """
import random, torch
from pipeline.model.heap import give_back, keep_freed_memory, kept_bytes, settle_memory
settle_memory()
random, lasting, before = random.Random(0), [], kept_bytes()

def volume():
    # What a pass of a volume of any size does: large tensors that go, small blocks that last.
    going = []
    for layer in range(6):
        going.append(torch.ones(random.randint(17, 60) * 2**18))
        lasting.append(torch.ones(1000))
"""

pytestmark = pytest.mark.skipif(heap._glibc() is None, reason="it is about glibc")


def said_by(code: str, **environment: str) -> str:
    """Return what `code` prints in a process of its own, without what this one was told."""
    names = (*heap.USERS_OWN, heap.TUNABLES)
    kept = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**kept, **environment},
        check=True,
    )
    return done.stdout.strip()


class Library:
    """A C library that notes what it is told, and a process that keeps `kept` bytes."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def mallopt(self, name: int, value: int) -> int:
        self.told.append((name, value))
        return 1

    def malloc_trim(self, pad: int) -> None:
        self.told.append("trim")


KEEP = [(heap.M_MMAP_THRESHOLD, 2**31 - 1), (heap.M_TRIM_THRESHOLD, -1)]
RETURN = [(heap.M_MMAP_THRESHOLD, 16 * MB), (heap.M_TRIM_THRESHOLD, 256 * MB)]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """A library that changes nothing, and a user who has chosen nothing."""
    for name in (*heap.USERS_OWN, heap.TUNABLES):
        monkeypatch.delenv(name, raising=False)
    made = Library()
    monkeypatch.setattr(heap, "_glibc", lambda: made)
    monkeypatch.setattr(heap, "kept_bytes", lambda: 0)
    return made


# ---- What is decided -----------------------------------------------------------------------------


def test_at_first_all_goes_back(library: Library) -> None:
    assert "kept for the next where there is room for it" in settle_memory()
    assert library.told == [(heap.M_ARENA_MAX, 1), *RETURN]


def test_it_is_kept_where_four_times_the_need_is_free(library: Library) -> None:
    assert keep_freed_memory(100 * MB, free_bytes=400 * MB)
    assert library.told == KEEP


def test_it_is_given_back_where_less_is_free(library: Library) -> None:
    assert not keep_freed_memory(100 * MB, free_bytes=400 * MB - 1)
    assert library.told == [*RETURN, "trim"]


@pytest.mark.parametrize(
    ("kept", "told"),
    [(2**30, []), (2**30 + 1, ["trim"])],  # never for less than 1 GiB
)
def test_what_is_kept_has_a_limit(
    library: Library, monkeypatch: pytest.MonkeyPatch, kept: int, told: list[Any]
) -> None:
    monkeypatch.setattr(heap, "kept_bytes", lambda: kept)
    assert keep_freed_memory(256 * MB, free_bytes=2**40)
    assert library.told == KEEP + told


def test_the_limit_is_four_times_the_need(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heap, "kept_bytes", lambda: 4 * 512 * MB + 1)
    keep_freed_memory(513 * MB, free_bytes=2**40)
    assert library.told == KEEP
    keep_freed_memory(512 * MB, free_bytes=2**40)
    assert library.told == [*KEEP, *KEEP, "trim"]


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.check=3")]
)
def test_what_the_user_has_chosen_is_left_alone(
    library: Library, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert settle_memory() == f"Memory: freed blocks are kept as {name} says."
    assert not keep_freed_memory(1, free_bytes=2**40)
    assert library.told == []


def test_other_tunables_are_none_of_this(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.cpu.x86_ibt=off")
    assert "GLIBC_TUNABLES" not in settle_memory()


@pytest.mark.parametrize("error", [TypeError, OSError, AttributeError])
def test_another_c_library(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """Windows raises the first; a C library without the functions, the last."""

    def refuse(_: None) -> None:
        raise error

    monkeypatch.setattr(heap.ctypes, "CDLL", refuse)
    for name in (*heap.USERS_OWN, heap.TUNABLES):
        monkeypatch.delenv(name, raising=False)
    assert settle_memory() == "Memory: freed blocks are kept as this C library does it."
    assert not keep_freed_memory(1, free_bytes=2**40)
    assert kept_bytes() == 0
    give_back()


# ---- What glibc does -----------------------------------------------------------------------------


def test_what_is_freed_goes_back_at_once() -> None:
    code = START + "for _ in range(40): volume()\nprint(kept_bytes() - before)"
    # By default it keeps 30 to 740 MB here.
    assert int(said_by(code)) < 10 * MB


def test_what_is_kept_is_used_again() -> None:
    code = (
        START
        + """
import resource
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(keep_freed_memory(2**20, free_bytes=2**30))
a = torch.ones(64 * 2**18)
del a
print(kept_bytes() - before)
before = faults()
a = torch.ones(60 * 2**18)
print(faults() - before)
del a
print(keep_freed_memory(2**30, free_bytes=2**30), kept_bytes())
"""
    )
    has_room, kept, num_faults, still_has_room, left = said_by(code).split()
    assert (has_room, still_has_room) == ("True", "False")
    assert int(kept) > 60 * MB
    assert int(num_faults) < 100  # of 15,000 pages of 4 KB
    assert int(left) < 100 * MB  # Python's own


def test_what_is_kept_serves_every_thread() -> None:
    code = (
        "from pipeline.model.heap import settle_memory\nsettle_memory()\n"
        + START
        + """
import resource
from concurrent.futures import ThreadPoolExecutor
keep_freed_memory(2**20, free_bytes=2**40)
def faults_of_filling(num_values):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(num_values)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults_of_filling(64 * 2**18))
with ThreadPoolExecutor(1) as thread:
    print(thread.submit(faults_of_filling, 60 * 2**18).result())
"""
    )
    first, in_thread = map(int, said_by(code).split())
    assert first > 10_000  # of 16,384 pages of 4 KB
    assert in_thread < 1000


def test_what_is_kept_stays_within_its_limit() -> None:
    code = (
        START
        + """
most = 0
for number in range(120):
    keep_freed_memory(400 * 2**20, free_bytes=2**40)  # what a volume here needs at most
    volume()
    most = max(most, kept_bytes())
print(most)
"""
    )
    assert int(said_by(code)) < (4 + 1) * 400 * MB
