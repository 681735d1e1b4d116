"""Uncertainty by Monte Carlo dropout: many passes with dropout on, and how much they disagree.

Source: Gal and Ghahramani, 2016, arXiv:1506.02142; mutual information as a measure of what more
training data could teach ("BALD"): Houlsby et al., 2011, arXiv:1112.5745.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import mean, stdev

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from pipeline.errors import SettingsError
from transforms import decided_classes

CLASSES_CHANNEL = "classes"


def dropout_layers(network: nn.Module) -> list[nn.Module]:
    """Return the layers of `network` that drop something in training.

    Raises:
        SettingsError: There is none, so that the network's uncertainty would be 0 everywhere.
    """
    layers: list[nn.Module] = [
        module for module in network.modules() if isinstance(module, _DropoutNd) and module.p > 0
    ]
    if not layers:
        raise SettingsError(
            f"Monte Carlo dropout needs a network with dropout; {type(network).__name__} was "
            f"trained without, and its uncertainty would be 0 everywhere. Leave the uncertainty "
            f"out, or train with a dropout above 0"
        )
    return layers


@contextmanager
def dropout_active(network: nn.Module) -> Iterator[None]:
    """Let the dropout layers of `network`, and nothing else in it, work as in training.

    Raises:
        SettingsError: See `dropout_layers`.
    """
    layers = dropout_layers(network)
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.train(training)


@contextmanager
def seeded_pass(*, seed: int, index: int) -> Iterator[None]:
    """Make torch's random numbers within a function of (`seed`, `index`) alone.

    The random state of before returns at the end. A rerun drops the same values, whatever ran
    before it, on the same kind of device and with the same version of torch.

    Args:
        seed: of the run, at least 0.
        index: of the pass, at least 0.
    """
    state = np.random.SeedSequence((seed, index)).generate_state(1)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int(state[0]))
        yield


class UncertaintySum:
    """Adds up probability samples one at a time, and tells how uncertain they are, voxel by voxel.

    It keeps one volume per class and one per map, whatever the number of samples. All values are
    in nats. The entropy of the mean sample (predictive entropy) is the whole uncertainty, at most
    ln C for the C classes together and ln 2 for a region against the rest. The mutual information
    is what is left of it when the mean entropy of the samples is taken off: 0 where all samples
    agree, however undecided each is.

    Args:
        regions: For each region the class indices that it unites.
        deciding_regions: Of a network with region outputs; see `transforms.decided_classes`.

    Attributes:
        channel_names: Of the maps: "classes", then the regions in their order.
        num_samples: Added so far.
    """

    def __init__(
        self,
        *,
        regions: Mapping[str, Sequence[int]],
        deciding_regions: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.regions = {name: tuple(classes) for name, classes in regions.items()}
        self.deciding_regions = deciding_regions
        self.channel_names = (CLASSES_CHANNEL, *self.regions)
        self.num_samples = 0
        self._probabilities: Tensor | None = None
        self._entropies: Tensor | None = None
        self._num_voxels: dict[str, list[int]] = {name: [] for name in self.regions}

    def add(self, probabilities: Tensor) -> None:
        """Add a sample (C, X, Y, Z) of probabilities, 1 in sum over C; it is not kept.

        Raises:
            ValueError: The shape is not that of the samples before.
        """
        sample = (
            probabilities.as_tensor() if isinstance(probabilities, MetaTensor) else probabilities
        )
        sample = sample.detach().to("cpu", torch.float32)
        entropies = self._entropy_maps(sample)
        if self._probabilities is None or self._entropies is None:
            self._probabilities, self._entropies = sample.clone(), entropies
        else:
            if sample.shape != self._probabilities.shape:
                raise ValueError(
                    f"every sample must have the shape of the first, "
                    f"{tuple(self._probabilities.shape)}; found {tuple(sample.shape)}"
                )
            self._probabilities += sample
            self._entropies += entropies
        self.num_samples += 1
        classes = decided_classes(sample, regions=self.deciding_regions)
        counts = torch.bincount(classes.flatten(), minlength=sample.shape[0])
        for name, members in self.regions.items():
            self._num_voxels[name].append(int(counts[list(members)].sum()))

    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Return predictive entropy and mutual information, each float32 (1 + R, X, Y, Z), in nats.

        Their channels are `channel_names`; both are at least 0.

        Raises:
            ValueError: Fewer than two samples, between which there is nothing to compare.
        """
        probabilities, entropies = self._sums()
        total = self._entropy_maps(probabilities / self.num_samples)
        # Never negative but for rounding: the entropy of a mean is at least the mean entropy.
        mutual = (total - entropies / self.num_samples).clamp_(min=0)
        return total.numpy(), mutual.numpy()

    def volumes_ml(self, *, voxel_volume_ml: float) -> dict[str, dict[str, float]]:
        """Return for each region the `mean` and `standard_deviation` of its volume, in mL.

        A sample's volume is that of the voxels whose class belongs to the region;
        the standard deviation has n - 1 in its denominator.

        Raises:
            ValueError: Fewer than two samples.
        """
        self._sums()
        return {
            name: {
                "mean": mean(counts) * voxel_volume_ml,
                "standard_deviation": stdev(counts) * voxel_volume_ml,
            }
            for name, counts in self._num_voxels.items()
        }

    def _sums(self) -> tuple[Tensor, Tensor]:
        if self.num_samples < 2 or self._probabilities is None or self._entropies is None:
            raise ValueError(
                f"uncertainty needs at least 2 samples of the probabilities; "
                f"found {self.num_samples}"
            )
        return self._probabilities, self._entropies

    def _entropy_maps(self, probabilities: Tensor) -> Tensor:
        """Return the entropy (1 + R, X, Y, Z) of all classes, and of each region against the rest.

        Channel by channel, because a volume of a whole head takes tens of MB.
        """
        maps = torch.zeros((len(self.channel_names), *probabilities.shape[1:]))
        for channel in probabilities:
            maps[0] += torch.special.entr(channel)
        for entropy, classes in zip(maps[1:], self.regions.values(), strict=True):
            # A sum of rounded probabilities can exceed 1, where the entropy is minus infinity.
            inside = probabilities[list(classes)].sum(dim=0).clamp_(0, 1)
            entropy += torch.special.entr(inside)
            entropy += torch.special.entr(1 - inside)
        return maps
