"""The ablation: its rows lead from one preset to the next, and each is compared with its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CohortFactory
from test_accuracy_benchmark import COSTS, write_masks

from benchmarks import ablation, accuracy
from benchmarks.accuracy_peers.methods import Method
from pipeline.config import Settings, build_settings, differences, parse_assignments, preset


def settings_of(method: Method) -> Settings:
    return build_settings(preset(str(method.preset)), parse_assignments(method.assignments))


def methods() -> dict[str, Method]:
    return {method.name: method for method, _ in ablation.rows()}


# How long, on which grid, and whether the fold is looked at, is the benchmark's own choice.
NOT_COMPARED = ("training.max_epochs", "validation.", "preprocessing.spacing_mm")


def compared(left: Settings, right: Settings) -> list[str]:
    return [each for each in differences(left, right) if not each.startswith(NOT_COMPARED)]


def test_the_first_rows_lead_from_original_to_exactly_quick() -> None:
    assert compared(settings_of(methods()["original"]), build_settings(preset("original"))) == []
    assert compared(settings_of(methods()["quick"]), build_settings(preset("quick"))) == []


def test_every_row_differs_from_its_own_in_what_it_says_alone() -> None:
    changes = {change.name: change for change in (*ablation.TO_QUICK, *ablation.TO_STRONG)}
    for method, base in ablation.rows():
        if base is None or method in ablation.TRIED:
            continue
        changed = compared(settings_of(methods()[base]), settings_of(method))
        assert changed, method.name
        # The network's settings are one value among the settings.
        keys = tuple(key.split(".settings.")[0] for key in changes[method.name].keys)
        assert all(each.startswith(keys) for each in changed), changed


def test_what_strong_has_beyond_quick_is_a_row_or_not_for_two_cores() -> None:
    together = [
        assignment
        for change in ablation.TO_STRONG
        for assignment in ablation.assignments(change, preset_name="strong")
    ]
    every = build_settings(preset("quick"), parse_assignments(together))
    left = compared(every, build_settings(preset("strong")))
    assert sorted(each.split(":")[0] for each in left) == [
        "network.settings",  # 24 filters
        "training.learning_rate",
        "training.warmup_fraction",
    ]


def test_rows_are_compared_with_those_that_they_change(
    cohort_factory: CohortFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_method(task: Any, method: Method, *, python: Path | None) -> Any:
        task.stage(
            f"{method.name}/all",
            lambda: write_masks(task, method.name, wrong=method.name == "original") or {},
        )
        return COSTS

    monkeypatch.setattr(accuracy, "run_method", run_method)
    words = [str(cohort_factory()), "-o", str(tmp_path / "out"), "--threads=1", "--rows"]
    assert ablation.main([*words, "original", "brain-box", "brain-z-score", "schedule"]) == 0
    content = json.loads((tmp_path / "out" / "ablation.json").read_text())
    found = {
        (each["of"], each["minus"]): each["differences"]["dice_mean"]["mean_difference"]
        for each in content["comparisons"]
    }
    assert found == {
        ("brain-box", "original"): pytest.approx(1 / 3),
        ("brain-z-score", "brain-box"): 0.0,
    }
    assert "# What each change is worth" in (tmp_path / "out" / "ablation.md").read_text()
