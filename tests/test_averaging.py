"""The moving average of the weights, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.training.averaging import AveragedWeights


def network_of(value: float) -> nn.Module:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    return network


def weight_of(network: nn.Module) -> float:
    return next(network.parameters()).item()


def test_the_average_follows_the_weights_slower_the_longer_it_lasts() -> None:
    averaged = AveragedWeights(network_of(0.0), decay=0.9)
    averaged.follow(network_of(1.0), num_steps=1)
    # (1 + 1) / (10 + 1) of the old one stays.
    assert weight_of(averaged.network) == pytest.approx(9 / 11, abs=1e-6)
    averaged.follow(network_of(2.0), num_steps=1000)
    assert weight_of(averaged.network) == pytest.approx(0.9 * 9 / 11 + 0.1 * 2, abs=1e-6)


def test_the_network_itself_is_left_alone() -> None:
    network = network_of(1.0)
    averaged = AveragedWeights(network, decay=0.5)
    nn.init.constant_(network.weight, 3.0)
    averaged.follow(network, num_steps=100)
    assert weight_of(network) == 3.0
    assert weight_of(averaged.network) == 2.0
    assert not next(averaged.network.parameters()).requires_grad


def test_what_a_normalisation_has_counted_is_taken_over() -> None:
    network = nn.BatchNorm1d(1)
    averaged = AveragedWeights(network, decay=0.5)
    network(torch.tensor([[1.0], [3.0]]))
    averaged.follow(network, num_steps=1)
    assert torch.equal(averaged.network.running_mean, network.running_mean)  # type: ignore[arg-type]
    assert int(averaged.network.num_batches_tracked) == 1  # type: ignore[arg-type]
