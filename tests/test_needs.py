"""The prediction of work and memory, against what can be counted by hand."""

from __future__ import annotations

import pytest
import torch

from networks import build_network
from pipeline.model.speed import flop_per_second
from pipeline.training.needs import Needs, describe, predict_needs


def test_one_convolution_counted_by_hand() -> None:
    network = torch.nn.Conv3d(2, 3, 3, padding=1, bias=False)
    needs = predict_needs(network, image_shape=(1, 2, 4, 4, 4))
    assert needs.num_parameters == 2 * 3 * 27
    assert needs.step_flop == 3 * 2 * (2 * 3 * 27) * 4**3
    # The backward pass keeps the image and the loss's result; then the parameters' copies.
    kept = 2 * 64 + 3 * 64
    assert needs.step_bytes == 4 * (kept + 4 * 2 * 3 * 27)
    assert needs.new_step_bytes == 4 * (kept + 2 * 2 * 3 * 27)
    assert needs.checkpoint_bytes == 3 * 4 * 2 * 3 * 27


def test_the_article_s_network_at_full_size() -> None:
    network = build_network("UNet3D", in_channels=4, out_channels=4)
    needs = predict_needs(network, image_shape=(1, 4, 224, 224, 144))
    assert needs.num_parameters == 2_345_924
    # 735 GFLOP forward by an independent count (981 with enlarged volumes), and twice as much
    # backward but for the gradient of the image, 25 GFLOP.
    assert needs.step_flop == pytest.approx(3 * 735e9 - 25e9, rel=0.02)
    # By hand, what the layers of the four levels keep of 7.2 million voxels: 2.43, 0.55, 0.14 and
    # 0.03 GB, image, logits and the indices of pooling included.
    assert needs.step_bytes == pytest.approx(3.15e9, rel=0.1)


def test_the_network_itself_is_not_moved() -> None:
    network = build_network("UNet3D", in_channels=1, out_channels=2, num_levels=2, num_filters=2)
    network.eval()
    predict_needs(network, image_shape=(1, 1, 4, 4, 4))
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}
    assert not network.training


def test_described_in_words() -> None:
    needs = Needs(
        num_parameters=1000,
        step_flop=10**9,
        step_bytes=2 * 10**9,
        new_step_bytes=10**9,
        checkpoint_bytes=3_000_000,
    )
    words = describe(needs, num_iterations=12, device=torch.device("cpu"))
    assert "1,000 parameters; 12 iterations of 1 GFLOP and at least 2.0 GB" in words
    assert "12 MB of disk" in words


def test_speed_is_measured() -> None:
    assert 1e8 < flop_per_second(torch.device("cpu"), size=256) < 1e15
