"""One sigmoid channel per region in training, probabilities of classes in use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from networks import VolumeInferer, build_network
from networks.region_outputs import RegionOutputs, ring_classes

BRATS = [[1, 2, 3], [1, 3], [3]]
UNET: dict[str, Any] = {"num_levels": 2, "num_filters": 2, "dropout": 0.0}


class Answer(nn.Module):
    """A network that always gives these logits (R,) in every voxel."""

    divisor = 1

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, image: Tensor) -> Tensor:
        return self.logits[None, :, None, None, None].expand(len(image), -1, *image.shape[2:])


def probabilities(*regions: float) -> Tensor:
    """Return the class probabilities of one voxel whose regions have these probabilities."""
    network = RegionOutputs(Answer(torch.tensor(regions).logit()), regions=BRATS).eval()
    return torch.softmax(network(torch.zeros(1, 1, 1, 1, 1)), dim=1).flatten()


def test_what_one_region_has_beyond_the_next_is_a_class() -> None:
    # WT 0.9, TC 0.6, ET 0.2: background 0.1, core 0.6 - 0.2, oedema 0.9 - 0.6, enhancing 0.2.
    expected = torch.tensor([0.1, 0.4, 0.3, 0.2])
    torch.testing.assert_close(probabilities(0.9, 0.6, 0.2), expected, rtol=0, atol=1e-6)


def test_a_region_is_never_likelier_than_the_one_around_it() -> None:
    # ET 0.8 within WT 0.5: enhancing 0.5, and nothing is left for core and oedema.
    expected = torch.tensor([0.5, 0.0, 0.0, 0.5])
    torch.testing.assert_close(probabilities(0.5, 0.9, 0.8), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_certainty_stays_finite(logit: float) -> None:
    network = RegionOutputs(Answer(torch.full((3,), logit)), regions=BRATS).eval()
    logits = network(torch.zeros(1, 1, 1, 1, 1))
    assert torch.isfinite(logits).all()
    assert float(torch.softmax(logits, dim=1).max()) == 1


def test_in_training_the_channels_are_those_of_the_regions() -> None:
    network = build_network("UNet3D", in_channels=2, out_channels=4, regions=BRATS, **UNET)
    image = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    in_training, in_use = network.train()(image), network.eval()(image)
    assert in_training.shape == (1, 3, 4, 4, 4)
    assert in_use.shape == (1, 4, 4, 4, 4)
    inside = 1 - torch.softmax(in_use, dim=1)[:, 0]
    # A sigmoid, a difference and a logarithm, and back, in float32.
    torch.testing.assert_close(inside, torch.sigmoid(in_training[:, 0]), rtol=0, atol=1e-6)


def test_the_way_up_for_the_content_alone_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    settings = {**UNET, "num_filters": 4, "residual": True}
    network = build_network("UNet3D", in_channels=2, out_channels=4, regions=BRATS, **settings)
    network.eval()
    image = torch.zeros(1, 2, 24, 24, 24)
    image[:, :, 8:16, 6:14, 8:18] = torch.rand(1, 2, 8, 8, 10)
    with torch.no_grad():
        whole, part = (
            VolumeInferer(divisor=2, content_only=only)(image, network) for only in (False, True)
        )
    box = (..., slice(8, 16), slice(6, 14), slice(8, 18))
    torch.testing.assert_close(part[box], whole[box], rtol=0, atol=1e-5)
    assert int(part[0].argmax(dim=0)[0, 0, 0]) == 0


@pytest.mark.parametrize(
    "regions",
    [
        [],
        [[1, 2], [1], []],
        [[1, 2, 3], [1, 2]],
        [[1, 2], [3], [2]],
        [[1, 2, 3], [1], [1]],
        [[2, 3, 4], [2, 3], [3]],
    ],
    ids=["none", "empty", "two classes apart", "not nested", "same", "class without region"],
)
def test_regions_that_do_not_tell_the_classes_apart_are_refused(regions: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="region outputs need regions each of which lies within"):
        ring_classes(regions)


def test_as_many_regions_as_classes_are_needed() -> None:
    text = "as many regions as there are classes beside the background, 4; found 3"
    with pytest.raises(ValueError, match=text):
        build_network("UNet3D", in_channels=2, out_channels=5, regions=BRATS, **UNET)
