"""Surface elements: codes and areas by hand, and the areas of all codes against the package's."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from surface_distance import lookup_tables

from pipeline.evaluation.surface_elements import element_areas_mm2, element_codes, is_element

# The last bits of sums of a few products in float64.
FLOAT64 = 1e-12


def test_codes_of_one_voxel() -> None:
    codes = element_codes(np.array([[[False], [True], [False]]]))
    assert codes.shape == (2, 4, 2)
    # The last bit where the voxel is the neighbourhood's far corner, the first where its near one.
    assert codes[:, 1].tolist() == [[128, 64], [8, 4]]
    assert codes[:, 2].tolist() == [[32, 16], [2, 1]]
    assert is_element(codes).sum() == 8


def test_no_element_inside_or_outside() -> None:
    assert not is_element(np.array([0, 255], dtype=np.uint8)).any()


# Of a neighbourhood of 6 x 1.5 x 2 mm: its half sides are 3, 0.75 and 1 mm.
CORNER_MM2 = math.hypot(0.75 * 1, 3 * 1, 3 * 0.75) / 2


@pytest.mark.parametrize(
    ("code", "area_mm2"),
    [
        pytest.param(0b00000001, CORNER_MM2, id="one corner: half of a parallelogram"),
        pytest.param(0b10000001, 2 * CORNER_MM2, id="two opposite corners"),
        pytest.param(0b00001001, 2 * CORNER_MM2, id="two corners across a face stay apart"),
        pytest.param(0b11110110, 2 * CORNER_MM2, id="and so they do outside"),
        pytest.param(0b00001111, 1.5 * 2, id="the half along x"),
        pytest.param(0b00110011, 6 * 2, id="the half along y"),
        pytest.param(0b01010101, 6 * 1.5, id="the half along z"),
        pytest.param(0b00000011, math.hypot(3, 0.75) * 2, id="an edge along z"),
        # Half the face of y and z, and a trapezium of three corners' size in the corner's plane.
        pytest.param(0b00000111, 1.5 * 2 / 2 + 3 * CORNER_MM2, id="three corners of a face"),
    ],
)
def test_area_by_hand(code: int, area_mm2: float) -> None:
    assert element_areas_mm2((6.0, 1.5, 2.0))[code] == pytest.approx(area_mm2, abs=FLOAT64)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.2, 0.9, 2.5), (5.0, 0.5, 0.7)])
def test_area_of_every_code_is_the_packages(spacing_mm: tuple[float, float, float]) -> None:
    corners = list(itertools.product((0, 1), repeat=3))
    theirs = lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    their_code = [
        sum(int(kernel[corner]) for bit, corner in enumerate(corners) if code >> bit & 1)
        for code in range(256)
    ]
    ours = element_areas_mm2(spacing_mm)
    np.testing.assert_allclose(ours, theirs[their_code], rtol=0, atol=FLOAT64)
