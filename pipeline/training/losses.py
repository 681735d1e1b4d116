"""The losses by name; each takes logits and class indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over all voxels: the article's loss.

    Args:
        logits: (B, C, X, Y, Z).
        label: (B, 1, X, Y, Z), class indices.
    """
    return F.cross_entropy(logits, label[:, 0].long())


def build_loss(name: str, *, dice_smoothing: float = 1e-5) -> Loss:
    """Return the loss of that name: `cross_entropy`, `dice` or `dice_ce`.

    The Dice losses leave the background out: it is 98 % of a volume, and with it a network that
    finds nothing already scores well.

    Args:
        name: Of the loss.
        dice_smoothing: Voxels added to numerator and denominator of Dice. Next to nothing leaves
            Dice without a gradient where a case lacks a class, so that only the cross-entropy
            speaks against finding it there; about the size of a small lesion makes Dice do so.

    Raises:
        ValueError: There is no such loss.
    """
    dice: dict[str, Any] = {
        "include_background": False,
        "to_onehot_y": True,
        "softmax": True,
        "batch": True,
        "smooth_nr": dice_smoothing,
        "smooth_dr": dice_smoothing,
    }
    losses: dict[str, Callable[[], Loss]] = {
        "cross_entropy": lambda: cross_entropy,
        "dice": lambda: DiceLoss(**dice),
        "dice_ce": lambda: DiceCELoss(**dice),
    }
    if name not in losses:
        raise ValueError(f"loss: expected one of {', '.join(losses)}; found {name!r}")
    return losses[name]()
