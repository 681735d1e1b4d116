"""What a side cost: steps, minutes of training, seconds of inference, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.accuracy_peers.measured import Usage


@dataclass(frozen=True)
class Costs:
    """Of one side.

    Args:
        epochs: of one fold's training.
        steps: of its optimiser.
        step_s: seconds that a step took when the number of steps was chosen.
        training: of one fold, the mean over the folds (memory: the most of any).
        inference_s: seconds a case by the clock, start of the process and reading included.
        inference_bytes: resident at most while predicting.
        details: what else is to be known, as plain JSON values.
    """

    epochs: int
    steps: int
    step_s: float
    training: Usage
    inference_s: float
    inference_bytes: int
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def mean_usage(stages: Sequence[Mapping[str, Any]]) -> Usage:
    """Return the mean seconds of the stages' `usage`, and the most of their bytes."""
    usages = [Usage(**stage["usage"]) for stage in stages]
    return Usage(
        wall_s=sum(each.wall_s for each in usages) / len(usages),
        cpu_s=sum(each.cpu_s for each in usages) / len(usages),
        peak_bytes=max(each.peak_bytes for each in usages),
    )
