"""The learning rate's factor as a function of the optimiser step, and its scheduler."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

SCHEDULES = ("constant", "cosine", "poly")


def rate_factor(step: int, *, schedule: str, num_steps: int, num_warmup: int) -> float:
    """Return what the learning rate is multiplied by at `step` (from 0) of `num_steps`.

    Linear warm-up from 1/num_warmup to 1, then `constant`, `cosine` (to 0) or `poly` ((1 - t)^0.9,
    as nnU-Net has it).

    Raises:
        ValueError: There is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}; found {schedule!r}")
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = min((step - num_warmup) / max(num_steps - num_warmup, 1), 1.0)
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return (1.0 - progress) ** 0.9


def build_scheduler(
    optimizer: torch.optim.Optimizer, *, schedule: str, num_steps: int, warmup_fraction: float
) -> LambdaLR:
    """Return the scheduler; call its `step()` once after each optimiser step."""
    num_warmup = round(num_steps * warmup_fraction)
    return LambdaLR(
        optimizer,
        lambda step: rate_factor(
            step, schedule=schedule, num_steps=num_steps, num_warmup=num_warmup
        ),
    )
