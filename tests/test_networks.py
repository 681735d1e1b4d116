"""What every network in `NETWORKS` promises, and how `build_network` answers to a wrong name."""

from __future__ import annotations

import importlib.util
import io
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from networks import NETWORKS, build_network

# Small enough to run in a second; plain JSON, as a configuration file would hold them.
SMALL: dict[str, dict[str, Any]] = json.loads("""{
    "UNet3D": {"num_levels": 3, "num_filters": 4, "dropout": 0.0},
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1],
                  "dropout_prob": 0.0},
    "DynUNet": {"filters": [4, 8, 16], "res_block": true},
    "SwinUNETR": {"feature_size": 12}
}""")
# DynUNet is built without dropout.
DROPOUT: dict[str, dict[str, float]] = {
    "UNet3D": {"dropout": 0.5},
    "SegResNet": {"dropout_prob": 0.5},
    "SwinUNETR": {"drop_rate": 0.5},
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def build(name: str, *, seed: int = 0, **settings: Any) -> nn.Module:
    """Build a small network for two modalities and three classes."""
    if name == "SwinUNETR":
        pytest.importorskip("einops", reason="MONAI's SwinUNETR needs einops")
    torch.manual_seed(seed)
    return build_network(name, in_channels=2, out_channels=3, **{**SMALL[name], **settings})


def image_for(network: nn.Module) -> Tensor:
    """The smallest image whose bottom level has more than one voxel, as normalisation needs."""
    size: Any = network.divisor
    return torch.randn(1, 2, size, size, 2 * size, generator=torch.Generator().manual_seed(1))


@every_network
def test_logits_have_the_images_size_also_in_training(name: str) -> None:
    network = build(name)
    image = image_for(network)
    logits = network(image)
    assert logits.shape == (1, 3, *image.shape[2:])
    assert logits.dtype == torch.float32
    assert logits.min() < 0  # neither probabilities nor one-hot


@every_network
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    network = build(name)
    network(image_for(network)).square().sum().backward()
    unreached = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


@pytest.mark.parametrize(
    ("name", "settings", "divisor"),
    [
        ("UNet3D", {"num_levels": 5}, 16),
        ("SegResNet", {"blocks_down": [1, 1], "blocks_up": [1]}, 2),
        ("DynUNet", {"filters": [2, 2, 2, 2]}, 8),
        ("SwinUNETR", {}, 32),
    ],
)
def test_the_divisor_follows_the_settings(
    name: str, settings: dict[str, Any], divisor: int
) -> None:
    assert build(name, **settings).divisor == divisor


@every_network
def test_without_training_there_is_no_dropout(name: str) -> None:
    plain, dropping = build(name).eval(), build(name, **DROPOUT.get(name, {})).eval()
    image = image_for(plain)
    with torch.no_grad():
        assert torch.equal(plain(image), dropping(image))


@pytest.mark.parametrize("name", DROPOUT)
def test_in_training_dropout_is_drawn_anew(name: str) -> None:
    network = build(name, **DROPOUT[name])
    image = image_for(network)
    with torch.no_grad():
        assert not torch.equal(network(image), network(image))


@every_network
def test_a_saved_state_gives_the_same_logits(name: str) -> None:
    network, other = build(name).eval(), build(name, seed=1).eval()
    image = image_for(network)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(network(image), other(image))


@every_network
def test_the_seed_alone_decides_the_first_weights(name: str) -> None:
    def weights(seed: int) -> Tensor:
        return nn.utils.parameters_to_vector(build(name, seed=seed).parameters())

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    text = (
        r"unknown network: 'Unet3d'\. Did you mean 'UNet3D'\? "
        r"Choose from: DynUNet, SegResNet, SwinUNETR, UNet3D$"
    )
    with pytest.raises(ValueError, match=text):
        build_network("Unet3d", in_channels=4, out_channels=4)


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    text = (
        r"unknown setting of UNet3D: 'num_filter'\. Did you mean 'num_filters'\? "
        r"Choose from: deep_supervision, dropout, "
    )
    with pytest.raises(ValueError, match=text):
        build_network("UNet3D", in_channels=4, out_channels=4, num_filter=16)


def test_where_no_name_is_near_none_is_suggested() -> None:
    with pytest.raises(ValueError, match=r"unknown setting of DynUNet: 'zzz'\. Choose from: filt"):
        build_network("DynUNet", in_channels=4, out_channels=4, zzz=1)


def test_segresnet_refuses_levels_that_do_not_match() -> None:
    with pytest.raises(ValueError, match=r"blocks_up.*expected 3 numbers, found 2"):
        build_network("SegResNet", in_channels=4, out_channels=4, blocks_up=[1, 1])


def test_dynunet_refuses_fewer_than_three_levels() -> None:
    with pytest.raises(ValueError, match=r"at least three levels; found \[8, 16\]"):
        build_network("DynUNet", in_channels=4, out_channels=4, filters=[8, 16])


def test_swin_unetr_names_the_package_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="SwinUNETR needs the package einops: pip install einops"):
        build_network("SwinUNETR", in_channels=4, out_channels=4)
