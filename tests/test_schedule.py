"""The learning rate's factor, step by step."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.schedule import build_optimisation, build_scheduler, rate_factor


def factors(schedule: str, *, num_steps: int, num_warmup: int = 0) -> list[float]:
    return [
        rate_factor(step, schedule=schedule, num_steps=num_steps, num_warmup=num_warmup)
        for step in range(num_steps + 2)
    ]


def test_constant() -> None:
    assert factors("constant", num_steps=2) == [1.0, 1.0, 1.0, 1.0]


def test_cosine_falls_to_0_and_stays() -> None:
    # cos(pi/2) is 6e-17 in float64.
    assert factors("cosine", num_steps=2) == pytest.approx([1.0, 0.5, 0.0, 0.0], abs=1e-15)


def test_poly_is_that_of_nnunet() -> None:
    assert factors("poly", num_steps=4) == [1.0, 0.75**0.9, 0.5**0.9, 0.25**0.9, 0.0, 0.0]


def test_warm_up_reaches_1_and_then_the_schedule_begins() -> None:
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert factors("cosine", num_steps=6, num_warmup=4) == pytest.approx(expected, abs=1e-15)


def test_a_warm_up_as_long_as_the_run_does_not_divide_by_0() -> None:
    assert factors("poly", num_steps=2, num_warmup=2) == [0.5, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("step", [0, 5])
def test_an_unknown_schedule_is_named_also_during_the_warm_up(step: int) -> None:
    with pytest.raises(ValueError, match="expected one of constant, cosine, poly; found 'step'"):
        rate_factor(step, schedule="step", num_steps=9, num_warmup=2)


def test_the_scheduler_moves_the_optimiser() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=8.0)
    scheduler = build_scheduler(optimizer, schedule="constant", num_steps=8, warmup_fraction=0.5)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]


def test_a_restored_scheduler_goes_on_where_it_was() -> None:
    def build() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, build_scheduler(
            optimizer, schedule="poly", num_steps=4, warmup_fraction=0.0
        )

    optimizer, scheduler = build()
    optimizer.step()
    scheduler.step()
    _, other = build()
    other.load_state_dict(scheduler.state_dict())
    assert other.get_last_lr() == [0.75**0.9]
    optimizer.step()
    other.step()
    assert other.get_last_lr() == [0.5**0.9]


def optimiser_of(network: torch.nn.Module, *, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    optimizer, _ = build_optimisation(
        network,
        epoch_length=4,
        max_epochs=2,
        learning_rate=1e-3,
        adam_epsilon=1e-7,
        weight_decay=weight_decay,
        accumulation_steps=1,
        schedule="constant",
        warmup_fraction=0.0,
    )
    return optimizer


@pytest.mark.parametrize(
    ("weight_decay", "kind"), [(0.0, torch.optim.Adam), (0.1, torch.optim.AdamW)]
)
def test_the_optimiser_and_its_kernels_on_a_cpu(
    weight_decay: float, kind: type[torch.optim.Optimizer]
) -> None:
    optimizer = optimiser_of(torch.nn.Linear(1, 1), weight_decay=weight_decay)
    assert type(optimizer) is kind
    assert optimizer.defaults["eps"] == 1e-7
    assert optimizer.param_groups[0]["fused"] is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="one kernel for all is CUDA's matter")
def test_on_cuda_one_kernel_moves_all_parameters() -> None:
    optimizer = optimiser_of(torch.nn.Linear(1, 1).cuda())
    assert optimizer.param_groups[0]["fused"] is True


def test_a_state_from_a_gpu_goes_on_with_the_kernels_of_this_machine() -> None:
    def step(optimizer: torch.optim.Optimizer) -> None:
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    torch.manual_seed(0)
    network, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizer, restored = optimiser_of(network), optimiser_of(other)
    step(optimizer)
    state = optimizer.state_dict()
    other.load_state_dict(network.state_dict())
    state["param_groups"][0]["fused"] = True
    restored.load_state_dict(state)
    assert state["param_groups"][0]["fused"] is True  # the caller's is left alone
    assert restored.param_groups[0]["fused"] is None
    step(optimizer)
    step(restored)
    assert all(map(torch.equal, network.parameters(), other.parameters()))
