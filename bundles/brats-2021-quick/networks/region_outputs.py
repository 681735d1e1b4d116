"""A network with one sigmoid channel per region, which speaks of classes when it is used."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from networks.regions import Content

# A probability that underflowed to 0 keeps a finite logarithm.
TINY = torch.finfo(torch.float32).tiny


class RegionOutputs(nn.Module):
    """Turns the logits of nested regions into the logarithms of the classes' probabilities.

    For BraTS: one channel each for WT, TC and ET, as in Myronenko (2018, arXiv:1810.11654) and in
    nnU-Net's region-based training (Isensee et al., 2021, arXiv:2011.00848). In training these
    logits come as they are. In use, a region cannot be likelier than the one around it, and what
    one region has and the next has not is a class: the probability of oedema is that of WT less
    that of TC. `softmax` of what is returned gives these probabilities, 1 in sum, so that whatever
    takes the logits of classes takes these.

    Args:
        network: maps (B, in_channels, X, Y, Z) to (B, R, X, Y, Z), one channel per region.
        regions: class indices of each region, each within the one before it, which has one class
            more; the first has every class but the background, 0.

    Raises:
        ValueError: the regions are not nested in this way.
    """

    def __init__(self, network: nn.Module, *, regions: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.network = network
        self.divisor = network.divisor
        self.takes_content = bool(getattr(network, "takes_content", False))
        # The channel of each class among: background, and what each region has beyond the next.
        rings = [0, *ring_classes(regions)]
        self.order = [rings.index(class_index) for class_index in range(len(rings))]

    def forward(self, image: Tensor, content: Content | None = None) -> Tensor | list[Tensor]:
        """Return (B, R + 1, X, Y, Z) in use, and (B, R, X, Y, Z), or a list of them, in training.

        `content` is that of a `UNet3D`.
        """
        logits = self.network(image) if content is None else self.network(image, content)
        return logits if self.training else self._of_classes(logits.float())

    def _of_classes(self, logits: Tensor) -> Tensor:
        nested = [logits[:, 0]]
        for channel in logits.unbind(dim=1)[1:]:
            nested.append(torch.minimum(nested[-1], channel))
        inside = [torch.sigmoid(channel) for channel in nested]
        outside = torch.sigmoid(-nested[0])
        rings = [
            outside,
            *(wide - narrow for wide, narrow in pairwise(inside)),
        ]
        rings.append(inside[-1])
        return torch.stack([rings[index] for index in self.order], dim=1).clamp_(min=TINY).log_()


def ring_classes(regions: Sequence[Sequence[int]]) -> list[int]:
    """Return for each region the one class that the next region does not have.

    Raises:
        ValueError: There is not exactly one, or a class is in no region.
    """
    nested = [*map(set, regions), set()]
    rings = [region - within for region, within in pairwise(nested)]
    is_nested = all(within <= region for region, within in pairwise(nested))
    classes = [index for ring in rings if len(ring) == 1 for index in ring]
    if not classes or not is_nested or sorted(classes) != list(range(1, len(regions) + 1)):
        raise ValueError(
            f"region outputs need regions each of which lies within the one before it and has one "
            f"class less, from all classes down to one; found {[list(r) for r in regions]}. Train "
            f"with one output per class instead"
        )
    return classes
