"""Classes straight from the logits: those of the softmax, wherever rounding has to decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from pipeline.inference.classes import VECTOR, can_be_direct, most_probable_classes
from transforms import build_postprocessing, build_preprocessing

SIZE = (24, 16, 40)
FORMATS = (torch.contiguous_format, torch.channels_last_3d)


def naive(logits: torch.Tensor) -> torch.Tensor:
    """The way by the probabilities, on a grid from which nothing leads back."""
    chain = build_preprocessing(keys=("image",), normalization=None)
    lps = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    image = chain({"image": MetaTensor(torch.zeros(1, *logits.shape[1:]), affine=lps)})
    done = build_postprocessing(chain)({**image, "pred": logits})
    return done["classes"].as_tensor()[0]


def drawn(seed: int, *size: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def near_ties(num_classes: int, *, seed: int = 0) -> torch.Tensor:
    """Two to all classes at the top, apart by nothing or by what rounding can turn round."""
    levels = drawn(seed, num_classes, *SIZE).round() + drawn(seed + 1, 1, *SIZE, scale=20)
    return levels + drawn(seed + 2, num_classes, *SIZE, scale=1e-6).round(decimals=6)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kind", ["far apart", "near ties", "all close", "all the same"])
def test_they_are_those_of_the_probabilities(
    kind: str, num_classes: int, memory_format: torch.memory_format
) -> None:
    logits = {
        "far apart": drawn(0, num_classes, *SIZE),
        "near ties": near_ties(num_classes),
        "all close": drawn(0, num_classes, *SIZE, scale=1e-7),
        "all the same": torch.full((num_classes, *SIZE), 0.3),
    }[kind]
    stored = logits[None].contiguous(memory_format=memory_format)[0]
    assert torch.equal(most_probable_classes(stored), naive(logits))


def test_the_largest_logit_alone_would_not_be_the_same() -> None:
    """The background is what the others leave: without that, the tests above would test nothing."""
    logits = near_ties(4)
    assert not torch.equal(logits.argmax(dim=0), naive(logits).long())
    assert torch.equal(most_probable_classes(logits), naive(logits))


def test_of_equal_ones_the_first() -> None:
    logits = torch.zeros(4, 4, 4, 4)
    logits[2:] = 50.0
    assert (most_probable_classes(logits) == 2).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_what_is_no_usual_number(value: float) -> None:
    logits = drawn(0, 4, *SIZE)
    logits[:, 0, 0, :4] = value
    logits[2, 1] = value
    logits[0, 2] = value
    assert torch.equal(most_probable_classes(logits), naive(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    logits = drawn(0, 4, *SIZE).to(dtype)
    assert torch.equal(most_probable_classes(logits), naive(logits))


def test_slabs_of_a_volume_that_one_cannot_hold() -> None:
    logits = drawn(0, 4, 8, 512, 512)
    assert torch.equal(most_probable_classes(logits), naive(logits))


def test_grids_that_do_not_fill_the_vectors_take_the_long_way() -> None:
    assert can_be_direct(torch.zeros(4, 8, 8, VECTOR // 64))
    assert not can_be_direct(torch.zeros(4, 8, 8, 3 * VECTOR // 64)[:, :, 1:, :2])
    assert not can_be_direct(torch.zeros(4, 23, 17, 13))
