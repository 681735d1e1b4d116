"""The losses by name; each takes logits and class indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss

from transforms import classes_to_regions

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over all voxels: the article's loss.

    Args:
        logits: (B, C, X, Y, Z).
        label: (B, 1, X, Y, Z), class indices.
    """
    return F.cross_entropy(logits, label[:, 0].long())


def build_loss(
    name: str, *, dice_smoothing: float = 1e-5, regions: Sequence[Sequence[int]] | None = None
) -> Loss:
    """Return the loss of that name: `cross_entropy`, `dice` or `dice_ce`.

    The Dice losses leave the background out: it is 98 % of a volume, and with it a network that
    finds nothing already scores well. Where the network returns several logits, the loss is their
    mean; see `deeply_supervised`.

    Args:
        name: Of the loss.
        dice_smoothing: Voxels added to numerator and denominator of Dice. Next to nothing leaves
            Dice without a gradient where a case lacks a class, so that only the cross-entropy
            speaks against finding it there; about the size of a small lesion makes Dice do so.
        regions: Class indices of each region, for a network with a sigmoid channel for each
            region; the cross-entropy is then the binary one.

    Raises:
        ValueError: There is no such loss.
    """
    losses = _class_losses(dice_smoothing)
    if name not in losses:
        raise ValueError(f"loss: expected one of {', '.join(losses)}; found {name!r}")
    if regions is None:
        return deeply_supervised(losses[name]())
    return deeply_supervised(_of_regions(_region_losses(dice_smoothing)[name](), regions))


def _class_losses(smoothing: float) -> dict[str, Callable[[], Loss]]:
    dice: dict[str, Any] = {
        "include_background": False,
        "to_onehot_y": True,
        "softmax": True,
        **_shared(smoothing),
    }
    return {
        "cross_entropy": lambda: cross_entropy,
        "dice": lambda: DiceLoss(**dice),
        "dice_ce": lambda: DiceCELoss(**dice),
    }


def _region_losses(smoothing: float) -> dict[str, Callable[[], Loss]]:
    dice = DiceLoss(sigmoid=True, **_shared(smoothing))
    entropy = F.binary_cross_entropy_with_logits
    return {
        "cross_entropy": lambda: entropy,
        "dice": lambda: dice,
        "dice_ce": lambda: lambda logits, masks: dice(logits, masks) + entropy(logits, masks),
    }


def _shared(smoothing: float) -> dict[str, Any]:
    return {"batch": True, "smooth_nr": smoothing, "smooth_dr": smoothing}


def _of_regions(loss: Loss, regions: Sequence[Sequence[int]]) -> Loss:
    """Return `loss`, which takes masks of `regions` (B, R, X, Y, Z), for class indices."""

    def of_classes(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        masks = torch.stack([classes_to_regions(part, regions=regions) for part in label])
        return loss(logits, masks.to(logits.dtype))

    return of_classes


def deeply_supervised(loss: Loss) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """Return `loss` for a network that may return the logits of coarser levels too, in a list.

    Each level counts half as much as the finer one before it, and all together as much as one, as
    in nnU-Net (Isensee et al., 2021, arXiv:2011.00848). The label is taken to the coarser grids by
    nearest neighbour.
    """

    def of_all(logits: torch.Tensor | list[torch.Tensor], label: torch.Tensor) -> torch.Tensor:
        if isinstance(logits, torch.Tensor):
            return loss(logits, label)
        weights = [0.5**level for level in range(len(logits))]
        parts = [
            weight * loss(level, F.interpolate(label, size=level.shape[2:], mode="nearest-exact"))
            for weight, level in zip(weights, logits, strict=True)
        ]
        return torch.stack(parts).sum() / sum(weights)

    return of_all
