"""What a run shows in TensorBoard: scalars, hyper-parameters, validation pictures."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from pipeline.errors import NO_SPACE, ResourceError
from pipeline.evaluation.overlap import BACKGROUND

FOLDER_NAME = "tensorboard"
HOST = "run"


class Board:
    """Writes the run's event files; what an earlier start wrote after `first_iteration` is purged.

    That is also so where a run starts again from 0, because it ended before its first checkpoint.
    Every method raises ResourceError where anything before it could not be written.
    """

    def __init__(self, run_folder: Path, *, first_iteration: int) -> None:
        self.folder = run_folder / FOLDER_NAME
        with _naming_the_folder(), _nameless_host():
            self.writer = SummaryWriter(str(self.folder), purge_step=first_iteration + 1)

    def add_hyper_parameters(self, settings: Mapping[str, Any]) -> None:
        """Show the run's settings, flat, in the HPARAMS tab beside its mean region Dice."""
        with _naming_the_folder():
            for summary in hparams(_flat(settings), {"validation/dice_mean": 0.0}):
                # SummaryWriter.add_hparams would open a second run, in a folder named by the time.
                self.writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]

    def add_iteration(self, iteration: int, *, loss: float, learning_rate: float) -> None:
        """Add the scalars of one training iteration."""
        with _naming_the_folder():
            self.writer.add_scalar("training/loss", loss, iteration)
            self.writer.add_scalar("training/learning_rate", learning_rate, iteration)

    def add_validation(
        self, iteration: int, *, metrics: Mapping[str, float], pictures: Mapping[str, np.ndarray]
    ) -> None:
        """Add the mean scores and the pictures (H, W, 3) of one validation."""
        with _naming_the_folder():
            for name, value in metrics.items():
                group = "everything is background" if name.startswith(BACKGROUND) else "validation"
                self.writer.add_scalar(f"{group}/{name.removeprefix(BACKGROUND)}", value, iteration)
            for case, picture in pictures.items():
                self.writer.add_image(
                    f"image, truth, prediction/{case}", picture, iteration, dataformats="HWC"
                )
            self.writer.flush()

    def close(self) -> None:
        """Write what is buffered."""
        with _naming_the_folder():
            # Only a flush hands on what went wrong in the thread that writes.
            self.writer.flush()
            self.writer.close()


@contextmanager
def _naming_the_folder() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = "the disk is full" if error.errno in NO_SPACE else error.strerror
        raise ResourceError(
            f"{FOLDER_NAME}: the curves cannot be written: {why}. Free some space or choose "
            "another --output-dir."
        ) from error


@contextmanager
def _nameless_host() -> Iterator[None]:
    """Keep the machine's name out of the names of event files, for which there is no option."""
    name_of_host = socket.gethostname
    socket.gethostname = lambda: HOST
    try:
        yield
    finally:
        socket.gethostname = name_of_host


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | str | float]:
    flat: dict[str, bool | str | float] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, (bool, int, float, str))
            flat[prefix + name] = value if plain else str(value)
    return flat
