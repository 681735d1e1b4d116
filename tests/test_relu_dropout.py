"""ReLU and dropout in one, against the two of torch: bit for bit, and what is kept of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from networks import UNet3D
from networks.relu_dropout import relu_dropout
from pipeline.training.needs import predict_needs

SHAPE = (2, 3, 6, 5, 4)
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


def values_of(dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(SHAPE, generator=generator).to(dtype)
    values[0, 0, 0] = 0.0
    return values.contiguous(memory_format=layout)


def plain(values: Tensor, *, probability: float) -> Tensor:
    return F.dropout(F.relu(values), probability)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5])
def test_values_mask_and_gradient_are_those_of_the_two(
    probability: float, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    results = []
    for function in (relu_dropout, plain):
        given = values_of(dtype, layout).requires_grad_()
        torch.manual_seed(1)
        # Times one: `relu_dropout` may take the memory of what it is given, but not of a leaf.
        result = function(given * 1, probability=probability)
        after = torch.rand(1)
        (gradient,) = torch.autograd.grad(
            result, given, torch.linspace(-1, 1, 720).reshape(SHAPE).to(dtype)
        )
        results.append((result, gradient, after))
    (found, gradient, after), (expected, other, then) = results
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    # On a CPU, torch's factor 1 / (1 - probability) is rounded to the values' type in a mask.
    rounded = 2**-7 if dtype == torch.bfloat16 else 0
    torch.testing.assert_close(gradient, other, rtol=rounded, atol=0)
    assert torch.equal(after, then)  # as many random numbers were drawn
    assert found.is_contiguous(memory_format=layout)


def test_without_gradients_too() -> None:
    """As in the passes that uncertainty is told from."""
    given = values_of(torch.float32, torch.contiguous_format)
    torch.manual_seed(1)
    expected = plain(given, probability=0.5)
    torch.manual_seed(1)
    with torch.no_grad():
        found = relu_dropout(given, probability=0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_where_the_loss_is_no_number_the_gradient_is_none_either() -> None:
    given = torch.tensor([torch.nan, 1.0], requires_grad=True)
    result = relu_dropout(given * 1, probability=1e-9)
    result.sum().backward()
    assert result[0].isnan()
    assert given.grad is not None
    assert given.grad.tolist() == [1.0, 1.0]  # as torch's ReLU has it


def test_the_result_is_all_that_is_kept() -> None:
    kept: list[Tensor] = []
    given = values_of(torch.float32, torch.contiguous_format).requires_grad_() * 1
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        result = relu_dropout(given, probability=0.25)
    assert [tensor.data_ptr() for tensor in kept] == [result.data_ptr()]


def test_a_network_keeps_no_more_with_dropout_than_without() -> None:
    shape = (1, 4, 32, 32, 32)
    needed = [
        predict_needs(UNet3D(dropout=dropout), image_shape=shape).step_bytes
        for dropout in (0.0, 0.25)
    ]
    assert needed[0] == needed[1]
