"""The benchmarks' own arithmetic: what alternates, what is compared, and what a table says."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import measure, tables
from benchmarks.measure import Comparison, Run, Side, compare

MEBIBYTE = 1 << 20


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the other tests."""
    monkeypatch.setattr(measure, "PATIENCE_S", 0.0)
    monkeypatch.setattr(measure, "IDLE_SECONDS", 0.0)


def runs(*seconds: float) -> tuple[Run, ...]:
    return tuple(Run(each, each, 0, 10 * MEBIBYTE, 0.0) for each in seconds)


def comparison(*, goal: float | None = 0.5) -> Comparison:
    return Comparison(
        key="C0",
        what="a thing",
        reference=Side("theirs", runs(1.0, 2.0, 30.0)),
        ours=Side("ours", runs(0.25, 1.0, 3.0)),
        goal=goal,
        same="equal",
        data="nothing",
    )


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    assert comparison().ratios == [0.25, 0.5, 0.1]
    assert comparison().ratio == 0.25
    assert comparison().reference.median() == 2.0


@pytest.mark.parametrize(("goal", "reached"), [(0.25, True), (0.2, False), (None, None)])
def test_a_goal_is_reached_or_not_or_there_is_none(goal: float, reached: bool | None) -> None:
    assert comparison(goal=goal).reaches_goal is reached


def test_the_sides_alternate_after_a_first_run_that_does_not_count() -> None:
    calls: list[str] = []
    done = compare(
        "C0",
        "a thing",
        reference=("theirs", lambda: calls.append("theirs")),
        ours=("ours", lambda: calls.append("ours")),
        same=lambda theirs, ours: f"{theirs} and {ours}",
        goal=None,
        data="nothing",
        repeats=3,
    )
    assert calls == ["theirs", "ours", "theirs", "ours", "ours", "theirs", "theirs", "ours"]
    assert (len(done.reference.runs), len(done.ours.runs)) == (3, 3)
    assert done.same == "None and None"


def test_sides_that_differ_are_not_compared() -> None:
    def same(theirs: int, ours: int) -> str:
        assert theirs == ours, "other values"
        return "equal"

    with pytest.raises(AssertionError, match="other values"):
        compare(
            "C0",
            "a thing",
            reference=("theirs", lambda: 1),
            ours=("ours", lambda: 2),
            same=same,
            goal=None,
            data="nothing",
        )


def test_what_a_run_took_is_seen() -> None:
    def take() -> np.ndarray:
        time.sleep(0.05)
        return np.ones(64 * MEBIBYTE, dtype=np.uint8)

    run = measure.measure(take)
    assert run.seconds > 0.05
    # Other allocations of the process may give some of it back.
    assert 48 * MEBIBYTE < run.peak_bytes < 128 * MEBIBYTE


def test_the_table_holds_every_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    machine = {
        "processor": "a processor",
        "cores": 2,
        "threads": 2,
        "memory_gb": 24.0,
        "python": "3.11",
        "versions": {"torch": "2.13.0"},
        "sgemm_gflops": 145.0,
        "copy_gb_per_s": 8.0,
    }
    for name, goal in (("first", 0.5), ("second", 0.1)):
        content = {"machine": machine, "comparisons": [comparison(goal=goal).to_dict()]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    tables.write_table()
    text = (tmp_path / "README.md").read_text()
    row = "| C0 | a thing | theirs: 2 s | ours: 1 s | 0.250 (0.100 to 0.500) |"
    assert f"{row} 0.500 | yes |" in text
    assert f"{row} 0.100 | **no** |" in text
    assert "sgemm 145.0 GFLOP/s" in text


@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_every_benchmark_can_be_run_by_its_name(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").run)


def test_a_wrong_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["nothing"])
    assert "found nothing" in capsys.readouterr().err
