"""The pair of MONAI engines: one trains, one validates on whole volumes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer, Workflow

from networks import VolumeInferer
from pipeline.model.heap import give_back
from pipeline.model.precision import Forward, half_precision
from pipeline.training.losses import Loss
from transforms.arrays import plain_tensor


class ResumableTrainer(SupervisedTrainer):
    """MONAI's trainer with a gradient scaler that lasts: MONAI begins every run with a new one."""

    def run(self) -> None:
        """Train from the current state on."""
        Workflow.run(self)


def training_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool, **_: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image and label on `device`, without the metadata that training has no use for."""
    return tuple(  # type: ignore[return-value]
        plain_tensor(batch[key]).to(device, non_blocking=non_blocking) for key in ("image", "label")
    )


def validation_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool, **_: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image and label on `device`; the image keeps its trace for the way back."""
    return (
        batch["image"].to(device, non_blocking=non_blocking),
        plain_tensor(batch["label"]).to(device, non_blocking=non_blocking),
    )


def build_trainer(
    network: torch.nn.Module,
    *,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    device: torch.device,
    max_epochs: int,
    amp: bool,
    accumulation_steps: int,
    handlers: Sequence[object],
) -> SupervisedTrainer:
    """Return the trainer; what `amp` does, `half_precision` says. Only float16 has a scaler."""
    precision = half_precision(device, amp=amp)
    trainer = ResumableTrainer(
        device=device,
        max_epochs=max_epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=loss,
        prepare_batch=training_batch,
        inferer=Forward(precision),  # type: ignore[arg-type]
        amp=precision == torch.float16,
        accumulation_steps=accumulation_steps,
        optim_set_to_none=True,
        decollate=False,
        train_handlers=list(handlers),
    )
    if trainer.amp:  # MONAI declares the subclass that torch has deprecated
        trainer.scaler = torch.amp.GradScaler(device.type)  # type: ignore[assignment]
    return _quiet(trainer)


def build_evaluator(
    network: torch.nn.Module,
    *,
    loader: DataLoader,
    postprocessing: Callable[[dict[str, Any]], dict[str, Any]],
    device: torch.device,
    amp: bool,
    window: Sequence[int] | None,
    divisor: int,
    handlers: Sequence[object],
) -> SupervisedEvaluator:
    """Return the evaluator; its postprocessing takes each prediction to the case's own grid.

    Each volume passes the network as where masks are made, in windows where `window` says so, but
    once, without the mirrorings.

    What memory its volumes leave behind, of other sizes than those of training, is given back.
    """
    inferer = VolumeInferer(window=window, divisor=divisor, content_only=True)
    evaluator = SupervisedEvaluator(
        device=device,
        val_data_loader=loader,
        network=network,
        prepare_batch=validation_batch,
        inferer=Forward(half_precision(device, amp=amp), inferer),  # type: ignore[arg-type]
        postprocessing=postprocessing,  # type: ignore[arg-type]
        val_handlers=list(handlers),
    )
    evaluator.add_event_handler(Events.COMPLETED, lambda _: give_back())
    return _quiet(evaluator)


def _quiet(engine: Any) -> Any:
    # The engines log each error before they raise it; the verb prints it once, readably.
    engine.logger.setLevel(logging.CRITICAL)
    return engine
