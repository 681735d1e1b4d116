"""Memory that runs out in a pass: smaller windows, or an error with the numbers.

CUDA is simulated by a network that raises what torch raises; what the CPU's allocator raises is
real in one test, below a limit on the process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_cohort
from models import save_model
from torch import nn

import networks
from pipeline import infer
from pipeline.inference.memory import fitting, is_out_of_memory
from pipeline.inference.needs import halved_window

ON_CPU = "[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory: you tried"
RAISED: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError(ON_CPU),
    lambda: MemoryError(),
]


class Greedy(nn.Module):
    """Runs out of memory with more voxels than `most`; says class 0 with a dropout's noise."""

    divisor = 8
    most = 70**3
    error = staticmethod(RAISED[0])

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv3d(in_channels, out_channels, 1)
        self.dropout = nn.Dropout(0.1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.device.type != "meta" and image[0, 0].numel() > self.most:
            raise self.error()
        return self.dropout(self.layer(image))


@pytest.fixture
def greedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that segments one case of 160 x 96 x 40 voxels with `Greedy`."""
    monkeypatch.setitem(networks.NETWORKS, "Greedy", Greedy)
    save_model(tmp_path / "run", network={"name": "Greedy"})
    listed = make_cohort(tmp_path, num_cases=1, num_folds=None, shape=(160, 96, 40))

    def segment(*options: str) -> int:
        return infer.main(
            ["-m", str(tmp_path / "run"), "-o", str(tmp_path / "out"), str(listed), *options]
        )

    return segment


@pytest.mark.parametrize("error", RAISED)
def test_the_windows_are_halved_until_they_fit(
    greedy: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[], BaseException],
) -> None:
    monkeypatch.setattr(Greedy, "error", staticmethod(error))
    monkeypatch.setattr(Greedy, "most", 64 * 64 * 40)
    assert greedy("--uncertainty", "2") == 0
    record: dict[str, Any] = json.loads((tmp_path / "out" / "case_000.json").read_text())
    assert record["windows"] == [[64, 64, 40]]
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "run/best.pt: out of memory; again, in windows of 80 x 80 x 40" in log
    assert "run/best.pt: out of memory; again, in windows of 64 x 64 x 40" in log


def test_where_the_smallest_window_does_not_fit(
    greedy: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Greedy, "most", 1)
    assert greedy() == 4
    message = capsys.readouterr().err
    assert "run/best.pt: out of memory with 64 x 64 x 40 of 160 x 96 x 40 voxels" in message
    assert "GB of memory; free now: " in message
    assert message.endswith("End other programs, or use a machine with more memory.\n")


@pytest.mark.parametrize("window", ["96", "whole"])
def test_a_window_that_was_asked_for_is_not_changed(
    greedy: Callable[..., int], window: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert greedy("--window", window) == 4
    message = capsys.readouterr().err
    assert "out of memory with " in message
    assert message.endswith(
        "Leave --window out, so that it is chosen by the memory, or choose a smaller one.\n"
    )


def test_an_error_of_another_kind_is_no_want_of_memory(
    greedy: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Greedy, "error", staticmethod(lambda: RuntimeError("a bug of ours")))
    with pytest.raises(RuntimeError, match="a bug of ours"):
        greedy()


def test_memory_that_runs_out_elsewhere_names_the_case(
    greedy: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhaust(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pipeline.inference.segmentation.classes_to_values", exhaust)
    monkeypatch.setattr(Greedy, "most", 160 * 96 * 40)
    assert greedy() == 4
    assert "ResourceError: case_000: out of memory (" in capsys.readouterr().err


def test_what_libraries_wrap_is_found() -> None:
    outer = RuntimeError("applying transform failed")
    outer.__cause__ = RuntimeError(ON_CPU)
    assert is_out_of_memory(outer)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_what_cuda_caches_is_given_back_before_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Simulated: there need not be a GPU where this runs."""
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))

    def attempt(window: tuple[int, ...] | None) -> str:
        if window is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    found = fitting(attempt, None, smaller=lambda _: (64, 64, 64), name="run/best.pt")
    assert found == ("done", (64, 64, 64))
    assert emptied == [True]


@pytest.mark.parametrize(
    ("window", "size", "expected"),
    [
        (None, (240, 240, 160), (120, 120, 120)),
        ((120, 120, 120), (240, 240, 160), (64, 64, 64)),
        ((64, 64, 64), (240, 240, 160), None),
        (None, (64, 64, 48), None),
        (None, (160, 32, 32), (80, 32, 32)),
    ],
)
def test_halving_by_hand(
    window: tuple[int, ...] | None, size: tuple[int, ...], expected: tuple[int, ...] | None
) -> None:
    assert halved_window(window, size=size, divisor=8) == expected


REAL = """
import resource, sys
from pathlib import Path
import torch
from models import save_model
from pipeline.inference.predictor import Member
from pipeline.model.trained import load_model
network = {"name": "UNet3D", "num_levels": 2, "num_filters": 16}
model = load_model(save_model(Path(sys.argv[1]) / "run", network=network))
how = {"window": "auto", "overlap": 0.5, "flips": False, "brain_only": False, "amp": True}
member = Member(model, device=torch.device("cpu"), **how)
member.postprocessing = lambda item: {"probabilities": item["pred"]}
image = torch.zeros(4, 128, 128, 128)
from monai.data import MetaTensor
item = {"image": MetaTensor(image)}
member.probabilities({"image": MetaTensor(image[:, :64, :64, :64])}, window=None, flips=False)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
found, window = member.fitting_probabilities(item, window=None, flips=False)
print(tuple(found.shape), window)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems limit no address space")
def test_the_allocator_of_the_cpu_for_real(tmp_path: Path) -> None:
    """Below a limit on the process, which the prediction from the free memory knows nothing of."""
    folder = Path(__file__).parent
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{folder.parent}:{folder}",
    }
    command = [sys.executable, "-c", REAL, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(4, 128, 128, 128) (64, 64, 64)\n"
