"""Logits of a part of a volume are those of the whole, and what is no content is background."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from networks import UNet3D, VolumeInferer, build_network
from networks.inferers import CERTAIN, content_of
from networks.regions import Content, Region, halved, mirrored, regions_of_levels

SIZE = (24, 40, 16)


def part(*bounds: tuple[int, int]) -> Region:
    x, y, z = (slice(*bound) for bound in bounds)
    return x, y, z


REGIONS = {
    "all": part((0, 24), (0, 40), (0, 16)),
    "inside": part((9, 16), (11, 30), (5, 12)),
    "at faces": part((0, 5), (33, 40), (0, 16)),
    "a voxel": part((7, 8), (20, 21), (15, 16)),
}


def volume(*content: slice) -> Tensor:
    """Return noise in the content, and another background in each channel."""
    background = torch.arange(4.0)[None, :, None, None, None].expand(1, 4, *SIZE)
    image = background.clone()
    where = (slice(None), slice(None), *content)
    noise = torch.randn(image[where].shape, generator=torch.Generator().manual_seed(0))
    image[where] = noise + 10
    return image


def network_of(**settings: object) -> UNet3D:
    torch.manual_seed(0)
    return UNet3D(num_filters=3, **settings).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings", [{}, {"kernel_size": 5}, {"kernel_size": 1}, {"num_levels": 2}]
)
@pytest.mark.parametrize("name", REGIONS)
@torch.no_grad()
def test_the_logits_of_the_content_are_those_of_the_whole(
    name: str, settings: dict[str, int]
) -> None:
    network, box = network_of(**settings), REGIONS[name]
    image, background = volume(*box), torch.arange(4.0)[None, :, None, None, None]
    whole = network(image)
    found = network(image, Content(box, background))
    torch.testing.assert_close(found, whole[(..., *box)], rtol=0, atol=1e-5 * whole.abs().max())


@pytest.mark.parametrize("settings", [{"norm": "instance"}, {"num_levels": 1}], ids=str)
@torch.no_grad()
def test_where_everything_is_looked_at_everything_is_computed(settings: dict[str, str]) -> None:
    network, box = network_of(**settings), REGIONS["inside"]
    content = Content(box, torch.arange(4.0)[None, :, None, None, None])
    image = volume(*box)
    assert torch.equal(network(image, content), network(image)[(..., *box)])


@torch.no_grad()
def test_dropout_draws_for_every_voxel() -> None:
    network, box = network_of(dropout=0.5).train(), REGIONS["inside"]
    content, image = Content(box, torch.arange(4.0)[None, :, None, None, None]), volume(*box)
    torch.manual_seed(1)
    whole = network(image)
    torch.manual_seed(1)
    assert torch.equal(network(image, content), whole[(..., *box)])


def test_less_is_computed() -> None:
    assert regions_of_levels(
        part((9, 16), (0, 8), (40, 64)), size=(64, 64, 64), num_levels=3, halo=2
    ) == [
        part((0, 8), (0, 6), (6, 16)),
        part((0, 12), (0, 8), (16, 32)),
        part((6, 18), (0, 10), (38, 64)),
    ]


def test_halves_and_mirror_images() -> None:
    content = Content(part((2, 8), (0, 6), (4, 10)), torch.zeros(1, 1, 1, 1, 1))
    assert halved(content.box) == part((1, 4), (0, 3), (2, 5))
    there = mirrored(content, (2, 4), size=(8, 8, 20))
    assert there.box == part((0, 6), (0, 6), (10, 16))
    assert there.background is content.background


@pytest.mark.parametrize(
    "content",
    [
        part((3, 9), (20, 21), (1, 15)),
        part((23, 24), (39, 40), (15, 16)),
        part((1, 24), (1, 40), (1, 16)),
    ],
)
def test_content_is_what_differs_from_the_first_voxel(content: Region) -> None:
    assert content_of(volume(*content)).box == content


def test_content_in_one_channel_is_enough_and_nan_is_content() -> None:
    image = volume(slice(0, 0), slice(0, 0), slice(0, 0))
    assert content_of(image).box == part((0, 1), (0, 1), (0, 1))
    image[0, 2, 5, 6, 7] += 1
    image[0, 1, 8, 6, 3] = math.nan
    assert content_of(image).box == part((5, 9), (6, 7), (3, 8))


def segresnet() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network("SegResNet", in_channels=4, out_channels=4, init_filters=8).eval()


@pytest.mark.parametrize("make", [network_of, segresnet], ids=["UNet3D", "SegResNet"])
@pytest.mark.parametrize(
    "settings", [{}, {"window": 16}, {"flips": True}, {"window": 16, "flips": True}], ids=str
)
@pytest.mark.parametrize(
    "content",
    [part((5, 14), (9, 31), (2, 10)), part((5, 24), (20, 40), (7, 16))],
    ids=["inside", "in the last corner"],
)
@torch.no_grad()
def test_inside_nothing_changes_and_outside_is_background(
    make: Callable[[], torch.nn.Module], settings: dict[str, int], content: Region
) -> None:
    network = make()
    image = volume(*content)
    whole = VolumeInferer(divisor=8, **settings)(image, network)  # type: ignore[arg-type]
    found = VolumeInferer(divisor=8, content_only=True, **settings)(image, network)  # type: ignore[arg-type]
    assert found.shape == whole.shape
    torch.testing.assert_close(
        found[(..., *content)], whole[(..., *content)], rtol=0, atol=1e-5 * whole.abs().max()
    )
    found[(..., *content)] = found.new_tensor([0, -CERTAIN, -CERTAIN, -CERTAIN])[
        :, None, None, None
    ]
    assert torch.equal(found.softmax(1)[:, 0], torch.ones(1, *SIZE))


@torch.no_grad()
def test_a_volume_without_content_is_background_but_for_its_first_voxel() -> None:
    image = volume(slice(0, 0), slice(0, 0), slice(0, 0))
    found = VolumeInferer(divisor=8, content_only=True)(image, network_of())
    assert torch.equal(found.argmax(1).flatten()[1:], torch.zeros(24 * 40 * 16 - 1).long())
