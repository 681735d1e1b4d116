"""Several networks as one: the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from networks.region_outputs import TINY
from networks.regions import Content


class Ensemble(nn.Module):
    """The logarithm of the mean of its members' class probabilities, whose softmax is that mean.

    The members stay in evaluation mode, in which they speak of classes.

    Args:
        members: map (B, in_channels, X, Y, Z) to logits of classes; alike, with one divisor.
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.divisor = self.members[0].divisor
        self.takes_content = bool(getattr(self.members[0], "takes_content", False))

    def train(self, mode: bool = True) -> Ensemble:
        """Do as `torch.nn.Module.train` does, the members excepted."""
        super().train(mode)
        self.members.eval()
        return self

    def forward(self, image: Tensor, content: Content | None = None) -> Tensor:
        """Return (B, C, X, Y, Z), float32; `content` is that of a `UNet3D`."""
        first, *others = self.members
        total = _probabilities(first, image, content)
        for member in others:
            total = total + _probabilities(member, image, content)
        return (total / len(self.members)).clamp_(min=TINY).log_()


def _probabilities(member: nn.Module, image: Tensor, content: Content | None) -> Tensor:
    logits = member(image) if content is None else member(image, content)
    return torch.softmax(logits, dim=1, dtype=torch.float32)
