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
    total = _count(prediction) + _count(reference)
    if total == 0:
        return 1.0
    return 2.0 * _count(prediction & reference) / total


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
    # The one-hot reference is 1 in one channel a voxel: picking that channel is the product's sum.
    index = reference.long()
    intersection = float(probabilities.gather(0, index).sum(dtype=torch.float64))
    total = float(probabilities.sum(dtype=torch.float64)) + index.numel()
    # As argmax, ties and NaN included, in a fifth of its time.
    classes = probabilities.max(dim=0, keepdim=True).indices
    soft = _soft_scores(intersection, total, epsilon=epsilon)
    return soft | _hard_scores(classes, index, num_classes=probabilities.shape[0])


def article_metrics_of_mask(
    classes: torch.Tensor, reference: torch.Tensor, *, num_classes: int, epsilon: float = 1e-6
) -> dict[str, float]:
    """Return `article_metrics` of a mask taken for probabilities of 0 and 1, without making them.

    Args:
        classes: (1, X, Y, Z), class indices.
        reference: (1, X, Y, Z), class indices.
        num_classes: Channels that the probabilities would have.
        epsilon: See `article_metrics`.

    Raises:
        ValueError: The shapes differ.
    """
    _require_same_shape(classes.shape, reference.shape)
    num_right, num_voxels = _count(classes == reference), reference.numel()
    soft = _soft_scores(float(num_right), 2.0 * num_voxels, epsilon=epsilon)
    return soft | _hard_scores(classes, reference, num_classes=num_classes)


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
    nothing = torch.zeros_like(native_reference)
    dices = named_dice(region_dice(nothing, native_reference, regions=regions))
    nothing = torch.zeros_like(reference)
    return dices | article_metrics_of_mask(nothing, reference, num_classes=num_classes)


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


def _count(mask: torch.Tensor) -> int:
    """Return how many are true; `sum` turns every one into 64 bits first, and takes 30 times."""
    return int(torch.count_nonzero(mask))


def _union(classes: torch.Tensor, members: Sequence[int]) -> torch.Tensor:
    united = torch.zeros(classes.shape, dtype=torch.bool, device=classes.device)
    for member in members:
        united |= classes == member
    return united


def _soft_scores(intersection: float, total: float, *, epsilon: float) -> dict[str, float]:
    return {
        "article_dice": (2.0 * intersection + epsilon) / (total + epsilon),
        "article_iou": (intersection + epsilon) / (total - intersection + epsilon),
    }


def _hard_scores(
    classes: torch.Tensor, reference: torch.Tensor, *, num_classes: int
) -> dict[str, float]:
    ious = []
    for index in range(num_classes):
        predicted, true = classes == index, reference == index
        num_both = _count(predicted & true)
        num_either = _count(predicted | true)
        ious.append(num_both / num_either if num_either else 1.0)
    return {
        "mean_iou": sum(ious) / num_classes,
        "accuracy": _count(classes == reference) / reference.numel(),
    }
