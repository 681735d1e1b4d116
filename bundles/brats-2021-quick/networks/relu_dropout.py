"""ReLU and dropout in one, of which the backward pass keeps a third of what it keeps of the two."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def relu_dropout(values: Tensor, *, probability: float) -> Tensor:
    """Return ``dropout(relu(values))``, the same values, mask and gradient; `values` may be reused.

    Apart, ReLU keeps its result and dropout its input and its mask. Here the result tells it all:
    it is above 0 where `values` are and have not been dropped, and as convolutions keep their input
    too, it costs nothing.

    Args:
        values: any shape; no other operation may need them in its backward pass.
        probability: of dropping a value, in [0, 1); 0 where there is no dropout.
    """
    if probability == 0:
        return F.relu(values, inplace=True)
    if not values.requires_grad:
        return F.dropout(F.relu(values, inplace=True), probability)
    result: Tensor = _ReluDropout.apply(values, probability)
    return result


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float) -> Tensor:
        # In this order there is no tensor between; the mask is the same, and no factor negative.
        result = F.dropout(values, probability).relu_()
        ctx.save_for_backward(result)
        ctx.scale = 1 / (1 - probability)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (result,) = ctx.saved_tensors
        # The backward pass of ReLU; with the mask it holds for both, but for the factor.
        passed: Tensor = torch.ops.aten.threshold_backward(gradient, result, 0)
        return passed.mul_(ctx.scale), None
