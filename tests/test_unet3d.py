"""The article's network, by hand-worked volumes; its equality with Keras is in another file."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from networks import UNet3D
from networks.convolve import SameConv3d
from networks.instance_norm import InstanceNorm


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tiny_unet() -> UNet3D:
    """Two levels, one filter, 1x1x1 kernels that are all zero: weights are then set by hand."""
    network = UNet3D(1, 1, num_levels=2, num_filters=1, kernel_size=1, dropout=0.0)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    return network


def pass_through(block: nn.Module) -> None:
    """Let both convolutions of a block copy channel i to channel i, where both exist."""
    for layer in block.modules():
        if isinstance(layer, nn.Conv3d):
            for channel in range(min(layer.weight.shape[:2])):
                layer.weight.data[channel, channel] = 1.0


def test_the_default_network_has_exactly_the_articles_parameters() -> None:
    assert count(UNet3D()) == 2_345_924


def test_the_decoders_bottom_level_has_two_more_convolutions() -> None:
    # 2 x (3*3*3 * 128 * 128 + 128).
    assert count(UNet3D().bottom) == 884_992


def test_layers_are_registered_in_the_order_of_data() -> None:
    shapes = [
        (layer.in_channels, layer.out_channels)
        for layer in UNet3D(num_levels=3, num_filters=2).modules()
        if isinstance(layer, nn.Conv3d)
    ]
    down = [(4, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8)]
    up = [(8, 8), (8, 8), (12, 4), (4, 4), (6, 2), (2, 2)]
    assert shapes == [*down, *up, (2, 4)]


def test_the_skip_connection_is_the_last_channel_after_concatenation() -> None:
    network = tiny_unet()
    pass_through(network.encoder[0])
    network.decoder[0][0][0].weight.data[0, 2] = 1.0  # channels 0, 1 from below, 2 from the skip
    network.decoder[0][1][0].weight.data[0, 0] = 1.0
    network.output.weight.data[0, 0] = 1.0
    image = torch.arange(-3.0, 5.0).reshape(1, 1, 2, 2, 2)
    assert torch.equal(network(image), image.clamp(min=0))


def test_the_way_through_the_bottom_takes_maxima_and_repeats_them() -> None:
    network = tiny_unet()
    for block in (network.encoder[0], network.encoder[1], network.bottom, network.decoder[0]):
        pass_through(block)
    network.output.weight.data[0, 0] = 1.0
    image = torch.zeros(1, 1, 4, 2, 2)
    image[0, 0, 0, 1, 0] = 5.0
    image[0, 0, 3, 0, 1] = 7.0
    expected = torch.zeros(1, 1, 4, 2, 2)
    expected[:, :, :2] = 5.0
    expected[:, :, 2:] = 7.0
    assert torch.equal(network(image), expected)


def test_the_output_is_logits_not_probabilities() -> None:
    network = tiny_unet()
    network.output.bias.data[:] = -3.5
    assert torch.equal(network(torch.ones(1, 1, 2, 2, 2)), torch.full((1, 1, 2, 2, 2), -3.5))


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_every_odd_kernel_keeps_the_size(kernel_size: int) -> None:
    network = UNet3D(2, 3, num_levels=2, num_filters=2, kernel_size=kernel_size)
    assert network(torch.zeros(2, 2, 4, 6, 2)).shape == (2, 3, 4, 6, 2)


@pytest.mark.parametrize(("num_levels", "divisor"), [(1, 1), (3, 4), (4, 8)])
def test_divisor(num_levels: int, divisor: int) -> None:
    assert UNet3D(num_levels=num_levels, num_filters=1).divisor == divisor


@pytest.mark.parametrize("shape", [(1, 4, 144, 224, 155), (1, 4, 4, 8, 8), (1, 4, 0, 8, 8)])
def test_a_size_that_is_no_multiple_of_the_divisor_is_refused(shape: tuple[int, ...]) -> None:
    text = rf"multiples of 8; found the shape \({', '.join(map(str, shape))}\).*DivisiblePad\(k=8\)"
    with pytest.raises(ValueError, match=text):
        UNet3D(num_filters=1)(torch.empty(shape))


def test_an_image_without_its_batch_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected an image \(B, C, X, Y, Z\).*\(4, 8, 8, 8\)"):
        UNet3D(num_filters=1)(torch.zeros(4, 8, 8, 8))


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"in_channels": 0}, "in_channels must be a whole number of at least 1; found 0"),
        ({"out_channels": -1}, "out_channels must be a whole number of at least 1; found -1"),
        ({"num_levels": 2.0}, r"num_levels must be a whole number of at least 1; found 2\.0"),
        ({"num_filters": "16"}, "num_filters must be a whole number of at least 1; found '16'"),
        ({"kernel_size": [3, 3, 3]}, "kernel_size must be a whole number of at least 1; found"),
        ({"kernel_size": 2}, "kernel_size must be odd.*found 2"),
        ({"dropout": 1.0}, r"dropout must be a probability in \[0, 1\); found 1\.0"),
        ({"dropout": -0.1}, r"dropout must be a probability in \[0, 1\); found -0\.1"),
        ({"dropout": math.nan}, r"dropout must be a probability in \[0, 1\); found nan"),
        ({"dropout": "0.25"}, r"dropout must be a probability in \[0, 1\); found '0\.25'"),
        ({"norm": "batch"}, "norm must be None or \"instance\"; found 'batch'"),
    ],
)
def test_a_wrong_setting_is_refused(setting: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        UNet3D(**setting)


@pytest.mark.parametrize(
    ("norm", "kinds"),
    [
        (None, [SameConv3d, nn.ReLU, nn.Dropout]),
        ("instance", [SameConv3d, InstanceNorm, nn.ReLU, nn.Dropout]),
    ],
)
def test_every_convolution_but_the_last_is_followed_by_relu_then_dropout(
    norm: Any, kinds: list[type[nn.Module]]
) -> None:
    network = UNet3D(num_levels=2, num_filters=1, dropout=0.3, norm=norm)
    leaves = [m for m in network.modules() if not isinstance(m, nn.ModuleList)]
    leaves = [m for m in leaves if not list(m.children())]
    assert [type(leaf) for leaf in leaves] == kinds * 8 + [nn.Conv3d]
    assert {leaf.p for leaf in leaves if isinstance(leaf, nn.Dropout)} == {0.3}


def test_dropout_drops_single_values_not_whole_channels() -> None:
    torch.manual_seed(0)
    network = UNet3D(num_levels=1, num_filters=2, kernel_size=1, dropout=0.5)
    dropout = network.encoder[0][0][-1]
    dropped = dropout(torch.ones(1, 2, 8, 8, 8)) == 0
    # 512 draws of 0.5 per channel: all equal would have a chance of 2^-511.
    assert dropped[0, 0].any()
    assert not dropped[0, 0].all()


def test_instance_normalisation_is_learned_and_takes_the_place_of_the_bias() -> None:
    network = UNet3D(num_levels=1, num_filters=2, norm="instance")
    convolution, normalisation = network.encoder[0][0][:2]
    assert convolution.bias is None
    assert network.output.bias is not None
    assert normalisation.weight.tolist() == [1.0, 1.0]
    image = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0)) + 3
    features = normalisation(convolution(image))
    # 1e-5: float32 sums of 64 values of order one.
    assert torch.allclose(features.mean(dim=(2, 3, 4)), torch.zeros(1, 2), atol=1e-5)


def test_weights_start_as_in_keras() -> None:
    torch.manual_seed(0)
    network = UNet3D()
    kernel = network.decoder[-1][0][0].weight  # 3x3x3, 48 -> 16
    limit = math.sqrt(6 / (27 * 48 + 27 * 16))
    # A uniform sample of 20,736 values comes within 1 % of its limit, and never beyond it;
    # its standard deviation is limit / sqrt(3) within 2 % (five standard errors).
    assert 0.99 * limit < kernel.abs().max() <= limit
    assert kernel.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    biases = [m.bias for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert not any(bias.any() for bias in biases if bias is not None)


def test_in_training_coarser_levels_speak_too() -> None:
    network = UNet3D(num_levels=4, num_filters=1, deep_supervision=2)
    image = torch.randn(1, 4, 16, 8, 24, generator=torch.Generator().manual_seed(0))
    sizes = [tuple(logits.shape) for logits in network.train()(image)]
    assert sizes == [(1, 4, 16, 8, 24), (1, 4, 8, 4, 12), (1, 4, 4, 2, 6)]
    assert network.eval()(image).shape == (1, 4, 16, 8, 24)
    plain = UNet3D(num_levels=4, num_filters=1)
    added = set(network.state_dict()) - set(plain.state_dict())
    assert {name.partition(".")[0] for name in added} == {"coarse_outputs"}


@pytest.mark.parametrize("number", [-1, 3, 0.5])
def test_only_levels_between_top_and_bottom_can_be_supervised(number: Any) -> None:
    with pytest.raises(ValueError, match=r"deep_supervision must be 0 to 2, .*found"):
        UNet3D(num_levels=4, num_filters=1, deep_supervision=number)


@pytest.mark.parametrize("norm", [None, "instance"])
def test_a_residual_level_is_two_convolutions_and_what_came_in(norm: Any) -> None:
    torch.manual_seed(0)
    network = UNet3D(num_levels=1, num_filters=3, dropout=0.0, norm=norm, residual=True).eval()
    block, image = network.encoder[0], torch.randn(1, 4, 4, 4, 4)
    with torch.no_grad():
        learned = block.second[0](block.first(image))
        if norm is not None:
            learned = block.second[1](learned)
        expected = torch.relu(learned + block.shortcut(image))
        # One sum in another order.
        torch.testing.assert_close(block(image), expected, rtol=0, atol=1e-6)


def test_where_the_width_stays_nothing_is_learned_beside() -> None:
    network = UNet3D(in_channels=3, num_levels=1, num_filters=3, residual=True)
    assert isinstance(network.encoder[0].shortcut, nn.Identity)
