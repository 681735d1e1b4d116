"""Scores that follow from counting voxels: IoU, precision, sensitivity, specificity.

The empty-region rule of `pipeline.evaluation` reads here: a score whose denominator is 0 is 1 where
prediction and reference agree in every voxel, and 0 where they do not. Hence

- both empty: all four are 1;
- only the prediction empty: IoU, precision and sensitivity 0;
- only the reference empty: IoU, precision and sensitivity 0;
- a reference that fills the volume: specificity 1 if the prediction fills it too, else 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.masks import require_masks


@dataclass(frozen=True)
class ConfusionCounts:
    """How many voxels two masks agree and differ in; the four add up to the volume's voxels."""

    num_true_positive: int
    num_false_positive: int
    num_false_negative: int
    num_true_negative: int

    @classmethod
    def of_masks(cls, prediction: np.ndarray, reference: np.ndarray) -> ConfusionCounts:
        """Count two boolean masks of the same shape.

        Raises:
            ValueError: A mask is not boolean, or the shapes differ.
        """
        require_masks(prediction, reference)
        num_both = int(np.count_nonzero(prediction & reference))
        num_predicted = int(np.count_nonzero(prediction))
        num_true = int(np.count_nonzero(reference))
        return cls(
            num_true_positive=num_both,
            num_false_positive=num_predicted - num_both,
            num_false_negative=num_true - num_both,
            num_true_negative=prediction.size - num_predicted - num_true + num_both,
        )

    @property
    def num_wrong(self) -> int:
        """The voxels in which the masks differ."""
        return self.num_false_positive + self.num_false_negative

    @property
    def iou(self) -> float:
        """Intersection over union (Jaccard), 0 to 1."""
        return self._share(self.num_true_positive, self.num_wrong)

    @property
    def precision(self) -> float:
        """The share of the predicted voxels that are right (positive predictive value), 0 to 1."""
        return self._share(self.num_true_positive, self.num_false_positive)

    @property
    def sensitivity(self) -> float:
        """The share of the reference's voxels that are predicted (recall), 0 to 1."""
        return self._share(self.num_true_positive, self.num_false_negative)

    @property
    def specificity(self) -> float:
        """The share of the voxels outside the reference that are not predicted, 0 to 1.

        It counts the whole volume, air included: near 1 for any small tumour, whatever the
        prediction.
        """
        return self._share(self.num_true_negative, self.num_false_positive)

    def _share(self, num_right: int, num_wrong: int) -> float:
        total = num_right + num_wrong
        if total == 0:
            return 1.0 if self.num_wrong == 0 else 0.0
        return num_right / total


def confusion_scores(prediction: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return `iou`, `precision`, `sensitivity` and `specificity` of two masks, each 0 to 1.

    The module's docstring states what empty masks give.

    Args:
        prediction: Boolean mask, any shape.
        reference: Boolean mask, the same shape.

    Raises:
        ValueError: A mask is not boolean, or the shapes differ.
    """
    counts = ConfusionCounts.of_masks(prediction, reference)
    return {
        "iou": counts.iou,
        "precision": counts.precision,
        "sensitivity": counts.sensitivity,
        "specificity": counts.specificity,
    }
