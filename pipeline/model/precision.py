"""In which numbers a network computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer

from transforms.arrays import plain_tensor


def half_precision(device: torch.device, *, amp: bool) -> torch.dtype | None:
    """Return the type that convolutions are computed in, or None where that stays float32.

    On CUDA with `amp` it is bfloat16 where the device computes in it: its range is that of float32,
    so that gradients need no scaling. Else it is float16. On a CPU there is no mixed precision:
    those without instructions for bfloat16 are many times slower in it than in float32.
    """
    if not amp or device.type != "cuda":
        return None
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bfloat16 else torch.float16


class Forward:
    """Runs the network on a tensor without metadata, which slows every layer down.

    Args:
        precision: Of the convolutions, on CUDA; the logits are float32 at any rate, as is the loss
            that is made of them. None leaves everything as it is.
        inferer: How the network is applied; by itself if there is none.
    """

    def __init__(self, precision: torch.dtype | None, inferer: Inferer | None = None) -> None:
        self.precision = precision
        self.apply = inferer or SimpleInferer()

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., Any], *_: object
    ) -> torch.Tensor | list[torch.Tensor]:
        """Return the logits of `inputs`; in training a network may give several, in a list."""
        image = plain_tensor(inputs)
        if self.precision is None:
            return self.apply(image, network)
        with torch.autocast(image.device.type, dtype=self.precision):
            logits = self.apply(image, network)
        return [part.float() for part in logits] if isinstance(logits, list) else logits.float()
