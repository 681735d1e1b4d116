"""The convolution that is quick for small volumes too, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import profile

from networks.convolve import HAS_ONEDNN, TORCH_LIMIT, SameConv3d, convolve

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
SMALL, AT_LIMIT, LARGE = (6, 7, 5), (64, 80, 3), (64, 81, 3)  # with 4 channels: 20,480 and more


def parts(
    size: tuple[int, ...], *, batch: int = 1, dtype: torch.dtype = torch.float32, edge: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, 4, *size), (3, 4, edge, edge, edge), (3,))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)  # type: ignore[return-value]


def kernels_of(volume: Tensor, weight: Tensor, bias: Tensor) -> set[str]:
    """Return which of torch's convolutions computed a forward and a backward pass."""
    weight = weight.clone().requires_grad_()
    with profile() as recorded:
        convolve(volume, weight, bias).sum().backward()
    return {event.name for event in recorded.events() if "conv" in event.name}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("edge", [1, 3, 5])
@pytest.mark.parametrize("size", [(1, 1, 1), SMALL, AT_LIMIT, LARGE])
def test_values_and_gradients_are_those_of_torch(
    size: tuple[int, ...], edge: int, layout: torch.memory_format
) -> None:
    volume, weight, bias = parts(size, edge=edge)
    given = [volume.contiguous(memory_format=layout), weight.contiguous(memory_format=layout), bias]
    exact = [each.double().requires_grad_() for each in given]
    given = [each.requires_grad_() for each in given]
    expected = F.conv3d(*exact, padding=edge // 2)
    found = convolve(*given)
    passed_back = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    # Sums of up to 46,656 products of order one, in float32.
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    for one, other in zip(
        torch.autograd.grad(found, given, passed_back),
        torch.autograd.grad(expected, exact, passed_back.double()),
        strict=True,
    ):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")
@pytest.mark.parametrize("size", [SMALL, AT_LIMIT, LARGE])
def test_volumes_of_every_size_are_convolved_by_onednn(size: tuple[int, ...]) -> None:
    kernels = kernels_of(*parts(size))
    assert "aten::mkldnn_convolution" in kernels
    assert not any("slow" in kernel for kernel in kernels)


@pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")
def test_torch_itself_would_not_ask_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this fails, torch has changed its mind, and `convolve` has nothing left to do."""
    monkeypatch.setattr("networks.convolve.HAS_ONEDNN", False)
    assert "aten::slow_conv3d" in kernels_of(*parts(AT_LIMIT))
    assert "aten::slow_conv3d" not in kernels_of(*parts(LARGE))
    assert 4 * AT_LIMIT[0] * AT_LIMIT[1] == TORCH_LIMIT


@pytest.mark.parametrize(
    ("batch", "dtype"), [(2, torch.float32), (1, torch.float64), (1, torch.bfloat16)]
)
def test_all_else_is_left_to_torch(batch: int, dtype: torch.dtype) -> None:
    volume, weight, bias = parts(SMALL, batch=batch, dtype=dtype)
    assert torch.equal(convolve(volume, weight, bias), F.conv3d(volume, weight, bias, padding=1))


def test_what_is_recorded_at_a_small_size_holds_for_a_large_one() -> None:
    layer = SameConv3d(4, 3, 3).eval()
    small, large = (parts(size)[0] for size in (SMALL, LARGE))
    traced = torch.jit.trace(layer, small)
    assert "mkldnn" not in str(traced.graph)
    assert torch.equal(traced(large), layer(large))


def test_the_random_numbers_and_the_names_of_the_weights_are_those_of_torch() -> None:
    torch.manual_seed(0)
    ours = SameConv3d(4, 3, 3).state_dict()
    torch.manual_seed(0)
    theirs = torch.nn.Conv3d(4, 3, 3, padding=1).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
