"""What a folder of masks is going to need, as the first case tells: memory, disk, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.inference.member import Member
from pipeline.inference.memory import free_bytes
from pipeline.inference.needs import SAFETY, meta_twin, predict_forward_bytes, times
from pipeline.model.speed import convolution_flop_per_second

NUM_MIRRORINGS = 8
FLOAT_BYTES = 4


def forecast(
    members: Sequence[Member],
    prepared: Sequence[Mapping[str, Any]],
    *,
    num_cases: int,
    num_voxels: int,
    settings: Mapping[str, Any],
) -> str:
    """Return in words what is going to be needed.

    Args:
        members: Of the ensemble.
        prepared: The first case on each member's grid.
        num_cases: All cases.
        num_voxels: Of the first case's own grid.
        settings: Of `InferenceSettings`.
    """
    images = [item["image"] for item in prepared]
    lines = [_pass_in_words(*pair) for pair in zip(members, images, strict=True)]
    num_passes = settings["uncertainty_samples"] + (NUM_MIRRORINGS if settings["flips"] else 1)
    flop = sum(_flop(*pair) for pair in zip(members, images, strict=True))
    seconds = num_passes * flop / convolution_flop_per_second(members[0].device)
    megabytes = _most_bytes(members[0], num_voxels, settings) / 1e6
    lines.append(
        f"{num_cases} cases of {num_passes * len(members)} passes, as large as the first: roughly "
        f"{num_cases * seconds / 60:.1f} min in the network, at most "
        f"{num_cases * megabytes:.0f} MB of disk before compression"
    )
    return "\n".join(lines)


def _pass_in_words(member: Member, image: torch.Tensor) -> str:
    window = member.window_for(image)
    size = image.shape[1:] if window is None else window
    forward = predict_forward_bytes(member.network, image_shape=(1, image.shape[0], *size))
    beside = member.bytes_beside(image)
    how = "in one pass" if window is None else f"in windows of {times(window)}"
    least, most = (forward + beside) / 1e9, (SAFETY * forward + beside) / 1e9
    return (
        f"{member.model.name}: {times(image.shape[1:])} voxels {how}, "
        f"{least:.1f} to {most:.1f} GB of memory of "
        f"{free_bytes(member.device) / 1e9:.1f} GB free"
    )


def _flop(member: Member, image: torch.Tensor) -> int:
    """Return the operations of one pass; those that windows do twice are not counted."""
    counter = FlopCounterMode(display=False)
    twin = meta_twin(member.network)
    with torch.no_grad(), counter:
        twin(torch.empty((1, *image.shape), device="meta"))
    return int(counter.get_total_flops())


def _most_bytes(member: Member, num_voxels: int, settings: Mapping[str, Any]) -> int:
    """Return the size of a case's files if nothing could be compressed."""
    header = member.model.header
    num_maps = len(header["labels"]) if settings["probabilities"] else 0
    if settings["uncertainty_samples"]:
        num_maps += 2 * (1 + len(header["regions"]))
    return num_voxels * (1 + FLOAT_BYTES * num_maps)
