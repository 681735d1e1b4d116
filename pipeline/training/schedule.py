"""The optimiser, and its learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Any

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


def build_optimisation(
    network: torch.nn.Module,
    *,
    epoch_length: int,
    max_epochs: int,
    learning_rate: float,
    adam_epsilon: float,
    weight_decay: float,
    accumulation_steps: int,
    schedule: str,
    warmup_fraction: float,
    **_: object,
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Return Adam (AdamW where there is a weight decay) and the schedule of its learning rate.

    On CUDA all parameters are moved by one kernel.
    """
    kind = torch.optim.AdamW if weight_decay > 0 else torch.optim.Adam
    parameters = list(network.parameters())
    optimizer = kind(
        parameters,
        lr=learning_rate,
        eps=adam_epsilon,
        weight_decay=weight_decay,
        fused=all(parameter.is_cuda for parameter in parameters) or None,
    )
    optimizer.register_load_state_dict_pre_hook(_with_own_kernels)
    num_steps = max_epochs * math.ceil(epoch_length / accumulation_steps)
    scheduler = build_scheduler(
        optimizer, schedule=schedule, num_steps=num_steps, warmup_fraction=warmup_fraction
    )
    return optimizer, scheduler


def _with_own_kernels(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimiser's stored `state` with the kernels of this machine, not of that one."""
    fused = optimizer.defaults["fused"]
    groups = [{**group, "fused": fused} for group in state["param_groups"]]
    return {**state, "param_groups": groups}
