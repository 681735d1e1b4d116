"""The losses by name; each takes logits and class indices."""

from __future__ import annotations

from collections.abc import Callable

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


def _dice() -> Loss:
    return DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)


def _dice_ce() -> Loss:
    return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)


def build_loss(name: str) -> Loss:
    """Return the loss of that name: `cross_entropy`, `dice` or `dice_ce`.

    The Dice losses leave the background out: it is 98 % of a volume, and with it a network that
    finds nothing already scores well.

    Raises:
        ValueError: There is no such loss.
    """
    losses: dict[str, Callable[[], Loss]] = {
        "cross_entropy": lambda: cross_entropy,
        "dice": _dice,
        "dice_ce": _dice_ce,
    }
    if name not in losses:
        raise ValueError(f"loss: expected one of {', '.join(losses)}; found {name!r}")
    return losses[name]()
