"""The 3D convolution, which on a CPU is quick for small volumes too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Up to so many values times the edge along Z, torch does not ask oneDNN; see `convolve`.
TORCH_LIMIT = 20480
HAS_ONEDNN = torch.backends.mkldnn.is_available()


class SameConv3d(nn.Conv3d):
    """The `torch.nn.Conv3d` that keeps the size, by `convolve`.

    Args:
        in_channels: C.
        out_channels: E.
        kernel_size: k, odd.
        bias: whether there is one.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool = True
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias
        )

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, E, X, Y, Z) of (B, C, X, Y, Z)."""
        return convolve(input, self.weight, self.bias)


def convolve(volume: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``conv3d(volume, weight, bias, padding=k // 2)``, up to rounding.

    For a batch of one with C * X * Y <= 20480 torch does on a CPU, forwards and backwards, without
    oneDNN, the library that it convolves larger volumes with, and takes 3 to 10 times as long. It
    is asked for by a tensor of its own kind. The coarse levels of a network are that small.

    Args:
        volume: (B, C, X, Y, Z).
        weight: (E, C, k, k, k) with k odd.
        bias: (E,), or None.

    Returns:
        (B, E, X, Y, Z).
    """
    padding = weight.shape[-1] // 2
    if _left_without_onednn(volume):
        return F.conv3d(volume.to_mkldnn(), weight, bias, padding=padding).to_dense()
    return F.conv3d(volume, weight, bias, padding=padding)


def _left_without_onednn(volume: Tensor) -> bool:
    # What is recorded must hold for every size and runtime.
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    return (
        HAS_ONEDNN
        and volume.device.type == "cpu"
        and volume.dtype == torch.float32
        and volume.shape[0] == 1
        and volume.shape[1:-1].numel() <= TORCH_LIMIT
    )
