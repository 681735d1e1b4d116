"""Instance normalisation that keeps the layout of what it gets, which torch's does not on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class InstanceNorm(nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` with a learned scale and shift, up to rounding.

    On a CPU torch copies a volume in the layout `torch.channels_last_3d`, in which convolutions are
    quick, into the other one and leaves it there, so that the next convolution has to copy it back.
    Worse, its gradient is wrong where what comes back has that layout (torch 2.13; not in this
    project's networks, where its result sets the layout). Here nothing is moved.

    Args:
        num_features: C.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, affine=True)

    def forward(self, input: Tensor) -> Tensor:
        """Return (B, C, X, Y, Z) of the same, each channel of each volume with mean 0, variance 1.

        Raises:
            ValueError: A volume is a single voxel, which has no variance.
        """
        if not _is_for_us(input):
            return super().forward(input)
        if input[0, 0].numel() == 1:
            raise ValueError(f"expected more than 1 voxel per channel; found {tuple(input.shape)}")
        result: Tensor = _Normalisation.apply(input, self.weight, self.bias, self.eps)
        return result


def _is_for_us(volume: Tensor) -> bool:
    # What is recorded must hold for every runtime.
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    return (
        volume.device.type == "cpu"
        and volume.dtype == torch.float32
        and volume.is_contiguous(memory_format=torch.channels_last_3d)
    )


class _Normalisation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, volume: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        voxels = _rows(volume)
        # In two passes: the mean of squares less the square of the mean loses half of the digits.
        centred = voxels - voxels.mean(dim=1, keepdim=True)
        variance = centred.square().mean(dim=1, keepdim=True)
        inverse = (variance + eps).rsqrt_()
        # No view of another tensor: what follows may change it in place.
        result = torch.empty_like(volume)
        torch.addcmul(bias, centred, inverse * weight, out=_rows(result))
        ctx.save_for_backward(centred, inverse, weight)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, inverse, weight = ctx.saved_tensors
        rows = _rows(gradient.contiguous(memory_format=torch.channels_last_3d))
        shift = rows.mean(dim=1, keepdim=True)
        scale = (rows * centred).mean(dim=1, keepdim=True).mul_(inverse)
        factor = inverse * weight
        result = torch.empty_like(gradient, memory_format=torch.channels_last_3d)
        place = torch.addcmul(-factor * shift, rows, factor, out=_rows(result))
        place.addcmul_(centred, factor * inverse * scale, value=-1)
        num_voxels = rows.shape[1]
        of_weight, of_bias = (part.sum(dim=(0, 1)) * num_voxels for part in (scale, shift))
        return result, of_weight, of_bias, None


def _rows(volume: Tensor) -> Tensor:
    """Return (B, X * Y * Z, C) of (B, C, X, Y, Z) in `channels_last_3d`, the same memory."""
    return volume.permute(0, 2, 3, 4, 1).flatten(1, 3)
