"""What a training run is going to need, predicted without computing it: memory, disk, time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.speed import convolution_flop_per_second

# Backward costs two convolutions for each forward one.
PASSES_PER_STEP = 3
PARAMETER_BYTES = 4
# Adam's.
NUM_MOMENTS = 2
# Parameters, their gradients and the moments.
COPIES_IN_MEMORY = 2 + NUM_MOMENTS
# A checkpoint holds parameters and moments.
COPIES_IN_CHECKPOINT = 3
# best, last, the one before it, and one more while it is written.
NUM_CHECKPOINTS = 4


@dataclass(frozen=True)
class Needs:
    """Predicted needs of a run.

    Attributes:
        num_parameters: Of the network.
        step_flop: Floating-point operations of a training step.
        step_bytes: Memory of a training step: what the backward pass keeps, and the parameters.
            The peak is higher by the gradients in flight and by what the allocator cannot reuse:
            12 to 15 GB were seen at full size where this says 9.5.
        new_step_bytes: The part of it that is not there before the first step, gradients left out
            because they come as what was kept goes: whoever has less memory free cannot train.
        checkpoint_bytes: Of one checkpoint.
    """

    num_parameters: int
    step_flop: int
    step_bytes: int
    new_step_bytes: int
    checkpoint_bytes: int


def predict_needs(
    network: torch.nn.Module, *, image_shape: Sequence[int], averaged: bool = False
) -> Needs:
    """Return the needs of training on images (B, C, X, Y, Z), with or without `AveragedWeights`.

    A copy of `network` runs once on torch's meta device, where tensors have a shape and no content.
    """
    twin = copy.deepcopy(network).to("meta").train()
    image = torch.empty(tuple(image_shape), device="meta")
    kept: dict[int, torch.UntypedStorage] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        # Held on to, so that no later storage can take the address of an earlier one.
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    counter = FlopCounterMode(display=False)
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor), counter:
        outputs = twin(image)
        for logits in outputs if isinstance(outputs, list) else [outputs]:
            torch.log_softmax(logits, dim=1).sum()
    num_parameters = sum(parameter.numel() for parameter in twin.parameters())
    copy_bytes, added = num_parameters * PARAMETER_BYTES, int(averaged)
    owned = {parameter.untyped_storage()._cdata for parameter in twin.parameters()}
    kept_bytes = sum(storage.nbytes() for key, storage in kept.items() if key not in owned)
    return Needs(
        num_parameters=num_parameters,
        step_flop=PASSES_PER_STEP * counter.get_total_flops(),
        step_bytes=kept_bytes + (COPIES_IN_MEMORY + added) * copy_bytes,
        new_step_bytes=kept_bytes + (NUM_MOMENTS + added) * copy_bytes,
        checkpoint_bytes=(COPIES_IN_CHECKPOINT + added) * copy_bytes,
    )


def describe(needs: Needs, *, num_iterations: int, device: torch.device) -> str:
    """Return the prediction in words; its time is rough, the progress bar's will be better."""
    step_seconds = needs.step_flop / convolution_flop_per_second(device)
    total_minutes = num_iterations * step_seconds / 60
    return (
        f"Needs: {needs.num_parameters:,} parameters; {num_iterations} iterations of "
        f"{needs.step_flop / 1e9:,.0f} GFLOP and at least {needs.step_bytes / 1e9:.1f} GB of "
        f"memory each; {NUM_CHECKPOINTS * needs.checkpoint_bytes / 1e6:.0f} MB of disk for "
        f"checkpoints; roughly {total_minutes:.0f} min on this {device.type}, validation apart"
    )
