"""Entropy and mutual information by hand, against a twin that keeps every sample, and dropout."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import Tensor, nn

from networks import build_network
from pipeline.errors import SettingsError
from pipeline.inference.uncertainty import UncertaintySum, dropout_active, seeded_pass

REGIONS = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
ROUNDING = 1e-6  # float32 sums of some values around 1


def voxel(*probabilities: float) -> Tensor:
    """Return a sample of a single voxel, (C, 1, 1, 1)."""
    return torch.tensor(probabilities).reshape(-1, 1, 1, 1)


def summed(*samples: Tensor, regions: dict[str, tuple[int, ...]]) -> UncertaintySum:
    total = UncertaintySum(regions=regions)
    for sample in samples:
        total.add(sample)
    return total


def random_samples(count: int, *, num_classes: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((count, num_classes, 3, 4, 2), generator=generator)
    return list(logits.softmax(dim=1))


@pytest.mark.parametrize(
    ("samples", "entropy", "mutual"),
    [
        # Certain each, and of opposite opinions: all of the uncertainty is disagreement.
        ([(1, 0), (0, 1)], math.log(2), math.log(2)),
        # Of one mind: no disagreement, however undecided they are.
        ([(0.5, 0.5), (0.5, 0.5)], math.log(2), 0),
        ([(1, 0), (1, 0)], 0, 0),
        # H(3/4) = 0.5623, less half of H(1/2) = 0.6931.
        ([(1, 0), (0.5, 0.5)], 0.5623351, 0.5623351 - 0.6931472 / 2),
    ],
)
def test_two_samples_by_hand(
    samples: list[tuple[float, float]], entropy: float, mutual: float
) -> None:
    total = summed(*(voxel(*sample) for sample in samples), regions={"tumour": (1,)})
    found_entropy, found_mutual = total.maps()
    # Of two classes, "all classes" and "tumour or not" ask the same.
    assert found_entropy.ravel() == pytest.approx([entropy] * 2, abs=ROUNDING)
    assert found_mutual.ravel() == pytest.approx([mutual] * 2, abs=ROUNDING)


def test_a_region_does_not_see_what_happens_within_it() -> None:
    # One says oedema, the other necrotic core: both are whole tumour, one is tumour core.
    total = summed(voxel(0, 0, 1, 0), voxel(0, 1, 0, 0), regions=REGIONS)
    assert total.channel_names == ("classes", "WT", "TC", "ET")
    for found in total.maps():
        assert found.ravel() == pytest.approx([math.log(2), 0, math.log(2), 0], abs=ROUNDING)


def test_the_most_uncertain_voxel_has_the_stated_maximum() -> None:
    entropy, _ = summed(*[voxel(0.25, 0.25, 0.25, 0.25)] * 2, regions={"half": (1, 2)}).maps()
    assert entropy.ravel() == pytest.approx([math.log(4), math.log(2)], abs=ROUNDING)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_agrees_with_a_twin_that_keeps_every_sample(count: int) -> None:
    samples = random_samples(count)
    entropy, mutual = summed(*samples, regions=REGIONS).maps()

    stack = np.stack([sample.double().numpy() for sample in samples])
    channels = [stack]
    for classes in REGIONS.values():
        inside = stack[:, list(classes)].sum(axis=1)
        channels.append(np.stack([inside, 1 - inside], axis=1))
    for index, kept in enumerate(channels):
        predictive = -(kept.mean(axis=0) * np.log(kept.mean(axis=0))).sum(axis=0)
        expected = -(kept * np.log(kept)).sum(axis=1).mean(axis=0)
        np.testing.assert_allclose(entropy[index], predictive, rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(mutual[index], predictive - expected, rtol=0, atol=ROUNDING)
    assert entropy.dtype == mutual.dtype == np.float32
    assert entropy.shape == mutual.shape == (4, 3, 4, 2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 6), spread=st.floats(0, 1e-3))
def test_within_their_bounds_also_where_samples_hardly_differ(
    seed: int, count: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn((4, 3, 3, 3), generator=generator)
    samples = [
        (logits + spread * torch.randn(logits.shape, generator=generator)).softmax(dim=0)
        for _ in range(count)
    ]
    entropy, mutual = summed(*samples, regions=REGIONS).maps()
    assert mutual.min() >= 0
    assert (mutual <= entropy + ROUNDING).all()
    assert entropy.min() >= 0
    assert entropy[0].max() <= math.log(4) + ROUNDING
    assert entropy[1:].max() <= math.log(2) + ROUNDING
    assert mutual.max() < 1e-4


def test_a_sum_above_one_is_not_infinitely_certain() -> None:
    # 0.1 + 0.2 + 0.7 is a hair above 1 in float32, as sums of probabilities may be.
    third = voxel(0.0, 1 / 3, 1 / 3, 1 / 3) * (1 + 3e-7)
    assert third.sum() > 1
    entropy, mutual = summed(third, third, regions=REGIONS).maps()
    assert np.isfinite(entropy).all()
    assert entropy[1] == 0
    assert np.isfinite(mutual).all()


def test_volumes_by_hand() -> None:
    # Two voxels: the first ET in both samples, the second oedema in one of them.
    one = torch.tensor([[0.1, 0.3], [0.1, 0.1], [0.2, 0.5], [0.6, 0.1]]).reshape(4, 2, 1, 1)
    two = torch.tensor([[0.1, 0.8], [0.1, 0.1], [0.2, 0.1], [0.6, 0.0]]).reshape(4, 2, 1, 1)
    volumes = summed(one, two, regions=REGIONS).volumes_ml(voxel_volume_ml=0.5)
    # WT: 2 and 1 voxels, mean 1.5, standard deviation sqrt(0.5) of them.
    assert volumes == {
        "WT": {"mean": 0.75, "standard_deviation": pytest.approx(0.5 * math.sqrt(0.5))},
        "TC": {"mean": 0.5, "standard_deviation": 0.0},
        "ET": {"mean": 0.5, "standard_deviation": 0.0},
    }


def test_samples_may_carry_metadata_and_stay_as_they_are() -> None:
    samples = random_samples(3)
    copies = [sample.clone() for sample in samples]
    plain = summed(*samples, regions=REGIONS).maps()
    total = summed(*(MetaTensor(sample) for sample in samples), regions=REGIONS)
    assert total.num_samples == 3
    for found, expected in zip(total.maps(), plain, strict=True):
        np.testing.assert_array_equal(found, expected)
    for sample, copy in zip(samples, copies, strict=True):
        assert torch.equal(sample, copy)


def test_asking_twice_gives_the_same() -> None:
    total = summed(*random_samples(3), regions=REGIONS)
    first, second = total.maps(), total.maps()
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("count", [0, 1])
def test_less_than_two_samples_tell_nothing(count: int) -> None:
    total = summed(*random_samples(count), regions=REGIONS)
    with pytest.raises(ValueError, match=f"needs at least 2 samples .*; found {count}"):
        total.maps()
    with pytest.raises(ValueError, match="needs at least 2 samples"):
        total.volumes_ml(voxel_volume_ml=1.0)


def test_samples_of_different_shapes_are_refused() -> None:
    total = summed(voxel(0.5, 0.5), regions={"tumour": (1,)})
    with pytest.raises(
        ValueError, match=r"shape of the first, \(2, 1, 1, 1\); found \(3, 1, 1, 1\)"
    ):
        total.add(voxel(0.5, 0.5, 0.0))


def dropping_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 4, 1),
        nn.BatchNorm3d(4),
        nn.Dropout(0.5),
        nn.Dropout(0.0),
        nn.Dropout3d(0.25),
    ).eval()


def test_only_dropout_works_as_in_training() -> None:
    network = dropping_network()
    with dropout_active(network):
        assert [layer.training for layer in network] == [False, False, True, False, True]
        assert not network.training
    assert not any(module.training for module in network.modules())


def test_every_layer_is_restored_also_after_an_error() -> None:
    network = dropping_network()
    network[4].train()
    with pytest.raises(KeyError, match="stopped"), dropout_active(network):
        raise KeyError("stopped")
    assert [layer.training for layer in network] == [False, False, False, False, True]


@pytest.mark.parametrize("name", ["UNet3D", "SegResNet"])
def test_the_networks_drop_by_their_own_settings(name: str) -> None:
    network = build_network(name, in_channels=1, out_channels=2).eval()
    image = torch.ones(1, 1, 8, 8, 8)
    with torch.no_grad(), dropout_active(network):
        assert not torch.equal(network(image), network(image))
    with torch.no_grad():
        assert torch.equal(network(image), network(image))


@pytest.mark.parametrize(("name", "options"), [("UNet3D", {"dropout": 0.0}), ("DynUNet", {})])
def test_a_network_without_dropout_is_refused(name: str, options: dict[str, float]) -> None:
    network = build_network(name, in_channels=1, out_channels=2, **options)
    expected = f"needs a network with dropout; {name} was trained without"
    with pytest.raises(SettingsError, match=expected), dropout_active(network):
        pass


def test_a_pass_follows_from_seed_and_index_alone() -> None:
    network, image = dropping_network(), torch.ones(1, 1, 4, 4, 4)

    def passes(seed: int, indices: list[int]) -> list[Tensor]:
        results = []
        with torch.no_grad(), dropout_active(network):
            for index in indices:
                with seeded_pass(seed=seed, index=index):
                    results.append(network(image))
        return results

    first = passes(7, [0, 1, 2])
    torch.rand(5)  # whatever was drawn before
    assert all(torch.equal(a, b) for a, b in zip(first, passes(7, [0, 1, 2]), strict=True))
    assert torch.equal(first[2], passes(7, [2])[0])
    assert not any(torch.equal(a, b) for a, b in pairwise(first))
    assert not torch.equal(first[0], passes(8, [0])[0])
    # Not the same as adding up: (7, 1) and (8, 0) are different passes.
    assert not torch.equal(first[1], passes(8, [0])[0])


def test_a_seeded_pass_leaves_the_random_numbers_around_it_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with seeded_pass(seed=0, index=0):
        torch.rand(100)
    assert torch.equal(torch.rand(4), expected)
