"""The network's weights as files, model.pt and model.safetensors, and rounded to half precision."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace

import safetensors.torch
import torch

from pipeline.errors import DataError, Problem
from pipeline.model.bundle_files import in_single_precision
from pipeline.model.trained import TrainedModel

Weights = dict[str, torch.Tensor]


def rounded(model: TrainedModel) -> TrainedModel:
    """Return the model whose weights are those of `model` as float16 holds them, in float32.

    Raises:
        DataError: A weight is too large for float16, or is no number; it is named.
    """
    weights = _each_once(model.weights, lambda tensor: in_single_precision(_halved(tensor)))
    for name, tensor in weights.items():
        lost = ~torch.isfinite(tensor)
        if lost.any():
            raise DataError.of(
                Problem(
                    case="model",
                    kind="half-precision",
                    file=model.name,
                    expected=f"weights up to {torch.finfo(torch.float16).max:g}, the largest "
                    "number of half precision",
                    found=f"{name} with {float(model.weights[name][lost][0]):g}",
                    remedy="Export it without --half-precision.",
                )
            )
    return replace(model, weights=weights)


def in_half_precision(weights: Mapping[str, torch.Tensor]) -> Weights:
    """Return the weights with float16 in the place of float32; all else, as counters, stays."""
    return _each_once(weights, _halved)


def weights_bytes(weights: Mapping[str, torch.Tensor]) -> bytes:
    """Return model.pt: the state dict alone, which `torch.load(weights_only=True)` reads.

    The order of the names and the layout of the memory, which differ between a run and a file,
    play no part. What a network has under two names is stored once.
    """
    buffer = io.BytesIO()
    torch.save(_each_once(weights, _own), buffer)
    return buffer.getvalue()


def safetensors_bytes(weights: Mapping[str, torch.Tensor]) -> bytes:
    """Return model.safetensors, with the names of model.pt.

    A network that has a module under two names (DynUNet) has its tensors twice here: the format
    knows no shared tensors, and so any reader gets a complete state dict.
    """
    own = {name: _own(tensor) for name, tensor in weights.items()}
    return safetensors.torch.save(own, metadata={"format": "pt"})


def _each_once(
    weights: Mapping[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]
) -> Weights:
    """Return the changed tensors by name, sorted; one that has two names keeps both."""
    changed: dict[tuple[object, ...], torch.Tensor] = {}
    result = {}
    for name, tensor in sorted(weights.items()):
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if place not in changed:
            changed[place] = change(tensor)
        result[name] = changed[place]
    return result


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.dtype == torch.float32 else tensor


def _own(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)
