"""How far a run is: everything a resumed run needs beside weights and optimiser."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Progress:
    """Counters, the open epoch's losses, the last step's learning rate, the best score, and one row
    for each finished epoch.

    `history` holds no clock times: two runs with the same seed write the same `metrics.csv`.
    """

    iteration: int = 0
    epoch_loss_sum: float = 0.0
    learning_rate: float = 0.0
    best_score: float | None = None
    best_epoch: int | None = None
    history: list[dict[str, float | int | None]] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        """Build it from what `to_dict` gave."""
        return cls(**{**values, "history": [dict(row) for row in values["history"]]})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the checkpoint."""
        return asdict(self)

    @property
    def num_epochs_done(self) -> int:
        """Epochs that are finished, validation included."""
        return len(self.history)

    def is_better(self, score: float) -> bool:
        """Whether `score` beats the best one; a score that is no number never does."""
        if math.isnan(score):
            return False
        return self.best_score is None or score > self.best_score

    def validations_since_best(self) -> int:
        """Count the validations after the best one."""
        since = [row for row in self.history if row["epoch"] > (self.best_epoch or 0)]  # type: ignore[operator]
        return sum(row.get("dice_mean") is not None for row in since)

    def is_finished(self, *, max_epochs: int, early_stopping: int | None) -> bool:
        """Whether the last epoch is done, or that many validations brought nothing better."""
        if early_stopping is not None and self.validations_since_best() >= early_stopping:
            return True
        return self.num_epochs_done >= max_epochs

    def add_epoch(self, row: Mapping[str, float | int | None]) -> None:
        """Close an epoch: keep its row and empty the sum of losses."""
        self.history.append(dict(row))
        self.epoch_loss_sum = 0.0

    def as_csv(self) -> str:
        """Return `metrics.csv`: a line an epoch; empty where an epoch was not validated."""
        if not self.history:
            return ""  # not a header without columns: an empty line
        columns = list(dict.fromkeys(name for row in self.history for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        return text.getvalue()
