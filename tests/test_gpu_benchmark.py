"""The benchmark of a GPU, on a processor and tiny phantoms: whether it measures, not how fast."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from benchmarks import gpu, gpu_bench, tables
from benchmarks.gpu_bench import Bench, Figure
from pipeline.data.datalist import read_datalist

ONLY_CUDA = {"G6"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpu.make_phantoms(tmp_path_factory.mktemp("cohort"), num_cases=1, shape=(32, 32, 24))


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "ROUNDS", 1)
        patch.setattr(gpu_bench, "NUM_WARMUP", 2)
        patch.setattr(gpu_bench, "NUM_STEPS", 3)
        yield


@pytest.fixture(scope="module")
def content(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run writes; `benchmarks/results` is not touched."""
    folder = tmp_path_factory.mktemp("elsewhere")
    output = folder / "new" / "gpu.json"
    words = ["--device", "cpu", "--filters", "2", "--list", str(cohort), "--output", str(output)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "RESULTS", folder / "results")
        patch.setattr(tables, "RESULTS", folder / "results")
        assert gpu.main(words) == 0
    assert [path.name for path in folder.rglob("*")] == ["new", "gpu.json"]
    return dict(json.loads(output.read_text()))


@pytest.fixture
def bench(cohort: Path, tmp_path: Path) -> Bench:
    return Bench(tmp_path, device=torch.device("cpu"), datalist=read_datalist(cohort), filters=2)


def test_every_goal_has_a_figure(content: dict[str, Any]) -> None:
    values = {figure["key"]: figure["value"] for figure in content["figures"]}
    assert sorted(values) == [f"G{number}" for number in range(1, 8)]
    assert {key for key, value in values.items() if value is None} == ONLY_CUDA
    assert all(value > 0 for value in values.values() if value is not None)


def test_no_goal_is_claimed_for_another_device(content: dict[str, Any]) -> None:
    """On a processor and 16 x 16 x 16 voxels most values would be beyond the goals."""
    assert {figure["reaches_goal"] for figure in content["figures"]} == {None}


def test_the_run_has_its_curve(content: dict[str, Any]) -> None:
    curve = content["run"]["curve"]
    assert [row["epoch"] for row in curve] == [1, 2, 3, 4]
    assert all(row["training_loss"] > 0 and 0 <= row["dice_mean"] <= 1 for row in curve)


def test_the_figures_are_in_the_table(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "gpu.json").write_text(json.dumps(content))
    tables.write_table()
    text = (tmp_path / "README.md").read_text()
    assert "| G6 | peak memory of training, batch 1 | not measured | 5 GB |  |" in text
    assert "4 epochs of 1 cases" in text


@pytest.mark.parametrize(
    ("value", "at_least", "holds", "reached"),
    [
        (5.0, False, True, True),
        (5.1, False, True, False),
        (5.0, True, True, True),
        (4.9, True, True, False),
        (5.0, True, False, None),
        (None, False, True, None),
    ],
)
def test_a_goal_is_reached_or_not_or_nothing_is_said(
    value: float | None, at_least: bool, holds: bool, reached: bool | None
) -> None:
    figure = Figure("G0", "a thing", value, "s", 5.0, at_least)
    assert figure.to_dict(goals_hold=holds)["reaches_goal"] is reached


def test_a_batch_that_does_not_fit_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def step_seconds(batches: Sequence[Any], *, deterministic: bool) -> float:
        if len(batches[0]["image"]) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.5

    monkeypatch.setattr(bench, "step_seconds", step_seconds)
    figure = gpu.best_rate(bench, deterministic=True)
    assert figure.value == 2 / 0.5
    assert "batches of 1, 2; 4 is more than the memory holds" in figure.what


def test_where_not_even_one_case_fits_nothing_is_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step_seconds(*_: object, **__: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench, "step_seconds", step_seconds)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        gpu.best_rate(bench, deterministic=True)


def test_another_error_is_no_want_of_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def step_seconds(batches: Sequence[Any], **_: object) -> float:
        if len(batches[0]["image"]) == 4:
            raise RuntimeError("an illegal memory access")
        return 0.5

    monkeypatch.setattr(bench, "step_seconds", step_seconds)
    with pytest.raises(RuntimeError, match="illegal"):
        gpu.best_rate(bench, deterministic=True)


def test_a_device_that_computes_something_else_is_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call stands for the device."""
    calls: list[object] = []

    def chain(item: dict[str, MetaTensor]) -> dict[str, MetaTensor]:
        calls.append(item)
        return {"image": item["image"] + 1e-5 * len(calls)}

    monkeypatch.setattr(bench, "preprocessing", lambda _: chain)
    with pytest.raises(AssertionError, match="from the processor's"):
        gpu.preprocessing_figures(bench)
