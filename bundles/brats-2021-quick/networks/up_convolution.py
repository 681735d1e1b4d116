"""The convolution of an enlarged volume joined with another one, without making either of them.

Let `up` repeat every voxel twice along each axis (nearest neighbour). An output voxel of
``conv(up(x))`` then sees every coarse voxel through up to two taps of the kernel per axis, and only
their sum matters: it is a transposed convolution of stride 2 whose kernel, one voxel longer, holds
the sums of neighbouring taps. Along one axis, with the kernel w of size k and padding k // 2::

    conv(up(x))[j] = sum_t w[t] up(x)[j + t - k // 2] = sum_i v[j - 2 i + k // 2] x[i]
    v[m] = w[k - 1 - m] + w[k - m],  0 <= m <= k,  w zero outside [0, k)

since x[i] lies at 2 i and 2 i + 1. It holds at the border too: beyond the volume the padding is
zero on the left, and there is no x[i] on the right. With k = 3 a voxel costs 8 products per
channel where it cost 27. What is joined by channels is convolved on its own, as convolution is a
sum over channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from networks.convolve import convolve


def up_convolution(below: Tensor, skip: Tensor, *, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``conv3d(cat([up(below), skip]), weight, bias, padding=k // 2)``, up to rounding.

    Neither the enlarged volume nor the joined one is made, for the backward pass neither.

    Args:
        below: (B, C, X, Y, Z), to be enlarged twice along each axis.
        skip: (B, D, 2 X, 2 Y, 2 Z).
        weight: (E, C + D, k, k, k) with k odd; first the channels of `below`.
        bias: (E,), or None.

    Returns:
        (B, E, 2 X, 2 Y, 2 Z).
    """
    num_below = below.shape[1]
    padding = weight.shape[-1] // 2
    kernel = enlarging_kernel(weight[:, :num_below])
    if weight.is_contiguous(memory_format=torch.channels_last_3d):
        # The result's layout is that of `below`, which a small volume comes without. As one and the
        # same, it is quicker for what follows, and dropout draws its mask in the order of memory.
        below = below.contiguous(memory_format=torch.channels_last_3d)
    result = F.conv_transpose3d(below, kernel, bias, stride=2, padding=padding)
    result += convolve(skip, weight[:, num_below:])
    return result


def enlarging_kernel(weight: Tensor) -> Tensor:
    """Return what `conv_transpose3d` takes for ``conv3d(up(x), weight)``: sums of taps.

    Args:
        weight: (E, C, k, k, k).

    Returns:
        (C, E, k + 1, k + 1, k + 1).
    """
    kernel = weight.transpose(0, 1).flip(2, 3, 4)
    for before, after in (
        ((1, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0)),
        ((0, 0, 1, 0, 0, 0), (0, 0, 0, 1, 0, 0)),
        ((0, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 1)),
    ):
        kernel = F.pad(kernel, before) + F.pad(kernel, after)
    return kernel
