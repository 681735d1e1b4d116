"""The up-convolution against its plain twin, which enlarges, joins and convolves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks import UNet3D
from networks.up_convolution import enlarging_kernel, up_convolution

# Coarse sizes: one voxel, odd and even ones, unequal ones.
SIZES = [(1, 1, 1), (2, 2, 2), (1, 2, 3), (3, 1, 4), (5, 4, 3)]
EXACT = {"rtol": 0.0, "atol": 1e-12}  # float64: sums of a few hundred products of order one


def plain_up_convolution(
    below: Tensor, skip: Tensor, *, weight: Tensor, bias: Tensor | None
) -> Tensor:
    enlarged = F.interpolate(below, scale_factor=2, mode="nearest")
    joined = torch.cat([enlarged, skip], dim=1)
    return F.conv3d(joined, weight, bias, padding=weight.shape[-1] // 2)


def plain_forward(network: UNet3D, image: Tensor) -> Tensor:
    """What `UNet3D.forward` does, as the article writes it down."""
    x, skips = image, []
    for level, block in enumerate(network.encoder):
        x = block(F.max_pool3d(x, kernel_size=2) if level else x)
        skips.append(x)
    x = network.bottom(skips.pop())
    for first, second in network.decoder:
        joined = torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skips.pop()], dim=1)
        for layer in first:
            joined = layer(joined)
        x = second(joined)
    return network.output(x)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def parts(size: tuple[int, ...], *, kernel_size: int = 3) -> dict[str, Tensor]:
    """Three channels from below, two of the level, five filters, two images."""
    return {
        "below": random(2, 3, *size),
        "skip": random(2, 2, *(2 * length for length in size), seed=1),
        "weight": random(5, 5, *[kernel_size] * 3, seed=2),
        "bias": random(5, seed=3),
    }


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_are_those_of_the_plain_form(
    size: tuple[int, ...], kernel_size: int
) -> None:
    given = parts(size, kernel_size=kernel_size)
    found, expected = up_convolution(**given), plain_up_convolution(**given)
    torch.testing.assert_close(found, expected, **EXACT)
    cotangent = random(*expected.shape, seed=4).detach()
    gradients = torch.autograd.grad(found, given.values(), cotangent)
    expected_gradients = torch.autograd.grad(expected, given.values(), cotangent)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-11)


def test_without_a_bias() -> None:
    given: dict[str, Any] = {**parts((2, 1, 3)), "bias": None}
    torch.testing.assert_close(up_convolution(**given), plain_up_convolution(**given), **EXACT)


def test_the_kernel_by_hand_along_one_axis() -> None:
    weight = torch.zeros(1, 1, 3, 3, 3)
    weight[0, 0, :, 1, 1] = torch.tensor([1.0, 10.0, 100.0])
    kernel = enlarging_kernel(weight)
    assert kernel.shape == (1, 1, 4, 4, 4)
    # The middle tap of the other axes meets the same coarse voxel from both of its fine ones.
    assert kernel[0, 0, :, 1, 1].tolist() == [100.0, 110.0, 11.0, 1.0]
    assert kernel[0, 0, 1, 1:3, 1:3].tolist() == [[110.0] * 2] * 2
    assert not kernel[0, 0, :, 0].any()


def test_one_voxel_spreads_as_an_enlarged_one_does() -> None:
    """At the volume's corner, where the padding begins, in numbers that need no tolerance."""
    below, skip = torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 1, 4, 4, 4)
    below[..., 0, 0, 0] = 1.0
    weight = torch.arange(54.0).reshape(1, 2, 3, 3, 3)
    given = {"below": below, "skip": skip, "weight": weight, "bias": torch.ones(1)}
    assert torch.equal(up_convolution(**given), plain_up_convolution(**given))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("norm", "kernel_size"), [(None, 3), ("instance", 3), (None, 5)])
def test_the_network_is_the_plain_one(
    norm: Any, kernel_size: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    network = UNet3D(
        2, 3, num_levels=3, num_filters=2, kernel_size=kernel_size, dropout=0.0, norm=norm
    )
    network = network.double().to(memory_format=layout)
    twin = copy.deepcopy(network)
    image = random(1, 2, 12, 4, 8).detach().contiguous(memory_format=layout)
    found, expected = network(image), plain_forward(twin, image)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)
    found.square().mean().backward()
    expected.square().mean().backward()
    for parameter, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-10, atol=1e-12)


def test_in_float32_the_rounding_stays_that_of_float32() -> None:
    torch.manual_seed(0)
    network = UNet3D(num_filters=8).eval()
    image = torch.randn(1, 4, 32, 40, 48)
    with torch.no_grad():
        found, plain = network(image), plain_forward(network, image)
        exact = plain_forward(network.double(), image.double())
    scale = exact.abs().max()
    # Two dozen sums of up to 3456 products each; the plain form is no nearer than that either.
    assert (found - exact).abs().max() < 2e-6 * scale
    assert (found - plain).abs().max() < 2e-6 * scale


def test_dropout_draws_the_same_mask_as_in_the_plain_form() -> None:
    network = UNet3D(2, 3, num_levels=2, num_filters=2, dropout=0.5).double()
    image = random(1, 2, 4, 6, 8).detach()
    torch.manual_seed(5)
    found = network(image)
    torch.manual_seed(5)
    torch.testing.assert_close(found, plain_forward(network, image), **EXACT)


def test_a_state_of_before_is_still_a_state() -> None:
    """The names and shapes that checkpoints, bundles and Keras files rely on."""
    state = {name: tuple(value.shape) for name, value in UNet3D().state_dict().items()}
    assert len(state) == 2 * 17
    assert state["decoder.0.0.0.weight"] == (64, 192, 3, 3, 3)
    assert state["decoder.2.0.0.weight"] == (16, 48, 3, 3, 3)
    assert state["decoder.2.0.0.bias"] == (16,)
    assert state["decoder.2.1.0.weight"] == (16, 16, 3, 3, 3)


def test_neither_the_enlarged_nor_the_joined_volume_is_made() -> None:
    given = {name: value.to("meta") for name, value in parts((4, 4, 4)).items()}
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda kept: sizes.append(kept.numel()) or kept, lambda kept: kept
    ):
        up_convolution(**given)
    # The largest thing kept for the backward pass is the skip itself.
    assert max(sizes) == given["skip"].numel()


def test_torch_compile_takes_it() -> None:
    # Traced as it would be, but run by torch's own kernels: no compiler is needed.
    network = UNet3D(2, 3, num_levels=3, num_filters=2).eval()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    image = torch.randn(1, 2, 8, 4, 12)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), network(image), rtol=0, atol=1e-6)


def test_half_precision_is_as_near_as_the_plain_form() -> None:
    """What autocast does on a GPU, here with bfloat16's kernels of the processor."""
    given = {name: value.detach().float() for name, value in parts((3, 4, 5)).items()}
    exact = plain_up_convolution(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, plain = up_convolution(**given), plain_up_convolution(**given)
    assert found.dtype == torch.bfloat16
    error, other = ((value.float() - exact).abs().mean() for value in (found, plain))
    # Two results are rounded and added where the plain form rounds one.
    assert error < 2.5 * other


class Both(nn.Module):
    """An up-convolution as a module, for the tracer."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        return up_convolution(below, skip, weight=self.weight, bias=None)


def test_a_trace_holds_for_other_sizes() -> None:
    first, second = parts((2, 2, 2)), parts((3, 1, 5))
    module = Both(first["weight"].detach())
    with torch.no_grad():
        traced = torch.jit.trace(module, (first["below"], first["skip"]))
        expected = module(second["below"], second["skip"])
        torch.testing.assert_close(traced(second["below"], second["skip"]), expected, **EXACT)


def test_training_goes_the_way_of_the_plain_form() -> None:
    """Twenty steps with dropout; in float64, as each step multiplies what rounding makes."""

    def losses(forward: Any) -> list[float]:
        torch.manual_seed(0)
        network = UNet3D(2, 3, num_levels=3, num_filters=4, dropout=0.25).double().train()
        image = torch.randn(1, 2, 16, 8, 12).double()
        label = (image.sum(1) > 0).long() + (image[:, 0] > 1).long()
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
        found = []
        for _ in range(20):
            optimiser.zero_grad()
            loss = F.cross_entropy(forward(network, image), label)
            loss.backward()
            optimiser.step()
            found.append(loss.item())
        return found

    ours, plain = losses(lambda network, image: network(image)), losses(plain_forward)
    assert ours[-1] < 0.9 * ours[0]
    assert max(abs(one - other) for one, other in zip(ours, plain, strict=True)) < 1e-9
