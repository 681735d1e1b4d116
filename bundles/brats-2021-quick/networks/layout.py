"""The memory layout in which a network is fast and exact on a device."""

from __future__ import annotations

import torch
from torch import nn


def memory_format_of(network: object, device: torch.device) -> torch.memory_format:
    """Return the layout for the parameters and the input of `network` on `device`.

    On a CPU it is `torch.channels_last_3d`, for which oneDNN's convolutions are up to a quarter
    faster. Not with group normalisation, which torch 2.13 computes inexactly in that layout (an
    error of 1e-4 where the contiguous one has 1e-6, more with larger means), and not for what is
    no `nn.Module` in Python: TorchScript, or another runtime.
    """
    is_module = isinstance(network, nn.Module) and not isinstance(network, torch.jit.ScriptModule)
    if device.type != "cpu" or not is_module:
        return torch.contiguous_format
    if any(isinstance(layer, nn.GroupNorm) for layer in network.modules()):  # type: ignore[attr-defined]
        return torch.contiguous_format
    return torch.channels_last_3d
