"""How much memory there is, and what is kept in it."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from pipeline.data import caching
from pipeline.data.caching import build_cache, free_memory_bytes, item_bytes, num_cacheable

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
