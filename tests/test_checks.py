"""Modalities that do not belong together, and images that would empty a mask, are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import AFFINE
from monai.data import MetaTensor

from transforms import RequireFinited, RequireSameGridd
from transforms.cases import CASE_KEY
from transforms.checks import AFFINE_TOLERANCE_MM


def image(shape: tuple[int, ...] = (1, 3, 4, 5), affine: np.ndarray = AFFINE) -> MetaTensor:
    return MetaTensor(torch.ones(shape), affine=torch.from_numpy(affine))


def moved(by_mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += by_mm
    return affine


def check(**volumes: Any) -> dict[Any, Any]:
    return RequireSameGridd(list(volumes))({CASE_KEY: "A", **volumes})


def test_images_on_one_grid_pass_as_they_are() -> None:
    first, second = image(), image(affine=moved(AFFINE_TOLERANCE_MM / 2))
    passed = check(t1=first, t2=second)
    assert passed["t1"] is first
    assert passed["t2"] is second


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (image((1, 3, 4, 6)), r"A: 't2' must have the shape of 't1', \(3, 4, 5\); found \(3, 4, 6"),
        (
            image(affine=moved(2 * AFFINE_TOLERANCE_MM)),
            r"A: 't2' must lie where 't1' does.* 0\.002",
        ),
        (image(affine=AFFINE @ np.diag([-1, 1, 1, 1.0])), "must lie where"),
        (image(affine=np.full((4, 4), np.nan)), "differ by up to nan"),
        (image((4, 3, 4, 5)), r"'t2' must be one 3D image .*; found \(4, 3, 4, 5\)"),
        (image((1, 3, 4)), r"must be one 3D image .*; found \(1, 3, 4\)"),
        (torch.ones(1, 3, 4, 5), r"must be one 3D image with its affine"),
        (np.ones((1, 3, 4, 5)), "found ndarray"),
    ],
)
def test_another_grid_is_refused(other: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check(t1=image(), t2=other)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_number_are_refused(value: float) -> None:
    volume = image()
    volume[0, 1, 2, 3:] = value
    with pytest.raises(ValueError, match="A: 't1' must be finite; 2 voxels are NaN or infinite"):
        RequireFinited(["t1"])({CASE_KEY: "A", "t1": volume})


def test_finite_images_pass_as_they_are() -> None:
    volume = image()
    assert RequireFinited(["t1"])({"t1": volume})["t1"] is volume


def test_a_case_without_a_name_is_still_described() -> None:
    with pytest.raises(ValueError, match="the case: 't2' must have the shape"):
        RequireSameGridd(["t1", "t2"])({"t1": image(), "t2": image((1, 3, 4, 6))})
