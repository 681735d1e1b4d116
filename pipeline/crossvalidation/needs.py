"""What a cross-validation is going to need, as far as a header and the network's size tell."""

from __future__ import annotations

from math import prod

from networks import build_network
from pipeline.crossvalidation.plan import Plan
from pipeline.data.nifti import read_header
from pipeline.errors import DataError, SettingsError
from pipeline.training.needs import COPIES_IN_CHECKPOINT, NUM_CHECKPOINTS, PARAMETER_BYTES

FLOAT_BYTES = 4


def needs_in_words(plan: Plan) -> str:
    """Return the disk that is needed; how long it takes, the first training says.

    Raises:
        SettingsError: The network cannot be built.
    """
    averaged = plan.settings.training.ema_decay is not None
    copies = NUM_CHECKPOINTS * (COPIES_IN_CHECKPOINT + averaged)
    copies += 1  # the weights alone in the ensemble
    checkpoints = len(plan.folds) * copies * PARAMETER_BYTES * _num_parameters(plan)
    told = f"Disk: about {checkpoints / 1e6:.0f} MB for checkpoints"
    num_voxels = _num_voxels(plan)
    if num_voxels and plan.probabilities:
        num_bytes = len(plan.all_cases) * num_voxels * len(plan.datalist.labels) * FLOAT_BYTES
        told += (
            f", at most {num_bytes / 1e6:.0f} MB for probabilities (before compression; "
            "--no-probabilities leaves them out)"
        )
    return f"{told}. The first training says how long it takes; the others take as long."


def _num_parameters(plan: Plan) -> int:
    network = plan.settings.network
    try:
        built = build_network(
            network.name,
            in_channels=len(plan.datalist.modalities),
            out_channels=len(plan.datalist.labels),
            **network.settings,
        )
    except ValueError as error:
        raise SettingsError(f"network: {error}") from error
    return sum(parameter.numel() for parameter in built.parameters())


def _num_voxels(plan: Plan) -> int:
    """Return the voxels of the first case; 0 where it is no NIfTI, and only reading would tell."""
    try:
        return prod(read_header(plan.all_cases[0].images[0], channels=True).shape[:3])
    except DataError:
        return 0
