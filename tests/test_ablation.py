"""The ablation: its rows lead from one preset to the next, and each is compared with its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import CohortFactory
from test_accuracy_benchmark import let_stand_in

from benchmarks import ablation
from benchmarks.accuracy_peers.methods import Method
from pipeline.config import Settings, build_settings, differences, parse_assignments, preset


def settings_of(method: Method) -> Settings:
    assert method.settings is not None
    return method.settings


def methods() -> dict[str, Method]:
    return {method.name: method for method, _ in ablation.rows()}


# How long, on which grid, and whether the fold is looked at, is the benchmark's own choice.
NOT_COMPARED = ("training.max_epochs", "validation.", "preprocessing.spacing_mm")


def compared(left: Settings, right: Settings) -> list[str]:
    return [each for each in differences(left, right) if not each.startswith(NOT_COMPARED)]


def test_the_first_rows_lead_from_original_to_exactly_quick() -> None:
    assert compared(settings_of(methods()["original"]), build_settings(preset("original"))) == []
    assert compared(settings_of(methods()["quick"]), build_settings(preset("quick"))) == []


# Settings that mean nothing without each other.
TOGETHER = (
    {"preprocessing.border_crop", "preprocessing.brain_box"},
    {"training.schedule", "training.warmup_fraction"},
)


def changed_settings(left: Settings, right: Settings) -> set[str]:
    """Return the names of the settings that differ, each of the network's on its own."""
    names = {each.split(":")[0] for each in compared(left, right)}
    if "network.settings" in names:
        one, other = left.network.settings, right.network.settings
        keys = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
        names = (names - {"network.settings"}) | {f"network.settings.{key}" for key in keys}
    return names


def test_every_row_is_one_change() -> None:
    for method, base in ablation.rows():
        if base is None:
            continue
        changed = changed_settings(settings_of(methods()[base]), settings_of(method))
        is_one = len(changed) == 1 or changed in TOGETHER
        assert is_one or {name.split(".")[0] for name in changed} == {"augmentation"}, method.name


# What these rows of the first ablation had in all, before their changes were told apart: a folder
# with their results can be gone on with.
FIRST_ROWS = {
    "brain-z-score": {"border_crop", "brain_box", "normalization", "sharpen_strength"},
    "instance-norm": {"loss", "norm", "dropout"},
    "schedule": {"learning_rate", "schedule", "warmup_fraction", "gradient_clip"},
    "8-filters": {"num_filters"},
}


def test_rows_that_were_two_changes_still_have_both() -> None:
    names: set[str] = set()
    for name, more in FIRST_ROWS.items():
        names |= more
        changed = changed_settings(build_settings(preset("original")), settings_of(methods()[name]))
        assert {each.split(".")[-1] for each in changed} == names, name


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


def run_rows(path: Path, out: Path, *rows: str) -> tuple[list[str], dict[tuple[str, str], float]]:
    """Return the rows of the table, and the differences in mean region Dice."""
    assert ablation.main([str(path), "-o", str(out), "--threads=1", "--rows", *rows]) == 0
    content = json.loads((out / "ablation.json").read_text())
    return list(content["methods"]), {
        (each["of"], each["minus"]): each["differences"]["dice_mean"]["mean_difference"]
        for each in content["comparisons"]
    }


def test_rows_are_compared_with_those_that_they_change(
    cohort_factory: CohortFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_stand_in(monkeypatch, wrong=("original",))
    path, out = cohort_factory(), tmp_path / "out"
    names, found = run_rows(path, out, "original", "brain-box", "unsharpened", "schedule")
    assert names == ["original", "brain-box", "unsharpened", "schedule"]
    assert found == {
        ("brain-box", "original"): pytest.approx(1 / 3),
        ("unsharpened", "brain-box"): 0.0,
    }
    assert "# What each change is worth" in (out / "ablation.md").read_text()


def test_a_row_that_is_added_leaves_the_others_in_the_table(
    cohort_factory: CohortFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = let_stand_in(monkeypatch, wrong=("original",)).started
    path, out = cohort_factory(), tmp_path / "out"
    run_rows(path, out, "residual", "quick", "original")
    names, found = run_rows(path, out, "brain-box")
    assert started == ["original", "quick", "residual", "brain-box"]
    # In the ablation's own order.
    assert names == ["original", "brain-box", "quick", "residual"]
    assert list(found) == [("brain-box", "original"), ("residual", "quick")]


def test_a_folder_with_another_row_of_the_same_name_is_refused(
    cohort_factory: CohortFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    let_stand_in(monkeypatch, wrong=())
    path, out = cohort_factory(), tmp_path / "out"
    run_rows(path, out, "original", "residual")
    note = out / "stages" / "residual" / "method.json"
    note.write_text(json.dumps({"preset": "quick", "assignments": ["seed=3"]}))
    words = [str(path), "-o", str(out), "--threads=1", "--rows", "brain-box"]
    assert ablation.main(words) == 2
    assert "residual: expected the settings that it was begun with" in capsys.readouterr().err
