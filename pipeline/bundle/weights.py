"""The network's weights as files: model.pt and model.safetensors."""

from __future__ import annotations

import io
from collections.abc import Mapping

import safetensors.torch
import torch


def weights_bytes(weights: Mapping[str, torch.Tensor]) -> bytes:
    """Return model.pt: the state dict alone, which `torch.load(weights_only=True)` reads.

    The order of the names and the layout of the memory, which differ between a run and a file,
    play no part. What a network has under two names is stored once.
    """
    stored: dict[tuple[object, ...], torch.Tensor] = {}
    state = {}
    for name, tensor in sorted(weights.items()):
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        state[name] = stored.setdefault(place, _own(tensor))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def safetensors_bytes(weights: Mapping[str, torch.Tensor]) -> bytes:
    """Return model.safetensors, with the names of model.pt.

    A network that has a module under two names (DynUNet) has its tensors twice here: the format
    knows no shared tensors, and so any reader gets a complete state dict.
    """
    own = {name: _own(tensor) for name, tensor in weights.items()}
    return safetensors.torch.save(own, metadata={"format": "pt"})


def _own(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)
