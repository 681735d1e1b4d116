"""From the seconds of a few steps to the number of steps that the minutes allow."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MOST_EPOCHS = 100
LARGEST_PAUSE = 0.1  # of the time of an epoch
CALIBRATION_S = 60.0
CALIBRATION_SHARE = 0.1  # of the budget
LEAST_EPOCHS = 3  # of a calibration


@dataclass(frozen=True)
class Plan:
    """How long to train."""

    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.epochs * self.steps_per_epoch


def whole_epochs(budget_s: float, *, epoch_s: float, steps_per_epoch: int) -> Plan:
    """Return as many epochs of a fixed number of steps as the budget allows, one at least."""
    return Plan(max(1, math.floor(budget_s / epoch_s)), steps_per_epoch)


def free_epochs(budget_s: float, *, step_s: float, pause_s: float) -> Plan:
    """Return epochs of a length that is free, with `pause_s` seconds between two of them.

    There are `MOST_EPOCHS` at most, and so few that the pauses take `LARGEST_PAUSE` at most where
    that is possible.
    """
    for_pauses = math.ceil(pause_s / step_s / LARGEST_PAUSE)
    for_number = math.ceil((budget_s / MOST_EPOCHS - pause_s) / step_s)
    most = max(1, math.floor((budget_s - pause_s) / step_s))
    steps = min(max(1, for_pauses, for_number), most)
    return Plan(max(1, math.floor(budget_s / (steps * step_s + pause_s))), steps)


def timed_epochs(budget_s: float, *, epoch_s: float) -> int:
    """Return how many epochs a calibration takes, of which the first is left out.

    The others fill `CALIBRATION_S`, or `CALIBRATION_SHARE` of the budget where that is less: a
    few epochs alone differ by several percent from one time to the next.
    """
    seconds = min(CALIBRATION_S, CALIBRATION_SHARE * budget_s)
    return max(LEAST_EPOCHS, 1 + math.ceil(seconds / epoch_s))


def mean_after(seconds: Sequence[float], *, left_out: int) -> float:
    """Return the mean of what follows the first values, which are slower, or also of them.

    Args:
        seconds: At least one value.
        left_out: How many are left out where more are there.
    """
    return statistics.fmean(seconds[left_out:] or seconds)
