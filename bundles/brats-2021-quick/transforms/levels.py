"""What is read of a channel: its voxels as they are, or scaled to 0..1 and rounded."""

from __future__ import annotations

import numpy as np
import torch

from transforms.slabs import ChannelRange

# With so many decimals, a level that is divided in float32 is the one divided in float64 and then
# rounded: a quotient so near the middle of two float32 numbers needs a divisor of 2**28.
EXACT_DECIMALS = 7


class Voxels:
    """The voxels of a channel.

    Args:
        bounds: what they are.

    Attributes:
        background: what is read where nothing varies.
    """

    def __init__(self, bounds: ChannelRange) -> None:
        self.background = float(bounds.background)

    def read(self, source: torch.Tensor, place: torch.Tensor) -> None:
        """Write what `source` holds to `place`, of the same shape."""
        place.copy_(source)


class Levels(Voxels):
    """The voxels of a channel scaled to 0..1, rounded; 0 if it is constant.

    Args:
        bounds: what they are.
        decimals: that are kept; None does not round.
    """

    def __init__(self, bounds: ChannelRange, decimals: int | None) -> None:
        self.decimals = decimals
        self.low = bounds.low.double()
        self.width = bounds.high.double() - self.low
        self.is_constant = bool(bounds.low == bounds.high)
        self.begins_at_zero = bool(bounds.low == 0)
        # Tensors and not numbers, so that CUDA divides: by a number it multiplies with the rounded
        # reciprocal, which can move a tie to another level.
        self.level = self.low.new_tensor(10.0 ** (decimals or 0))
        level = torch.empty((), dtype=torch.float32, device=self.low.device)
        self.read(bounds.background, level)
        self.background = float(level)

    def read(self, source: torch.Tensor, place: torch.Tensor) -> None:
        """Write the levels of `source` to `place`, in float32 or what it is."""
        if self.is_constant:
            place.zero_()
            return
        scaled = source.to(torch.float64, copy=True)
        if not self.begins_at_zero:
            scaled.sub_(self.low)
        scaled.div_(self.width)
        if self.decimals is None:
            place.copy_(scaled)
            return
        _round(scaled.mul_(self.level))
        if self.decimals <= EXACT_DECIMALS:
            place.copy_(scaled).div_(self.level.float())
        else:
            place.copy_(scaled.div_(self.level))


def _round(values: torch.Tensor) -> None:
    """Round `values` to whole numbers, halves to even ones, in their own memory."""
    if values.device.type == "cpu":
        # torch splits this among threads from 2048 elements on, which is slower than one.
        np.rint(values.numpy(), out=values.numpy())
    else:
        values.round_()
