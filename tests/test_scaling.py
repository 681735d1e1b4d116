"""The benchmark of many cases, on small phantoms: whether it measures, and whether it can fail."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import measure, scaling
from benchmarks.gpu import make_phantoms
from benchmarks.works import light_model
from pipeline.data.datalist import Case, read_datalist
from pipeline.data.forms import FORMS, Preparation

LEAK_BYTES = 80 * 2**20


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, ...]:
    """Two phantoms that become 32 x 32 x 32 voxels."""
    path = make_phantoms(tmp_path_factory.mktemp("cohort"), num_cases=1, shape=(48, 48, 40))
    return read_datalist(path).training


@pytest.fixture(autouse=True)
def small(cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "many_cases", lambda count: (list(cases[:count]), "phantoms"))
    monkeypatch.setattr(measure, "PATIENCE_S", 0.0)
    monkeypatch.setattr(measure, "IDLE_SECONDS", 0.0)


def prove(output: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code = scaling.main(["--cases", "2", "--epochs", "4", "--output", str(output), *words])
    return code, json.loads(output.read_text())["proof"]


def test_each_work_has_its_cost_at_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "SIZES", (1, 2))
    costs, data = scaling.measured_costs(2)
    assert data == "phantoms"
    assert len(costs) == 3
    for runs in costs.values():
        assert {size: len(of_size) for size, of_size in runs.items()} == {1: 2, 2: 2}
        assert all(run.seconds > 0 for of_size in runs.values() for run in of_size)


def test_a_cost_is_that_of_one_case(
    cases: tuple[Case, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure.Run(3.0, 5.0, 7, 11, 0.0)
    real = measure.measure

    def fixed(work: Any) -> measure.Run:
        real(work)
        return whole

    monkeypatch.setattr(scaling, "measure", fixed)
    preparation = Preparation(scaling.SETTINGS, mask_nonfinite=False)
    preparation.measure(cases[0])
    costs = scaling.costs_of(cases, preparation, light_model())
    assert {(run.seconds, run.cpu_seconds) for run in costs.values()} == {(1.5, 2.5)}


@pytest.mark.parametrize("form", FORMS)
def test_memory_stays_flat(tmp_path: Path, form: str) -> None:
    code, proof = prove(tmp_path / "memory.json", "--form", form)
    assert (code, proof["is_flat"]) == (0, True)
    assert proof["form"] == FORMS[form]  # type: ignore[index]
    assert len(proof["bytes_of_epochs"]) == len(proof["epoch_s"]) == 4
    assert min(proof["kept_bytes"], *proof["bytes_of_epochs"]) > 0


def test_the_workers_own_memory_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "LOOK_EVERY", 1)
    _, proof = prove(tmp_path / "memory.json", "--workers", "1")
    assert min(proof["bytes_of_workers"]) > 0


def test_memory_that_grows_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something keeps 80 MiB of each epoch, in truth."""
    kept: list[mmap.mmap] = []
    walk = scaling._walk

    def leaking(*words: Any) -> Iterator[int]:
        # From the system: the heap may have as much to reuse, freed by other tests.
        kept.append(mmap.mmap(-1, LEAK_BYTES))
        kept[-1].write(b"\x01" * LEAK_BYTES)
        yield from walk(*words)

    monkeypatch.setattr(scaling, "_walk", leaking)
    code, proof = prove(tmp_path / "memory.json")
    assert (code, proof["is_flat"]) == (1, False)
    grown = proof["bytes_of_epochs"][-1] - proof["bytes_of_epochs"][0]
    assert grown > 1.9 * LEAK_BYTES  # two epochs; something else may have been given back


def test_too_few_epochs_prove_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        scaling.main(["--epochs", "2", "--output", str(tmp_path / "memory.json")])
    assert "--epochs: expected more than 2; found 2" in capsys.readouterr().err
