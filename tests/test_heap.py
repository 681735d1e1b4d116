"""What is chosen about memory, in processes of their own: it cannot be taken back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.model import heap
from pipeline.model.heap import KERNEL_HUGE_PAGES, TORCH_HUGE_PAGES, settle_memory

ROOT = Path(__file__).parents[1]
MB = 2**20
ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

MEMORY = """
import pathlib, sys
def field(name, file="status"):
    text = pathlib.Path("/proc/self", file).read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(name)) * 1024
"""
SETTLE = """
from pipeline.model.heap import settle_memory
words = settle_memory()
assert "torch" not in sys.modules
import torch
"""
# What passes of volumes of many sizes do: large tensors that go, small blocks that last.
PASSES = """
import random
random, lasting, resident = random.Random(0), [], []
for number in range(40):
    going = []
    for layer in range(6):
        going.append(torch.ones(random.randint(5, 30) * 2**18))
        lasting.append(torch.ones(1000))
    del going
    resident.append(field("VmRSS"))
print(resident[-1] - resident[4])
"""


def said_by(code: str, **environment: str) -> str:
    """Return what `code` prints in a process of its own, without what this one was told."""
    names = (*heap.USERS_OWN, heap.TUNABLES, TORCH_HUGE_PAGES)
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


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which the user has chosen nothing."""
    for name in (*heap.USERS_OWN, heap.TUNABLES):
        monkeypatch.delenv(name, raising=False)
    # Set, so that it is set back afterwards.
    monkeypatch.setenv(TORCH_HUGE_PAGES, "")
    monkeypatch.delenv(TORCH_HUGE_PAGES)
    return monkeypatch


@ON_LINUX
def test_large_tensors_lie_in_huge_pages() -> None:
    if not KERNEL_HUGE_PAGES.exists() or "[never]" in KERNEL_HUGE_PAGES.read_text():
        pytest.skip("this kernel has no huge pages")
    show = "tensor = torch.ones(64 * 2**18); print(field('AnonHugePages', 'smaps_rollup'))"
    # All but the ends, where memory is not too scattered for it.
    assert int(said_by(MEMORY + SETTLE + show)) > 32 * MB


@ON_LINUX
def test_what_is_freed_goes_back_at_once() -> None:
    show = """
before = field("VmRSS")
large = [torch.ones(2 * 2**20) for _ in range(16)]  # 8 MB each: glibc would keep them
taken, lasting = field("VmRSS") - before, torch.ones(1)
del large
print(taken, field("VmRSS") - before)
"""
    taken, left = map(int, said_by(MEMORY + SETTLE + show).split())
    assert taken >= 128 * MB
    assert left < 16 * MB


@ON_LINUX
def test_the_process_does_not_grow_with_volumes_of_different_sizes() -> None:
    """By default it does: by 29 to 740 MB here."""
    grown = int(said_by(MEMORY + SETTLE + PASSES))
    assert grown < 10 * MB


def test_it_is_said_in_a_line(environment: pytest.MonkeyPatch) -> None:
    words = settle_memory()
    assert re.fullmatch(r"Memory: .*pages.*; .*(system at once|has it)\.", words)
    assert settle_memory() == words


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.check=3")]
)
def test_what_the_user_has_chosen_is_left_alone(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setattr(heap, "_glibc_mallopt", lambda: pytest.fail("the user has chosen"))
    environment.setenv(name, value)
    assert f"the heap as {name} says" in settle_memory()


def test_other_tunables_are_none_of_this(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("GLIBC_TUNABLES", "glibc.cpu.x86_ibt=off")
    assert "GLIBC_TUNABLES" not in settle_memory()


def test_the_user_may_want_ordinary_pages(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(TORCH_HUGE_PAGES, "0")
    assert f"ordinary pages, as {TORCH_HUGE_PAGES} says" in settle_memory()
    assert os.environ[TORCH_HUGE_PAGES] == "0"


@pytest.mark.parametrize("content", ["always madvise [never]\n", None])
def test_a_kernel_without_huge_pages(
    environment: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "enabled"
    if content is not None:
        path.write_text(content)
    environment.setattr(heap, "KERNEL_HUGE_PAGES", path)
    assert "ordinary pages, as the kernel offers no others" in settle_memory()


@pytest.mark.parametrize("lacking", ["gnu_get_libc_version", "mallopt"])
def test_another_c_library(environment: pytest.MonkeyPatch, lacking: str) -> None:
    class Library:
        def __init__(self, _: None) -> None:
            for name in {"gnu_get_libc_version", "mallopt"} - {lacking}:
                setattr(self, name, lambda *_: pytest.fail("not on this library"))

    environment.setattr(heap.ctypes, "CDLL", Library)
    assert "the heap as this C library has it" in settle_memory()


def test_no_c_library_at_all(environment: pytest.MonkeyPatch) -> None:
    def refuse(_: None) -> None:
        raise TypeError  # what Windows says

    environment.setattr(heap.ctypes, "CDLL", refuse)
    assert "the heap as this C library has it" in settle_memory()
