"""How fast a device computes, measured in a moment: what predictions of time rest on."""

from __future__ import annotations

import time
from statistics import median

import torch

# Share of a matrix product's speed that the 3D convolutions of a U-Net reach as a whole: between
# 0.45 and 0.6 on the processors it was measured on.
CONVOLUTION_EFFICIENCY = 0.5


def convolution_flop_per_second(device: torch.device) -> float:
    """Return about how many operations per second the convolutions of a network will reach."""
    return CONVOLUTION_EFFICIENCY * flop_per_second(device)


def flop_per_second(device: torch.device, *, size: int | None = None, repeats: int = 3) -> float:
    """Return the speed of float32 matrix products on `device`, measured in a moment.

    `size` is the edge of the matrices; None chooses it by the device.
    """
    if size is None:  # a GPU would wait for the next command more than it would compute
        size = 1024 if device.type == "cpu" else 2048
    matrix = torch.ones(size, size, device=device)
    seconds = []
    for _ in range(repeats + 1):
        start = time.monotonic()
        # .item() waits until a GPU is done.
        (matrix @ matrix)[0, 0].item()
        seconds.append(time.monotonic() - start)
    return 2 * size**3 / median(seconds[1:])
