"""In which precision the engines compute: float32 on a CPU, and what a GPU has on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import DataLoader

from pipeline.model.precision import Forward, half_precision
from pipeline.training import engines
from pipeline.training.engines import build_evaluator, build_trainer
from pipeline.training.losses import build_loss

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Noting(torch.nn.Module):
    """A 1x1x1 convolution that notes the type it computes in, and the sizes it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv3d(1, 2, 1)
        self.found: torch.dtype | None = None
        self.sizes: set[tuple[int, ...]] = set()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(image)
        self.found = logits.dtype
        self.sizes.add(tuple(image.shape[2:]))
        return logits


def loader() -> Any:
    generator = torch.Generator().manual_seed(0)
    cases = [
        {
            "case": "case",
            "image": torch.rand(1, 4, 4, 4, generator=generator),
            "label": torch.randint(0, 2, (1, 4, 4, 4), generator=generator),
        }
    ]
    return DataLoader(cases, batch_size=1)  # type: ignore[arg-type]  # a list serves as well


def trainer_of(network: torch.nn.Module) -> Any:
    return build_trainer(
        network,
        loader=loader(),
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss=build_loss("cross_entropy"),
        device=CPU,
        max_epochs=1,
        amp=True,
        accumulation_steps=1,
        handlers=[],
    )


@pytest.mark.parametrize(
    ("has_bfloat16", "amp", "device", "expected"),
    [
        (True, True, CUDA, torch.bfloat16),
        (False, True, CUDA, torch.float16),
        (True, False, CUDA, None),
        (True, True, CPU, None),
    ],
)
def test_the_precision_of_a_device(
    monkeypatch: pytest.MonkeyPatch,
    has_bfloat16: bool,
    amp: bool,
    device: torch.device,
    expected: torch.dtype | None,
) -> None:
    """The GPU is simulated; emulated bfloat16 is slower than float16, and does not count."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert half_precision(device, amp=amp) == expected


def test_on_a_cpu_all_is_float32() -> None:
    network = Noting()
    trainer = trainer_of(network)
    trainer.run()
    assert network.found == torch.float32
    assert trainer.scaler is None


def test_bfloat16_trains_without_a_scaler_and_its_loss_is_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU, told to do what it does on a GPU."""
    monkeypatch.setattr(engines, "half_precision", lambda device, *, amp: torch.bfloat16)
    network = Noting()
    trainer = trainer_of(network)
    before = network.layer.weight.detach().clone()
    trainer.run()
    assert network.found == torch.bfloat16
    assert trainer.state.output["pred"].dtype == torch.float32
    assert trainer.state.output["loss"].dtype == torch.float32
    assert network.layer.weight.dtype == torch.float32
    assert not torch.equal(network.layer.weight, before)
    assert trainer.scaler is None


# A scaler on a machine without a GPU says that it does nothing.
@pytest.mark.filterwarnings("ignore:.*CUDA is not available:UserWarning")
def test_float16_has_a_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "half_precision", lambda device, *, amp: torch.float16)
    assert trainer_of(Noting()).scaler is not None


def test_the_evaluator_computes_as_the_trainer_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "half_precision", lambda device, *, amp: torch.bfloat16)
    network = Noting()
    evaluator = build_evaluator(
        network,
        loader=loader(),
        postprocessing=lambda item: item,
        device=CPU,
        amp=True,
        window=None,
        divisor=1,
        handlers=[],
    )
    evaluator.run()
    assert network.found == torch.bfloat16
    assert evaluator.state.output[0]["pred"].dtype == torch.float32


def test_the_evaluator_uses_the_windows_that_masks_are_made_with() -> None:
    network = Noting()
    evaluator = build_evaluator(
        network,
        loader=loader(),
        postprocessing=lambda item: item,
        device=CPU,
        amp=False,
        window=(2, 4, 4),
        divisor=1,
        handlers=[],
    )
    evaluator.run()
    assert network.sizes == {(2, 4, 4)}
    assert evaluator.state.output[0]["pred"].shape == (2, 4, 4, 4)


def test_half_precision_is_left_after_the_network() -> None:
    Forward(torch.bfloat16)(torch.ones(1, 1, 2, 2, 2), Noting())
    assert not torch.is_autocast_enabled("cpu")
