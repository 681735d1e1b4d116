"""How much memory there is, and what is kept in it."""

from __future__ import annotations

import pickle
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from pipeline.data import caching
from pipeline.data.caching import build_cache, free_memory_bytes, item_bytes, num_cacheable
from pipeline.data.compact import compact

FREE = 1000


@pytest.fixture
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1000 bytes free; its container's limits are files in the folder returned."""
    free = SimpleNamespace(available=FREE)
    monkeypatch.setattr(caching.psutil, "virtual_memory", lambda: free)
    for name in ("max", "current", "stat"):
        monkeypatch.setattr(caching, f"CGROUP_MEMORY_{name.upper()}", tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("limit", "current", "inactive_file", "expected"),
    [
        ("max", 900, 0, 1000),  # no limit: what the machine has
        ("1200", 900, 0, 300),
        ("1200", 900, 200, 500),  # 200 of the 900 used are pages that the kernel drops first
        ("9000", 900, 0, 1000),  # a limit above what the machine has
        ("800", 900, 0, 0),  # lowered below what is in use already
    ],
)
def test_the_container_limit_counts(
    limits: Path, limit: str, current: int, inactive_file: int, expected: int
) -> None:
    (limits / "max").write_text(f"{limit}\n")
    (limits / "current").write_text(f"{current}\n")
    (limits / "stat").write_text(f"anon 5\ninactive_file {inactive_file}\nactive_file 7\n")
    assert free_memory_bytes() == expected


def test_without_a_container_the_machine_counts(limits: Path) -> None:
    assert not (limits / "max").exists()
    assert free_memory_bytes() == FREE


def test_bytes_of_a_case() -> None:
    item = {
        "image": MetaTensor(torch.zeros(4, 2, 3, 5)),  # 120 values of 4 bytes
        "label": torch.zeros(1, 2, 3, 5, dtype=torch.uint8),  # 30 values of 1 byte
        "case": "case_000",
        "numbers": np.zeros(100),  # what is no tensor is not counted
    }
    assert item_bytes(item) == 480 + 30


def test_bytes_of_a_case_that_is_compact_or_packed() -> None:
    volume = torch.zeros(4, 9, 9, 9)
    volume[:, 2:4, 3:6, 1:6] = 0.5  # a box of 4 x 30 values
    assert item_bytes({"image": compact(volume, divisor=10)}) == 2 * 120
    assert item_bytes({"image": compact(volume, divisor=1)}) == 4 * 120
    assert item_bytes(b"packed") == 6


@pytest.mark.parametrize(
    ("bytes_per_case", "budget", "expected"),
    [(10, 100.0, 5), (10, 49.9, 4), (10, 9.0, 0), (10, -30.0, 0), (0, 100.0, 5)],
)
def test_num_cacheable(bytes_per_case: int, budget: float, expected: int) -> None:
    assert num_cacheable(5, bytes_per_case=bytes_per_case, budget_bytes=budget) == expected


class CountingLoad(Transform):
    """Turns a number into a case, and notes how often it did so."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, number: int) -> dict[str, torch.Tensor]:
        self.calls.append(number)
        return {"image": torch.full((1,), float(number))}


def test_only_the_cached_cases_are_prepared_once() -> None:
    load = CountingLoad()
    dataset = build_cache((0, 1, 2), transform=load, num_cached=2, num_threads=1, progress=False)
    assert sorted(load.calls) == [0, 1]
    for _ in range(2):
        assert [float(dataset[index]["image"]) for index in range(3)] == [0.0, 1.0, 2.0]
    assert sorted(load.calls) == [0, 1, 2, 2]


def test_cached_tensors_are_handed_out_without_a_copy() -> None:
    dataset = build_cache([0], transform=CountingLoad(), num_cached=1, progress=False)
    assert dataset[0]["image"].data_ptr() == dataset[0]["image"].data_ptr()


def test_a_cache_can_be_sent_to_workers_that_are_not_forked() -> None:
    dataset = build_cache([3, 4], transform=CountingLoad(), num_cached=1, progress=False)
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - made in the line above
    assert [float(copy[index]["image"]) for index in range(2)] == [3.0, 4.0]


def test_filling_the_cache_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    build_cache([0], transform=CountingLoad(), num_cached=1)
    assert "Loading dataset" in capsys.readouterr().err


# ---- Forms, budget, order, faults ---------------------------------------------------------------


def test_cases_stay_in_their_order_whichever_thread_is_quicker() -> None:
    def load(number: int) -> dict[str, torch.Tensor]:
        time.sleep(0.02 if number % 2 == 0 else 0.0)
        return {"image": torch.full((1,), float(number))}

    dataset = build_cache(range(8), transform=load, num_cached=8, num_threads=3, progress=False)
    assert [float(item["image"]) for item in dataset.kept] == list(range(8))


def test_what_is_kept_is_read_at_each_access() -> None:
    load = CountingLoad()
    dataset = build_cache(
        [5, 6],
        transform=load,
        num_cached=1,
        keep=lambda number: b"\0" * number,
        read=lambda packed: {"image": torch.full((1,), float(len(packed)))},
        progress=False,
    )
    assert [float(dataset[index]["image"]) for index in (0, 1, 0)] == [5.0, 6.0, 5.0]
    assert load.calls == [6], "the kept case is not prepared by the other way"
    assert dataset.num_bytes == 5


@pytest.mark.parametrize(("budget", "num_kept"), [(100, 5), (15, 5), (14, 4), (2, 1), (0, 0)])
def test_the_budget_holds_where_cases_turn_out_to_be_larger(budget: int, num_kept: int) -> None:
    prepared: list[int] = []

    def keep(number: int) -> bytes:
        prepared.append(number)
        return b"\0" * number

    dataset = build_cache(
        [1, 2, 3, 4, 5],
        transform=CountingLoad(),
        num_cached=5,
        keep=keep,
        read=lambda packed: {"image": torch.full((1,), float(len(packed)))},
        budget_bytes=budget,
        num_threads=2,
        progress=False,
    )
    assert dataset.num_bytes <= budget
    assert len(dataset.kept) == num_kept
    assert len(prepared) <= num_kept + 2, "nothing is prepared that has no room"
    assert [float(dataset[index]["image"]) for index in range(5)] == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_an_error_ends_the_filling_with_its_threads() -> None:
    finished: list[int] = []

    def load(number: int) -> dict[str, torch.Tensor]:
        if number == 1:
            raise ValueError("case 1 is damaged")
        time.sleep(0.1)
        finished.append(number)
        return {"image": torch.zeros(1)}

    with pytest.raises(ValueError, match="case 1 is damaged"):
        build_cache(range(9), transform=load, num_cached=9, num_threads=2, progress=False)
    at_the_end = list(finished)
    time.sleep(0.3)
    assert finished == at_the_end
    assert len(finished) <= 2
    assert not any(thread.name.startswith("cache") for thread in threading.enumerate())
