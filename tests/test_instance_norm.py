"""Instance normalisation in the layout of convolutions, against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from networks.instance_norm import InstanceNorm

LAST, FIRST = torch.channels_last_3d, torch.contiguous_format
SHAPE = (2, 3, 6, 8, 4)
EPS = 1e-5


def volumes() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A volume far from 0, a gradient, a scale and a shift."""
    generator = torch.Generator().manual_seed(0)
    volume, gradient = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    scale, shift = (torch.randn(SHAPE[1], generator=generator) for _ in range(2))
    return volume * 2 + 30, gradient, scale, shift


def by_definition() -> list[Tensor]:
    """Return the result and the gradients of volume, scale and shift."""
    volume, gradient, scale, shift = (each.double() for each in volumes())
    for each in (volume, scale, shift):
        each.requires_grad_()
    mean = volume.mean(dim=(2, 3, 4), keepdim=True)
    variance = volume.var(dim=(2, 3, 4), keepdim=True, unbiased=False)
    to_channels = (1, -1, 1, 1, 1)
    result = (volume - mean) / (variance + EPS).sqrt() * scale.view(to_channels)
    result = result + shift.view(to_channels)
    return [result.detach(), *torch.autograd.grad(result, (volume, scale, shift), gradient)]


def of_layer(volume_format: torch.memory_format, gradient_format: torch.memory_format) -> list:
    volume, gradient, scale, shift = volumes()
    layer = InstanceNorm(SHAPE[1])
    with torch.no_grad():
        layer.weight.copy_(scale)
        layer.bias.copy_(shift)
    volume = volume.contiguous(memory_format=volume_format).requires_grad_()
    before = volume.detach().clone()
    result = layer(volume)
    result.backward(gradient.contiguous(memory_format=gradient_format))
    assert torch.equal(volume.detach(), before)
    return [result.detach(), volume.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("gradient_format", [LAST, FIRST], ids=["last", "first"])
def test_result_and_gradients_are_those_of_the_definition(
    gradient_format: torch.memory_format,
) -> None:
    for found, expected in zip(of_layer(LAST, gradient_format), by_definition(), strict=True):
        # Sums of some hundred float32 numbers, of a volume whose mean is 15 times its spread.
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_torch_is_left_what_has_its_own_layout() -> None:
    for found, expected in zip(of_layer(FIRST, FIRST), by_definition(), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_layout_stays() -> None:
    volume = volumes()[0].contiguous(memory_format=LAST).requires_grad_()
    result = InstanceNorm(SHAPE[1])(volume)
    assert result.is_contiguous(memory_format=LAST)
    (gradient,) = torch.autograd.grad(result.square().sum(), volume)
    assert gradient.is_contiguous(memory_format=LAST)


def test_what_follows_may_change_the_result_in_place() -> None:
    layer, volume = InstanceNorm(SHAPE[1]), volumes()[0].contiguous(memory_format=LAST)
    kept, changed = volume.clone().requires_grad_(), volume.clone().requires_grad_()
    torch.relu(layer(kept)).sum().backward()
    torch.relu_(layer(changed)).sum().backward()
    assert torch.equal(kept.grad, changed.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory_format", [LAST, FIRST], ids=["last", "first"])
def test_one_voxel_has_no_variance(memory_format: torch.memory_format) -> None:
    voxel = torch.ones(1, 3, 1, 1, 1).contiguous(memory_format=memory_format)
    with pytest.raises(ValueError, match=r"[Ee]xpected more than 1"):
        InstanceNorm(3)(voxel)


def test_its_weights_are_those_of_torch() -> None:
    ours, theirs = InstanceNorm(3).state_dict(), nn.InstanceNorm3d(3, affine=True).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
