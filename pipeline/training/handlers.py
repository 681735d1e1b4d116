"""Handlers of the trainer: position and seeds, gradients, the loss, the stop, the progress bar."""

from __future__ import annotations

import math

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from pipeline.data.loaders import EpochSampler
from pipeline.errors import NumericalError
from pipeline.signals import StopRequest
from pipeline.training.averaging import AveragedWeights
from pipeline.training.progress import Progress


class Position:
    """Makes data and dropout of every iteration a function of (seed, iteration) alone."""

    def __init__(self, sampler: EpochSampler, *, seed: int, batch_size: int) -> None:
        self.sampler = sampler
        self.seed = seed
        self.batch_size = batch_size

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self._seed_dropout)

    def _start_epoch(self, engine: Engine) -> None:
        # Above 0 only in the epoch in which a run was interrupted.
        num_done = engine.state.iteration - (engine.state.epoch - 1) * engine.state.epoch_length
        self.sampler.start(epoch=engine.state.epoch, num_done=num_done * self.batch_size)

    def _seed_dropout(self, engine: Engine) -> None:
        state = np.random.SeedSequence((self.seed, engine.state.iteration)).generate_state(1)
        torch.manual_seed(int(state[0]))


class LossWatch:
    """Adds up the losses of the epoch, and ends the run before a NaN reaches the weights.

    It also keeps the rate that an iteration is made with: after it, the next one's is set.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def attach(self, engine: SupervisedTrainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._keep_rate)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._check)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)

    def _keep_rate(self, engine: SupervisedTrainer) -> None:
        self.progress.learning_rate = engine.optimizer.param_groups[0]["lr"]

    def _check(self, engine: Engine) -> None:
        loss = engine.state.output["loss"].item()
        if not math.isfinite(loss):
            raise NumericalError(_unusable(engine, f"the loss is {loss}"))

    def _add(self, engine: Engine) -> None:
        self.progress.iteration = engine.state.iteration
        self.progress.epoch_loss_sum += engine.state.output["loss"].item()


class OptimiserStep:
    """Checks and clips the gradients before each step; moves rate and averaged weights after it.

    A loss may be finite and its gradient not: one such step, and all weights are NaN. Under mixed
    precision the scaler skips it and lowers its scale, so that there it is no error.
    """

    def __init__(
        self,
        scheduler: LRScheduler,
        *,
        gradient_clip: float | None,
        averaged: AveragedWeights | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.gradient_clip = gradient_clip
        self.averaged = averaged

    def attach(self, engine: SupervisedTrainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._check_and_clip)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self._move_rate)

    def _check_and_clip(self, engine: SupervisedTrainer) -> None:
        if not steps_now(engine):
            return
        if engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        parameters = list(engine.network.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if engine.scaler is None and not math.isfinite(norm):
            raise NumericalError(_unusable(engine, f"the norm of the gradients is {float(norm)}"))
        if self.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.gradient_clip, norm)

    def _move_rate(self, engine: SupervisedTrainer) -> None:
        if not steps_now(engine):
            return
        self.scheduler.step()
        if self.averaged is not None:
            self.averaged.follow(engine.network, num_steps=self.scheduler.last_epoch)


def steps_now(engine: SupervisedTrainer) -> bool:
    """Whether the current iteration ends with an optimiser step: MONAI's rule of accumulation."""
    position = (engine.state.iteration - 1) % engine.state.epoch_length + 1
    return position % engine.accumulation_steps == 0 or position == engine.state.epoch_length


def _unusable(engine: Engine, what: str) -> str:
    return (
        f"iteration {engine.state.iteration}: {what} for the case(s) "
        f"{', '.join(engine.state.batch['case'])}. The checkpoints hold the state before it. "
        "Look at these cases, or lower training.learning_rate."
    )


class StopWatch:
    """Ends an engine between two iterations after a signal has asked for it.

    Also between two epochs, for a signal that comes during the validation at an epoch's end.
    """

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def attach(self, engine: Engine) -> None:
        """Register with the trainer or the evaluator."""
        for event in (Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED):
            engine.add_event_handler(event, self._terminate_if_asked)

    def _terminate_if_asked(self, engine: Engine) -> None:
        if self.stop.requested:
            engine.terminate()


class ProgressBar:
    """A bar over all iterations of the run, with the loss and the time left."""

    def __init__(self, *, num_iterations: int, first_iteration: int) -> None:
        self.bar = tqdm(
            total=num_iterations,
            initial=first_iteration,
            desc="Training",
            unit="it",
            dynamic_ncols=True,
            smoothing=0.05,
        )

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)

    def _advance(self, engine: Engine) -> None:
        self.bar.set_postfix(
            epoch=f"{engine.state.epoch}/{engine.state.max_epochs}",
            loss=f"{engine.state.output['loss'].item():.4f}",
            refresh=False,
        )
        self.bar.update()

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        self.bar.close()
