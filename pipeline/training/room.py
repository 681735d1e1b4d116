"""Whether a run has room, asked before anything is computed: its folder, memory, and disk."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.data.files import require_writable
from pipeline.data.lock import locked_folder
from pipeline.errors import ResourceError
from pipeline.inference.memory import free_bytes
from pipeline.model.checkpoint import BEST, LAST
from pipeline.model.generations import PREVIOUS
from pipeline.training.needs import NUM_CHECKPOINTS, Needs, describe, predict_needs
from pipeline.training.shortage import smaller_step

LOG = logging.getLogger(__name__)


def require_usable(folder: Path) -> None:
    """Refuse a run's folder that cannot be written to, or that another run uses at this moment.

    A folder that is not there yet is not made.

    Raises:
        ResourceError: One of them.
    """
    require_writable(folder)
    if folder.is_dir():
        with locked_folder(folder):
            pass


def require_memory(needs: Needs, *, settings: Mapping[str, Any], device: torch.device) -> None:
    """Refuse a training step that cannot fit even if only what it must keep is counted.

    Raises:
        ResourceError: With the bytes needed and free, and a smaller setting to try.
    """
    needed = needs.new_step_bytes
    if device.type == "cuda" and settings["training"]["amp"]:
        needed //= 2  # half precision halves, at best, what is kept
    free = free_bytes(device)
    if needed > free:
        raise ResourceError(
            f"not enough memory for a training step on this {device.type}: needed at least "
            f"{needed / 1e9:.2f} GB, free {free / 1e9:.2f} GB. {smaller_step(settings, device)}"
        )


def require_disk(needs: Needs, *, folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a disk that cannot hold the checkpoints, those that are there already taken off.

    Raises:
        ResourceError: With the bytes needed and free.
    """
    num_files = NUM_CHECKPOINTS
    if settings["checkpoint"]["every_iterations"] is None:
        # best, and a last for each epoch.
        num_files = min(num_files, 1 + settings["training"]["max_epochs"])
    paths = [folder / name for name in (BEST, LAST, PREVIOUS)]
    there = sum(path.stat().st_size for path in paths if path.is_file())
    needed = num_files * needs.checkpoint_bytes - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"{folder.name}: not enough disk for the checkpoints: needed at least "
            f"{needed / 1e6:.1f} MB more, free {free / 1e6:.1f} MB. Free some space or choose "
            "another --output-dir."
        )


class Foresight:
    """Says what a run is going to need once a batch's shape is known; refuses what cannot fit.

    `new_step_bytes` is the least memory that a step is going to take; 0 until it is known.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        folder: Path,
        settings: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        self.network = network
        self.folder = folder
        self.settings = settings
        self.device = device
        self.new_step_bytes = 0

    def __call__(self, batch_shape: tuple[int, ...], *, num_batches: int) -> int:
        """Return how much of the memory that cases are cached in a training step is going to take.

        Args:
            batch_shape: (B, C, X, Y, Z).
            num_batches: In an epoch.

        Raises:
            ResourceError: Memory or disk cannot suffice.
        """
        averaged = self.settings["training"]["ema_decay"] is not None
        needs = predict_needs(self.network, image_shape=batch_shape, averaged=averaged)
        num_iterations = self.settings["training"]["max_epochs"] * num_batches
        LOG.info(describe(needs, num_iterations=num_iterations, device=self.device))
        require_memory(needs, settings=self.settings, device=self.device)
        require_disk(needs, folder=self.folder, settings=self.settings)
        self.new_step_bytes = needs.new_step_bytes
        return needs.new_step_bytes if self.device.type == "cpu" else 0
