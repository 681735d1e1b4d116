"""The memory layout of a network: fast where it is exact."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from networks import VolumeInferer, build_network
from networks.layout import memory_format_of

CPU = torch.device("cpu")
SMALL = {
    "UNet3D": {"num_levels": 2, "num_filters": 8, "norm": "instance"},
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "DynUNet": {"filters": [8, 16, 16]},
}


def test_layouts() -> None:
    convolution = nn.Conv3d(1, 1, 3)
    assert memory_format_of(convolution, CPU) == torch.channels_last_3d
    assert memory_format_of(convolution, torch.device("meta")) == torch.contiguous_format
    assert memory_format_of(lambda image: image, CPU) == torch.contiguous_format
    grouped = nn.Sequential(convolution, nn.GroupNorm(1, 1))
    assert memory_format_of(grouped, CPU) == torch.contiguous_format


@pytest.mark.parametrize("name", SMALL)  # SwinUNETR agrees too, in ten seconds
def test_the_layout_costs_no_accuracy(name: str) -> None:
    """Against float64; an image far from zero is what group normalisation failed on."""
    torch.manual_seed(0)
    network = build_network(name, in_channels=2, out_channels=3, **SMALL[name]).eval()
    image = torch.randn(1, 2, 32, 32, 32) + 3
    with torch.no_grad():
        exact = network.double()(image.double())
        found = VolumeInferer(divisor=network.divisor)(image, network.float())
    # float32 through two dozen layers, relative to the largest logit; group normalisation in
    # channels last is a hundred times further off.
    assert float((found - exact).abs().max() / exact.abs().max()) < 2e-5
