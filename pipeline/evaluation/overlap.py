"""Overlap scores: Dice of the regions, and the article's own metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

BACKGROUND = "background_"
"""Prefix of the score that "everything is background" gets, beside the score of the same name."""


def dice(prediction: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the Dice coefficient of two boolean masks of the same shape, 0 to 1.

    Both empty gives 1, one empty gives 0 (the rule of `pipeline.evaluation`).
    """
    total = int(prediction.sum()) + int(reference.sum())
    if total == 0:
        return 1.0
    return 2.0 * int((prediction & reference).sum()) / total


def region_dice(
    prediction: torch.Tensor,
    reference: torch.Tensor,
    *,
    regions: Mapping[str, Sequence[int]],
) -> dict[str, float]:
    """Return Dice per region of two volumes of class indices.

    Args:
        prediction: Class indices, any shape.
        reference: Class indices, the same shape.
        regions: For each region the class indices that it unites.

    Raises:
        ValueError: The shapes differ.
    """
    _require_same_shape(prediction.shape, reference.shape)
    return {
        name: dice(_union(prediction, classes), _union(reference, classes))
        for name, classes in regions.items()
    }


def article_metrics(
    probabilities: torch.Tensor, reference: torch.Tensor, *, epsilon: float = 1e-6
) -> dict[str, float]:
    """Return the article's metrics of one case: they count the background as a class.

    `article_dice` is its `dice_coeff`: soft, over all voxels and classes at once. `article_iou` is
    the intersection over union of the same sums. `mean_iou` averages the hard IoU of the classes
    (a class absent from both counts 1); `accuracy` is the share of voxels with the right class. The
    article prints the code of the first only; the others follow its names.

    Args:
        probabilities: (C, X, Y, Z), summing to 1 over C.
        reference: (1, X, Y, Z), class indices.
        epsilon: The article's guard against a division by zero.

    Raises:
        ValueError: The shapes differ in more than the channels.
    """
    _require_same_shape((1, *probabilities.shape[1:]), reference.shape)
    num_classes = probabilities.shape[0]
    index = reference.long()
    # The one-hot reference is 1 in one channel a voxel: picking that channel is the product's sum.
    intersection = float(probabilities.gather(0, index).sum(dtype=torch.float64))
    total = float(probabilities.sum(dtype=torch.float64)) + index.numel()
    classes = probabilities.argmax(dim=0, keepdim=True)
    return {
        "article_dice": (2.0 * intersection + epsilon) / (total + epsilon),
        "article_iou": (intersection + epsilon) / (total - intersection + epsilon),
        "mean_iou": _mean_iou(classes, index, num_classes=num_classes),
        "accuracy": float((classes == index).sum()) / index.numel(),
    }


def background_scores(
    native_reference: torch.Tensor,
    reference: torch.Tensor,
    *,
    regions: Mapping[str, Sequence[int]],
    num_classes: int,
) -> dict[str, float]:
    """Return the scores that "everything is background" gets on the same case.

    Args:
        native_reference: Class indices on the case's own grid, for the region Dice.
        reference: (1, X, Y, Z), class indices on the network's grid, for the article's metrics.
        regions: Class indices per region.
        num_classes: Channels of the network's output.
    """
    nothing = torch.zeros((num_classes, *reference.shape[1:]), dtype=torch.float32)
    nothing[0] = 1.0
    dices = region_dice(torch.zeros_like(native_reference), native_reference, regions=regions)
    return named_dice(dices) | article_metrics(nothing, reference.cpu())


def named_dice(dices: Mapping[str, float]) -> dict[str, float]:
    """Return region Dice under the names of the score table, their mean first."""
    return {"dice_mean": sum(dices.values()) / len(dices)} | {
        f"dice_{name}": value for name, value in dices.items()
    }


def _require_same_shape(prediction: Sequence[int], reference: Sequence[int]) -> None:
    if tuple(prediction) != tuple(reference):
        raise ValueError(
            f"prediction {tuple(prediction)} and reference {tuple(reference)} "
            "must have the same shape"
        )


def _union(classes: torch.Tensor, members: Sequence[int]) -> torch.Tensor:
    return torch.isin(classes, torch.tensor(members, dtype=classes.dtype, device=classes.device))


def _mean_iou(classes: torch.Tensor, reference: torch.Tensor, *, num_classes: int) -> float:
    values = []
    for index in range(num_classes):
        predicted, true = classes == index, reference == index
        union = int((predicted | true).sum())
        values.append(int((predicted & true).sum()) / union if union else 1.0)
    return sum(values) / num_classes
