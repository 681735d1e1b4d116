"""The most probable class of each voxel, from the logits alone: the same as by way of softmax."""

from __future__ import annotations

import torch
from torch import Tensor

# Two logits of K that are further apart than K times this belong to probabilities that are more
# than 1e-4 apart, which no rounding of float32 can turn round.
CLEAR_GAP = 1e-3
# Torch computes exponentials in vectors, and differently to the last bit in a rest that fills
# none: only where both are whole vectors, a part of the voxels gives what all of them give.
VECTOR = 64
# Torch computes tiles of this size in one thread and in its cache. It splits what has 2**15
# elements, and on a busy machine its threads would wait for each other thousands of times.
TILE_VOXELS = (1 << 15) - 1


def can_be_direct(logits: Tensor) -> bool:
    """Whether `most_probable_classes` gives of logits (C, X, Y, Z) what their softmax gives."""
    return logits[0].numel() % VECTOR == 0


def most_probable_classes(logits: Tensor) -> Tensor:
    """Return the class of each voxel, uint8 (X, Y, Z), on the device of `logits` (C, X, Y, Z).

    It is the one that `transforms.build_postprocessing` finds by softmax, float32, with a
    background of what the other classes leave: where rounding could decide between two classes,
    that is computed on the CPU, for these voxels alone.
    """
    channels = logits.flatten(1)
    num_voxels = channels.shape[1]
    classes = torch.zeros(num_voxels, dtype=torch.uint8, device=logits.device)
    is_close = torch.empty(num_voxels, dtype=torch.bool, device=logits.device)
    tile = TILE_VOXELS if logits.device.type == "cpu" else num_voxels
    for part, found, close in zip(
        channels.split(tile, dim=1), classes.split(tile), is_close.split(tile), strict=True
    ):
        _first_and_gap(part, classes=found, is_close=close)
    if is_close.any():
        classes[is_close] = _by_softmax(channels[:, is_close].cpu()).to(logits.device)
    return classes.view(logits.shape[1:])


def _first_and_gap(logits: Tensor, *, classes: Tensor, is_close: Tensor) -> None:
    """Fill in the class of the largest of logits (C, N), and where the second is not far behind it.

    `classes` come as zeros. What is not finite is never far behind.
    """
    first = logits[0].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    second = torch.full_like(first, -torch.inf)
    for index, channel in enumerate(logits[1:].unbind(), start=1):
        values = channel.float().contiguous()
        is_larger = (values > first).view(torch.uint8)
        torch.maximum(classes, is_larger.mul_(index), out=classes)
        torch.maximum(second, torch.minimum(first, values), out=second)
        torch.maximum(first, values, out=first)
    gap = first.sub_(second)
    torch.logical_and(gap > CLEAR_GAP * len(logits), gap < torch.inf, out=is_close)
    is_close.logical_not_()


def _by_softmax(logits: Tensor) -> Tensor:
    """Return the classes, uint8 (N,), of logits (C, N) on the CPU."""
    num_voxels = logits.shape[1]
    whole = -(-num_voxels // VECTOR) * VECTOR
    padded = torch.zeros((len(logits), whole))
    padded[:, :num_voxels] = logits
    probabilities = torch.softmax(padded, dim=0)
    probabilities[0] = (1 - probabilities[1:].sum(dim=0)).clamp_(min=0)
    return probabilities.argmax(dim=0).to(torch.uint8)[:num_voxels]
