"""Building a stored network so that no more memory is taken than its weights take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from networks import build_network

# What the builders and MONAI's constructors raise on arguments that they do not expect.
BUILD_ERRORS = (
    *(ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError),
    *(AssertionError, ImportError),
)
# A layer takes some ten calls of torch to set up, and most layers have two weights.
CALLS_PER_WEIGHT = 100


class Sketching(TorchFunctionMode):
    """Makes layers without memory, on torch's meta device, and no more than weights can fill.

    Raises ValueError where a network asks for more layers: some thousand blocks in a setting would
    else keep the machine busy for hours.
    """

    def __init__(self, *, num_weights: int) -> None:
        super().__init__()
        self.calls_left = CALLS_PER_WEIGHT * (num_weights + 1)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call `func` with tensors on the meta device, and count it."""
        self.calls_left -= 1
        if self.calls_left < 0:
            raise ValueError("more layers than there are weights")
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"  # MONAI's SwinUNETR reads its values, a handful
        return func(*args, **kwargs)


def built_with_weights(
    network: Mapping[str, Any], weights: Mapping[str, torch.Tensor], *, divisor: int
) -> torch.nn.Module:
    """Return the network on the CPU with `weights`, which are compared with a sketch of it first.

    Raises:
        ValueError: The weights or `divisor`, to which images are padded, are not the network's.
        BUILD_ERRORS: No network can be built from these arguments.
    """
    # A sketch that is given up within an initialiser would leave gradients off for good: the end of
    # torch's own `no_grad` is a call that the sketch counts.
    gradients = torch.set_grad_enabled(torch.is_grad_enabled())
    with gradients, torch.device("meta"), Sketching(num_weights=len(weights)):
        sketch = build_network(**network)
    expected, found = (
        {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in state.items()}
        for state in (sketch.state_dict(), weights)
    )
    for key in (*expected, *found):
        if expected.get(key) != found.get(key):
            raise ValueError(f"{key}: {_shown(found.get(key))}, not {_shown(expected.get(key))}")
    if sketch.divisor != divisor:
        raise ValueError(f"images padded to multiples of {divisor}, not of {sketch.divisor}")
    built = build_network(**network)
    built.load_state_dict(dict(weights))
    return built


def _shown(fact: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "missing" if fact is None else f"{fact[1]} of the shape {fact[0]}"
