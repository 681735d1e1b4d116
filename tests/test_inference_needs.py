"""The prediction of memory, against what can be counted by hand, and the windows it leads to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from networks import NETWORKS, build_network
from pipeline.errors import ResourceError
from pipeline.inference.needs import (
    HEAP_BYTES,
    SAFETY,
    choose_window,
    predict_forward_bytes,
)
from pipeline.inference.uncertainty import dropout_active

MB = 10**6


class Steps(nn.Module):
    """Makes volumes of a known number of channels, one after the other, and drops the last."""

    def forward(self, image: Tensor) -> Tensor:
        wide = torch.cat([image] * 3, dim=1)
        narrow = wide[:, :1] * 2
        del wide
        view = narrow.reshape(-1)
        view += 1  # in place, and a view: nothing new
        return torch.cat([image, narrow], dim=1)


def test_a_convolution_counted_by_hand() -> None:
    network = nn.Conv3d(2, 3, 3, padding=1)
    # Image, weights and biases, result.
    expected = 4 * (2 * 64 + (2 * 3 * 27 + 3) + 3 * 64)
    assert predict_forward_bytes(network, image_shape=(1, 2, 4, 4, 4)) == expected


def test_what_is_dropped_is_not_counted() -> None:
    # At most alive: the image's channel, three of `wide` and the one made of them; after that
    # only the image, `narrow` and the two of the result.
    assert predict_forward_bytes(Steps(), image_shape=(2, 1, 4, 4, 4)) == 4 * 2 * 64 * (1 + 3 + 1)


def test_two_convolutions_do_not_keep_the_first_input() -> None:
    network = nn.Sequential(
        nn.Conv3d(1, 8, 1, bias=False),
        nn.Conv3d(8, 8, 1, bias=False),
        nn.Conv3d(8, 1, 1, bias=False),
    )
    weights = 8 + 64 + 8
    # The image stays with the caller; then the input and the output of the middle one.
    expected = 4 * (weights + 1000 * (1 + 8 + 8))
    assert predict_forward_bytes(network, image_shape=(1, 1, 10, 10, 10)) == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_grows_with_the_volume(name: str) -> None:
    if name == "SwinUNETR":
        pytest.importorskip("einops", reason="MONAI's SwinUNETR needs einops")
    network = build_network(name, in_channels=4, out_channels=4).eval()
    parameters = 4 * sum(parameter.numel() for parameter in network.parameters())
    sizes = [(64, 64, 64), (128, 64, 64), (128, 128, 64), (128, 128, 128)]
    volumes = [
        predict_forward_bytes(network, image_shape=(1, 4, *size)) - parameters for size in sizes
    ]
    for number, volume in enumerate(volumes):
        # But for what does not depend on the volume: index tables and running sums.
        assert volume == pytest.approx(2**number * volumes[0], rel=0.02)


def test_the_article_s_network_at_full_size() -> None:
    network = build_network("UNet3D", in_channels=4, out_channels=4).eval()
    needed = predict_forward_bytes(network, image_shape=(1, 4, 224, 224, 144))
    # At the top of the decoder: image, skip (16 channels), what comes from below (32 channels of an
    # eighth of the voxels), and what each of them is convolved to (16), and nearly nothing else.
    by_hand = 4 * (4 + 16 + 32 / 8 + 16 + 16) * 224 * 224 * 144
    assert needed == pytest.approx(by_hand, rel=0.05)
    # 1.76 GB were measured.
    assert needed < 1.76e9 < SAFETY * needed + HEAP_BYTES


def test_dropout_at_work_needs_more() -> None:
    network = build_network("UNet3D", in_channels=1, out_channels=2, num_filters=4).eval()
    plain = predict_forward_bytes(network, image_shape=(1, 1, 32, 32, 32))
    with dropout_active(network):
        assert predict_forward_bytes(network, image_shape=(1, 1, 32, 32, 32)) > plain


def test_the_network_itself_is_not_moved() -> None:
    network = build_network("UNet3D", in_channels=1, out_channels=2, num_levels=2, num_filters=2)
    predict_forward_bytes(network, image_shape=(1, 1, 4, 4, 4))
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}
    assert network.training


def article_network() -> nn.Module:
    return build_network("UNet3D", in_channels=4, out_channels=4).eval()


def test_the_whole_volume_where_it_fits() -> None:
    shape = (1, 4, 160, 176, 144)
    network = article_network()
    peak = predict_forward_bytes(network, image_shape=shape)
    # Beside the pass: the image twice, two sums of logits or probabilities, and the weights.
    beside = 4 * (2 * 4 + 2 * 4 + 1) * 160 * 176 * 144
    needed = int(SAFETY * peak) + HEAP_BYTES + beside
    options = {"image_shape": shape, "divisor": 8}
    assert choose_window(network, **options, free_bytes=needed) is None
    assert choose_window(network, **options, free_bytes=needed - 1) is not None


def test_the_largest_window_that_fits() -> None:
    network = article_network()
    shape, free_bytes = (1, 4, 240, 120, 240), 2_500 * MB
    window = choose_window(network, image_shape=shape, divisor=8, free_bytes=free_bytes)
    assert window is not None
    edge = window[0]
    assert window == (edge, min(edge, 120), edge)
    assert edge % 8 == 0
    assert 64 <= edge < 240

    def needed(edge: int) -> float:
        cut = (1, 4, edge, min(edge, 120), edge)
        beside = 4 * 17 * 240 * 120 * 240
        return SAFETY * predict_forward_bytes(network, image_shape=cut) + HEAP_BYTES + beside

    assert needed(edge) <= free_bytes < needed(edge + 8)


def test_more_memory_never_gives_a_smaller_window() -> None:
    network = article_network()
    edges = []
    for free_bytes in range(1_200 * MB, 8_000 * MB, 400 * MB):
        window = choose_window(
            network, image_shape=(1, 4, 224, 224, 160), divisor=8, free_bytes=free_bytes
        )
        edges.append(1000 if window is None else max(window))
    assert edges == sorted(edges)
    assert len(set(edges)) > 5
    assert edges[-1] == 1000


def test_a_divisor_that_64_is_no_multiple_of() -> None:
    network = nn.Conv3d(4, 4, 3, padding=1)
    shape = (1, 4, 240, 240, 240)
    for free_bytes in range(1_270 * MB, 1_700 * MB, 60 * MB):
        window = choose_window(network, image_shape=shape, divisor=24, free_bytes=free_bytes)
        assert window is None or window[0] in range(72, 240, 24)


@pytest.mark.parametrize("size", [(224, 224, 160), (48, 40, 56)])
def test_memory_for_no_window_is_an_error_with_the_numbers(size: tuple[int, int, int]) -> None:
    network = article_network()
    smallest = " x ".join(str(min(64, length)) for length in size)
    expected = (
        f"volume of {' x '.join(map(str, size))} voxels, not even in windows of {smallest}: "
        r"needed \d\.\d\d GB, free 0\.10 GB\. End other programs"
    )
    with pytest.raises(ResourceError, match=expected):
        choose_window(network, image_shape=(1, 4, *size), divisor=8, free_bytes=100 * MB)
