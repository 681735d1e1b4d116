"""Memory that runs out while a run caches or trains: exit 4, the numbers, and what to try."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import make_cohort
from runs import TINY, output_of, start_training

from networks.unet3d import UNet3D
from pipeline import train
from pipeline.config import build_settings
from pipeline.data.loading import LoadCase
from pipeline.errors import ResourceError, SettingsError
from pipeline.training.shortage import naming_shortages, smaller_cache, smaller_step

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cohort(tmp_path_factory.mktemp("cohort"), num_cases=2, shape=(64, 64, 64))


def settings_of(**changes: Any) -> dict[str, Any]:
    return build_settings(changes).model_dump(mode="json")


def fail_with(error: Exception, settings: dict[str, Any], *, needed_bytes: int = 0) -> None:
    with naming_shortages(
        settings, doing=lambda: "now", remedy="Rest.", device=CPU, needed_bytes=needed_bytes
    ):
        raise error


def limit_memory() -> None:
    """Leave this process 450 MB of address space more than it has."""
    limit = psutil.Process().memory_info().vms + 450_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@pytest.mark.slow
def test_memory_that_runs_out_in_a_step_ends_with_4(cohort: Path, tmp_path: Path) -> None:
    """For real: 64 filters on 64^3 voxels keep 67 MB a layer."""
    folder = tmp_path / "run"
    process = start_training(
        cohort, folder, "--set=network.settings.num_filters=64", before=limit_memory
    )
    process.join(60)
    told = output_of(folder).read_text()
    assert process.exitcode == 4, told
    assert "out of memory after iteration 0. A step needs at least " in told
    assert "Start a new run with --set preprocessing.spacing_mm=2.0" in told
    assert "Traceback" not in told


def test_memory_that_runs_out_while_caching_ends_with_4(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Asks for more than there is, for real, where a case is read."""
    monkeypatch.setattr(LoadCase, "__call__", lambda *_: torch.empty(10**15))
    assert train.main([str(cohort), f"--output-dir={tmp_path / 'run'}", *TINY]) == 4
    told = capsys.readouterr().err
    assert "out of memory while the cases were read and cached" in told
    assert "--set loading.cache_memory_fraction=0.25" in told


def test_memory_of_a_gpu_that_runs_out_ends_with_4(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """Simulated: the network raises what torch raises on CUDA."""

    def forward(network: UNet3D, image: torch.Tensor) -> torch.Tensor:
        if image.device.type == "meta":  # the prediction is made
            return original(network, image)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    original = UNet3D.forward
    monkeypatch.setattr(UNet3D, "forward", forward)
    assert train.main([str(cohort), f"--output-dir={tmp_path / 'run'}", *TINY]) == 4
    assert "out of memory after iteration 0. A step needs" in capsys.readouterr().err


def test_the_peak_of_a_gpu_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: no GPU is asked."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 7_000_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1_000_000_000, 8_000_000_000))
    with (
        pytest.raises(ResourceError, match=r"the peak was 7\.00 GB, free are 1\.00 GB\. Rest\."),
        naming_shortages(settings_of(), doing=lambda: "now", remedy="Rest.", device=CUDA),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_the_predicted_need_is_told() -> None:
    with pytest.raises(ResourceError, match=r"out of memory now\. A step needs at least 3\.00 GB"):
        fail_with(MemoryError(), settings_of(), needed_bytes=3 * 10**9)


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. ",
        "DataLoader worker (pid(s) 7, 8) exited unexpectedly",
        "Caught RuntimeError in DataLoader worker process 0.\nunable to write to file </torch_1>",
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
    ],
)
def test_what_torch_says_of_workers_without_memory(text: str) -> None:
    settings = settings_of(loading={"num_workers": 4})
    with pytest.raises(ResourceError, match=r"a loader worker failed now: .*num_workers=2"):
        fail_with(RuntimeError(text), settings)


@pytest.mark.parametrize("error", [SettingsError("ours"), RuntimeError("a bug"), ValueError("x")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        fail_with(error, settings_of())


@pytest.mark.parametrize(
    ("changes", "device", "expected"),
    [
        ({}, CPU, "preprocessing.spacing_mm=2.0"),
        ({"preprocessing": {"spacing_mm": 2.0}}, CPU, "preprocessing.spacing_mm=3"),
        ({"training": {"batch_size": 5}}, CPU, "training.batch_size=2"),
        ({"training": {"amp": False}}, CUDA, "training.amp=true"),
    ],
)
def test_the_setting_to_try_first(
    changes: dict[str, Any], device: torch.device, expected: str
) -> None:
    assert f"--set {expected}," in smaller_step(settings_of(**changes), device)


def test_the_cache_is_halved() -> None:
    settings = settings_of(loading={"cache_memory_fraction": 0.2})
    assert "--set loading.cache_memory_fraction=0.1," in smaller_cache(settings)
