"""One training run in one folder: started, interrupted, resumed, finished."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from networks.layout import memory_format_of
from pipeline.data.files import replace_file
from pipeline.errors import RunStopped
from pipeline.model.checkpoint import BEST, FORMAT, save_checkpoint
from pipeline.model.generations import save_last
from pipeline.signals import StopRequest
from pipeline.training.averaging import AveragedWeights
from pipeline.training.data import TrainingData
from pipeline.training.engines import build_evaluator, build_trainer
from pipeline.training.handlers import (
    LossWatch,
    OptimiserStep,
    Position,
    ProgressBar,
    StopWatch,
    steps_now,
)
from pipeline.training.losses import build_loss
from pipeline.training.progress import Progress
from pipeline.training.schedule import build_optimisation
from pipeline.training.scores import CaseScores
from pipeline.training.tensorboard import Board
from transforms import build_postprocessing, build_preprocessing

LOG = logging.getLogger(__name__)
METRICS = "metrics.csv"


@dataclass(frozen=True)
class Model:
    """What a checkpoint must say to use the network again: plain JSON values.

    `network` are the arguments of `build_network`, `preprocessing` those of `build_preprocessing`,
    `header` is the data list's, `regions` the class indices per region that follow from it,
    `trained_on` the digests of the subjects that the weights come from, None where one is unknown.
    """

    network: dict[str, Any]
    preprocessing: dict[str, Any]
    header: dict[str, Any]
    regions: dict[str, tuple[int, ...]]
    trained_on: Sequence[str] | None


def seed_everything(seed: int, *, deterministic: bool) -> None:
    """Seed torch and choose its kernels; `deterministic` costs speed on CUDA."""
    torch.manual_seed(seed)
    # As use_deterministic_algorithms does, which imports torch's compiler first: most of a second.
    torch.set_deterministic_debug_mode("warn" if deterministic else "default")
    # Filling every new tensor with NaN finds reads of unset memory, and costs a pass each time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic


def write_metrics(progress: Progress, folder: Path) -> None:
    """Write `metrics.csv`: a row for each finished epoch."""
    replace_file(folder / METRICS, progress.as_csv().encode())


class TrainingRun:
    """Network, optimiser, engines and files of one run.

    Everything random follows from (seed, iteration) or (seed, epoch, index), and the checkpoint
    holds the rest: a run that was interrupted after any iteration and resumed gives the same bits.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: Model,
        network: torch.nn.Module,
        data: TrainingData,
        settings: Mapping[str, Any],
        fingerprint: str,
        device: torch.device,
        stop: StopRequest,
    ) -> None:
        self.folder = folder
        self.model = model
        # The weights decide for all layers.
        layout = memory_format_of(network, device)
        self.network = network.to(device, memory_format=layout)  # type: ignore[call-overload]
        decay = settings["training"]["ema_decay"]
        self.averaged = None if decay is None else AveragedWeights(self.network, decay=decay)
        if settings["training"]["torch_compile"]:
            self.network.compile()  # in place: weights keep their names
        self.data = data
        self.settings = settings
        self.fingerprint = fingerprint
        self.device = device
        self.stop = stop
        self.progress = Progress()
        training = settings["training"]
        self.num_iterations = training["max_epochs"] * len(data.training)
        self.optimizer, self.scheduler = build_optimisation(
            self.network, epoch_length=len(data.training), **training
        )
        self.scores = CaseScores(
            regions=model.regions,
            num_classes=len(model.header["labels"]),
            num_pictures=settings["validation"]["num_pictures"],
            deciding_regions=model.network.get("regions"),
        )
        self.trainer = self._build_trainer(**training)
        self.evaluator = self._build_evaluator(amp=training["amp"])

    def _build_trainer(
        self,
        *,
        max_epochs: int,
        loss: str,
        dice_smoothing: float,
        gradient_clip: float | None,
        batch_size: int,
        amp: bool,
        accumulation_steps: int,
        **_: object,
    ) -> SupervisedTrainer:
        trainer = build_trainer(
            self.network,
            loader=self.data.training,
            optimizer=self.optimizer,
            loss=build_loss(
                loss, dice_smoothing=dice_smoothing, regions=self.model.network.get("regions")
            ),
            device=self.device,
            max_epochs=max_epochs,
            amp=amp,
            accumulation_steps=accumulation_steps,
            handlers=[
                Position(self.data.sampler, seed=self.settings["seed"], batch_size=batch_size),
                OptimiserStep(self.scheduler, gradient_clip=gradient_clip, averaged=self.averaged),
            ],
        )
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self._finish_epoch())
        return trainer

    def _build_evaluator(self, *, amp: bool) -> SupervisedEvaluator | None:
        """Return what validates the weights that are kept; None where nothing validates."""
        if self.data.validation is None:
            return None
        preprocessing = build_preprocessing(**self.model.preprocessing)
        window = self.settings["inference"]["window"]
        return build_evaluator(
            self.kept_network,
            loader=self.data.validation,
            postprocessing=build_postprocessing(
                preprocessing, regions=self.model.network.get("regions")
            ),
            device=self.device,
            amp=amp,
            # "auto" is one pass where memory allows.
            window=None if window == "auto" else window,
            divisor=self.model.preprocessing["divisor"],
            handlers=[self.scores, StopWatch(self.stop)],
        )

    @property
    def kept_network(self) -> torch.nn.Module:
        """The network that is validated and kept: the averaged one, where there is one."""
        return self.network if self.averaged is None else self.averaged.network

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over weights, optimiser, schedule, counters and history of a checkpoint."""
        self.kept_network.load_state_dict(state["weights"])
        progress = state["progress"]
        if self.averaged is not None:
            self.network.load_state_dict(progress["trained_weights"])
        self.optimizer.load_state_dict(progress["optimizer"])
        self.scheduler.load_state_dict(progress["scheduler"])
        for parameter, gradient in zip(
            self.network.parameters(), progress["gradients"], strict=False
        ):
            parameter.grad = gradient.to(self.device)
        if progress["scaler"] is not None and self.trainer.scaler is not None:
            self.trainer.scaler.load_state_dict(progress["scaler"])
        self.progress = Progress.from_dict(progress["counters"])
        self.trainer.state.iteration = self.progress.iteration
        self.trainer.state.epoch = self.progress.iteration // len(self.data.training)
        # A crash between the two files leaves the table an epoch behind the checkpoint.
        write_metrics(self.progress, self.folder)

    def go(self) -> Progress:
        """Train until the last epoch, an early stop, or a signal.

        Raises:
            RunStopped: A signal asked for it; the state is saved.
            NumericalError: The loss is not a number; the checkpoints are as they were.
            ResourceError: A file could not be written; the old ones are intact.
        """
        board = Board(self.folder, first_iteration=self.progress.iteration)
        board.add_hyper_parameters(self.settings)
        bar = ProgressBar(
            num_iterations=self.num_iterations, first_iteration=self.progress.iteration
        )
        self.board = board
        # In this order: the loss is counted, then shown, then saved, then the stop is looked at.
        LossWatch(self.progress).attach(self.trainer)
        bar.attach(self.trainer)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        StopWatch(self.stop).attach(self.trainer)
        try:
            if self._epoch_is_open():
                self._finish_epoch()
            if not self._is_finished() and not self.stop.requested:
                self.trainer.run()
        finally:
            bar.close()
            board.close()
        if not self._is_finished():
            self.save_last()
            raise RunStopped(
                f"stopped by {self.stop.signal_name} after iteration {self.progress.iteration} of "
                f"{self.num_iterations}; the state is saved. Repeat the command with --resume."
            )
        return self.progress

    def _epoch_is_open(self) -> bool:
        """Whether all iterations of an epoch are done, but not yet its validation."""
        num_complete = self.progress.iteration // len(self.data.training)
        return num_complete > self.progress.num_epochs_done

    def _is_finished(self) -> bool:
        training = self.settings["training"]
        return self.progress.is_finished(
            max_epochs=training["max_epochs"], early_stopping=training["early_stopping"]
        )

    def _after_iteration(self, engine: Engine) -> None:
        self.board.add_iteration(
            engine.state.iteration,
            loss=engine.state.output["loss"].item(),
            learning_rate=self.progress.learning_rate,
        )
        every = self.settings["checkpoint"]["every_iterations"]
        if every is not None and engine.state.iteration % every == 0:
            self.save_last()

    def _finish_epoch(self) -> None:
        """Validate where it is due, keep the row, save; undone if a signal comes meanwhile."""
        epoch = self.progress.num_epochs_done + 1
        row: dict[str, float | int | None] = {
            "epoch": epoch,
            "iteration": self.progress.iteration,
            "learning_rate": self.progress.learning_rate,
            "training_loss": self.progress.epoch_loss_sum / len(self.data.training),
        }
        is_last = epoch == self.settings["training"]["max_epochs"]
        every = self.settings["validation"]["every_epochs"]
        if self.evaluator is not None and (is_last or epoch % every == 0):
            if not self._validate(self.evaluator, epoch):
                self.trainer.terminate()
                return
            row |= self.evaluator.state.metrics
        self.progress.add_epoch(row)
        self._keep_if_best(row)
        if self.evaluator is None and is_last:
            save_checkpoint(self.folder / BEST, self._content())
        self.save_last()
        write_metrics(self.progress, self.folder)
        if self._is_finished():
            self.trainer.terminate()

    def _validate(self, evaluator: SupervisedEvaluator, epoch: int) -> bool:
        """Run the evaluator; False if a signal ended it before the last case."""
        evaluator.run(epoch)
        if evaluator.state.iteration < evaluator.state.epoch_length:
            return False
        metrics = evaluator.state.metrics
        self.board.add_validation(
            self.progress.iteration, metrics=metrics, pictures=self.scores.pictures
        )
        dices = " ".join(
            f"{name.removeprefix('dice_')} {value:.3f}"
            for name, value in metrics.items()
            if name.startswith("dice_")
        )
        LOG.info("Epoch %d: validation Dice %s", epoch, dices)
        return True

    def _keep_if_best(self, row: Mapping[str, Any]) -> None:
        if "dice_mean" in row and self.progress.is_better(row["dice_mean"]):
            self.progress.best_score = row["dice_mean"]
            self.progress.best_epoch = row["epoch"]
            save_checkpoint(self.folder / BEST, self._content())

    def save_last(self) -> None:
        """Save the state as it is as `last`, which keeps the one before it."""
        save_last(self.folder, self._content())

    def _content(self) -> dict[str, Any]:
        scaler = self.trainer.scaler
        return {
            "format": FORMAT,
            "weights": self.kept_network.state_dict(),
            "network": self.model.network,
            "preprocessing": self.model.preprocessing,
            "header": self.model.header,
            "trained_on": self.model.trained_on,
            "settings": dict(self.settings),
            "versions": {name: version(name) for name in ("torch", "monai")},
            "progress": {
                # Of the last step, where those that are kept are an average.
                "trained_weights": self.averaged and self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "gradients": self._open_gradients(),
                "counters": self.progress.to_dict(),
                "fingerprint": self.fingerprint,
            },
        }

    def _open_gradients(self) -> list[torch.Tensor]:
        """Return the gradients that an unfinished accumulation holds; empty after a step."""
        if self.progress.iteration == 0 or steps_now(self.trainer):
            return []
        return [parameter.grad for parameter in self.network.parameters()]
