"""The moving average of the weights, which is smoother than the weights of the last step."""

from __future__ import annotations

import copy

import torch


class AveragedWeights:
    """A twin of a network whose weights follow those of the network, slowly.

    After each step ``average = d average + (1 - d) weights``, with ``d = min(decay, (1 + n) /
    (10 + n))`` after n steps, so that the first weights are soon forgotten. In a network that ends
    training at a high learning rate, or on few cases, the average is the better one (Polyak and
    Juditsky, 1992; Tarvainen and Valpola, 2017, arXiv:1703.01780).

    Args:
        network: On its device.
        decay: d, in (0, 1).

    Attributes:
        network: The twin.
    """

    def __init__(self, network: torch.nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def follow(self, network: torch.nn.Module, *, num_steps: int) -> None:
        """Take a step towards the weights of `network` after its optimiser's step `num_steps`."""
        share = 1 - min(self.decay, (1 + num_steps) / (10 + num_steps))
        pairs = zip(self.network.parameters(), network.parameters(), strict=True)
        for average, weight in pairs:
            average.lerp_(weight, share)
        # What a normalisation has counted is an average already.
        for kept, counted in zip(self.network.buffers(), network.buffers(), strict=True):
            kept.copy_(counted)
