"""The benchmarks' own arithmetic: what alternates, what is compared, and what a table says."""

from __future__ import annotations

import importlib
import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import measure, tables
from benchmarks.measure import Comparison, Run, Side, compare
from benchmarks.plot import draw_costs
from pipeline.model.heap import settle_memory

MEBIBYTE = 1 << 20
MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "threads": 2,
    "memory_gb": 24.0,
    "python": "3.11",
    "versions": {"torch": "2.13.0"},
    "sgemm_gflops": 145.0,
    "copy_gb_per_s": 8.0,
}


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

    settle_memory()  # a test before this one may have let the process keep what it frees
    run = measure.measure(take)
    assert run.seconds > 0.05
    # Other allocations of the process may give some of it back.
    assert 48 * MEBIBYTE < run.peak_bytes < 128 * MEBIBYTE


def test_the_table_holds_every_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name, goal in (("first", 0.5), ("second", 0.1)):
        content = {"machine": MACHINE, "comparisons": [comparison(goal=goal).to_dict()]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    tables.write_table()
    text = (tmp_path / "README.md").read_text()
    row = "| C0 | a thing | theirs: 2 s | ours: 1 s | 0.250 (0.100 to 0.500) |"
    assert f"{row} 0.500 | yes |" in text
    assert f"{row} 0.100 | **no** |" in text
    assert "sgemm 145.0 GFLOP/s" in text


@pytest.mark.parametrize(("grows", "verdict"), [(False, "flat"), (True, "it grew")])
def test_a_proof_of_the_memory_is_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grows: bool, verdict: str
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    proof = {
        "data": "2 phantom cases",
        "num_cases": 100,
        "num_workers": 2,
        "form": "packed",
        "kept_bytes": 6e8,
        "bytes_before": 4e8,
        "bytes_cached": 1e9,
        "bytes_of_epochs": [1.1e9, 1.2e9, 1.15e9],
        "bytes_of_workers": [2e8, 3e8, 2e8],
        "caching_s": 50.0,
        "epoch_s": [20.0, 22.0, 21.0],
        "is_flat": not grows,
    }
    (tmp_path / "memory.json").write_text(json.dumps({"machine": MACHINE, "proof": proof}))
    tables.write_table()
    text = (tmp_path / "README.md").read_text()
    assert "100 cases (2 phantom cases), packed: 0.60 GB kept; cached in 50 s, 21.0 s an" in text
    assert "1.200 GB at most in 3 epochs, 1.150 GB after the last" in text
    assert verdict in text
    assert "2 workers had at most 0.300 GB" in text


def test_tables_of_accuracy_are_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    tables.write_table()
    assert "accuracy" not in (tmp_path / "README.md").read_text()
    (tmp_path / "accuracy").mkdir()
    for name in ("accuracy.md", "ablation.md", "accuracy.json"):
        (tmp_path / "accuracy" / name).touch()
    tables.write_table()
    links = "[ablation](accuracy/ablation.md), [accuracy](accuracy/accuracy.md)."
    assert links in (tmp_path / "README.md").read_text()


def test_costs_are_drawn(tmp_path: Path) -> None:
    """The same costs make the same file, in which every line has its name and every size a tick."""
    costs = {
        name: {8: runs(1.0, 2.0), 16: runs(1.5, 1.0), 32: runs(1.0, 1.2)}
        for name in ("caching", "training")
    }
    for name in ("a", "b"):
        draw_costs(costs, tmp_path / name / "costs.svg", title="Costs by number")
    text = (tmp_path / "a" / "costs.svg").read_text()
    assert text == (tmp_path / "b" / "costs.svg").read_text()
    assert "<title>Costs by number</title>" in text
    for word in ("caching", "training", "8", "16", "32"):
        assert f">{word}</text>" in text


def test_a_drawing_is_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    content = {"machine": MACHINE, "comparisons": [comparison().to_dict()]}
    for name in ("drawn", "plain"):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "drawn.svg").touch()
    tables.write_table()
    text = (tmp_path / "README.md").read_text()
    assert "](drawn.svg)" in text
    assert "](plain.svg)" not in text


@pytest.mark.parametrize("name", command.BENCHMARKS)
def test_every_benchmark_can_be_run_by_its_name(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").run)


def test_a_wrong_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["nothing"])
    assert "found nothing" in capsys.readouterr().err


def test_each_runs_in_a_process_of_its_own_until_one_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[list[str]] = []

    def run(words: list[str], *, check: bool) -> subprocess.CompletedProcess[bytes]:
        started.append(words[1:])
        return subprocess.CompletedProcess(words, returncode=len(started) - 1)

    monkeypatch.setattr(subprocess, "run", run)
    assert command.main(["reading", "metrics", "network", "--repeats", "2"]) == 1
    assert started == [
        ["-m", "benchmarks", "reading", "--repeats=2"],
        ["-m", "benchmarks", "metrics", "--repeats=2"],
    ]
