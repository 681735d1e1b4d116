"""Slices as pictures: orientation from any affine, grey levels, classes, errors, colours."""

from __future__ import annotations

from itertools import combinations

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from pipeline.data.colours import CLASS_COLOURS, ERROR_COLOURS, LINE_COLOURS
from pipeline.data.slices import (
    Scan,
    class_layer,
    error_layer,
    focus_of,
    grey_levels,
    overlaid,
    section,
)

# Of a volume in RAS+: voxels of 1.5 x 2 x 3 mm, its origin somewhere else.
SHAPE = (4, 5, 6)
AFFINE = np.array([[1.5, 0, 0, -7], [0, 2, 0, 11], [0, 0, 3, 5], [0, 0, 0, 1.0]])
# A corner each, in RAS+: where it has to be in the pictures.
LEFT_FRONT_TOP, RIGHT_BACK_BOTTOM = (0, 4, 5), (3, 0, 0)
CODES = ("RAS", "LPS", "LPI", "ASL", "PIR", "SRA")


def oriented(volume: np.ndarray, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume (X, Y, Z) in RAS+ as a file of that orientation stores it."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    turned = nib.orientations.apply_orientation(volume, turn)
    return turned, AFFINE @ inv_ornt_aff(turn, volume.shape)


def make_scan(codes: str = "RAS", *, rotation: np.ndarray | None = None) -> Scan:
    image = np.full(SHAPE, 10.0)
    image[LEFT_FRONT_TOP] = 20
    classes = np.zeros(SHAPE, np.uint8)
    classes[LEFT_FRONT_TOP], classes[RIGHT_BACK_BOTTOM] = 1, 2
    image, affine = oriented(image, codes)
    mask, _ = oriented(classes, codes)
    if rotation is not None:
        affine = rotation @ affine
    return Scan.of(image, affine=affine, prediction=mask, truth=mask)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize(
    ("plane", "index_of_1", "place_of_1", "place_of_2"),
    [
        # The left on the right, the front at the top.
        ("axial", 0, (0, 3), (4, 0)),
        # The left on the right, the head's top at the top.
        ("coronal", 0, (0, 3), (5, 0)),
        # The front on the left, the head's top at the top.
        ("sagittal", 3, (0, 0), (5, 4)),
    ],
)
def test_radiologists_orientation_from_any_affine(
    codes: str,
    plane: str,
    index_of_1: int,
    place_of_1: tuple[int, int],
    place_of_2: tuple[int, int],
) -> None:
    scan = make_scan(codes)
    last = {"axial": 5, "coronal": 4, "sagittal": 3}[plane]
    for volume in (scan.prediction, scan.truth):
        assert volume is not None
        assert np.argwhere(section(volume, plane, index_of_1) == 1).tolist() == [[*place_of_1]]
        other = last - index_of_1
        assert np.argwhere(section(volume, plane, other) == 2).tolist() == [[*place_of_2]]
    assert section(scan.grey, plane, index_of_1)[place_of_1] == 255


@pytest.mark.parametrize("codes", CODES)
def test_the_affine_still_leads_to_the_same_millimetres(codes: str) -> None:
    scan = make_scan(codes)
    place = np.argwhere(scan.prediction == 1)[0]
    assert np.allclose(apply_affine(scan.affine, place), apply_affine(AFFINE, LEFT_FRONT_TOP))


def test_oblique_grids_are_turned_to_the_nearest_axes() -> None:
    angle = np.deg2rad(25)
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    scan, straight = make_scan("PIR", rotation=rotation), make_scan("PIR")
    assert np.array_equal(scan.prediction, straight.prediction)
    assert scan.pixel_mm("axial") == pytest.approx(straight.pixel_mm("axial"))
    assert np.allclose(scan.affine, rotation @ straight.affine)


def test_pixels_have_the_size_of_the_voxels() -> None:
    scan = make_scan("SRA")
    sizes = {plane: scan.pixel_mm(plane) for plane in ("axial", "coronal", "sagittal")}
    assert sizes == {
        "axial": pytest.approx((2, 1.5)),
        "coronal": pytest.approx((3, 1.5)),
        "sagittal": pytest.approx((3, 2)),
    }
    assert scan.size_mm("coronal") == pytest.approx((18, 6))


def test_a_scan_is_cut_to_what_can_be_seen_with_a_voxel_around_it() -> None:
    image, truth = np.zeros((20, 20, 20)), np.zeros((20, 20, 20), np.uint8)
    image[5:9, 6:10, 0] = 1
    truth[12, 7, 3] = 1  # outside the brain, but not to be hidden
    scan = Scan.of(image, affine=np.eye(4), prediction=np.zeros_like(truth), truth=truth)
    assert scan.grey.shape == (10, 6, 5)
    place = np.argwhere(scan.tumour)[0]
    assert apply_affine(scan.affine, place).tolist() == [12, 7, 3]


def test_a_scan_without_anything_to_see_is_whole() -> None:
    image = np.full((3, 4, 5), np.nan)
    scan = Scan.of(image, affine=np.eye(4), prediction=np.zeros(image.shape, np.uint8))
    assert scan.grey.shape == image.shape
    assert not scan.grey.any()


@pytest.mark.parametrize(
    ("shapes", "affine", "message"),
    [
        ([(2, 3, 4), (2, 3, 5)], np.eye(4), "of one shape"),
        ([(2, 3), (2, 3)], np.eye(4), "must be volumes"),
        ([(2, 0, 4), (2, 0, 4)], np.eye(4), "must be volumes"),
        ([(2, 3, 4), (2, 3, 4)], np.diag([1, 0, 1, 1.0]), "invertible"),
    ],
    ids=["shapes differ", "no volume", "no voxel", "flat affine"],
)
def test_what_cannot_be_drawn_is_refused(
    shapes: list[tuple[int, ...]], affine: np.ndarray, message: str
) -> None:
    image, prediction = np.ones(shapes[0]), np.zeros(shapes[1], np.uint8)
    with pytest.raises(ValueError, match=message):
        Scan.of(image, affine=affine, prediction=prediction)


def test_grey_levels_are_spread_over_the_brain_alone() -> None:
    # Nine of ten voxels are air: were they counted, the brain would be white.
    image = np.zeros(10_000, np.float32)
    image[:1000] = np.linspace(100, 200, 1000)
    grey = grey_levels(image)
    assert not grey[1000:].any()
    assert grey[500] == pytest.approx(127, abs=2)
    assert (grey[0], grey[999]) == (0, 255)


def test_zero_is_black_where_half_of_the_brain_is_below() -> None:
    image = np.array([0, 0, -2.0, -1, 1, 2])
    assert grey_levels(image)[:2].tolist() == [0, 0]
    assert np.all(np.diff(grey_levels(image)[2:].astype(int)) > 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_what_is_not_finite_is_black_and_changes_nothing_else(bad: float) -> None:
    image = np.arange(1, 101, dtype=np.float64)
    expected = grey_levels(image)
    grey = grey_levels(np.append(image, bad))
    assert np.array_equal(grey[:-1], expected)
    assert grey[-1] == 0


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.zeros(4), [0, 0, 0, 0]),
        (np.full(4, 7), [0, 0, 0, 0]),
        (np.array([0, 7, 7, 7]), [0, 255, 255, 255]),
        (np.array([0, -30000, 30000], np.int16), [0, 0, 255]),
    ],
    ids=["zeros", "constant", "brain of one value", "whole numbers"],
)
def test_grey_levels_of_odd_images(image: np.ndarray, expected: list[int]) -> None:
    grey = grey_levels(image)
    assert grey.dtype == np.uint8
    assert grey.tolist() == expected


def test_classes_lie_over_grey_with_their_opacity() -> None:
    grey = np.array([[255, 100, 0]], np.uint8)
    layer = class_layer(np.array([[1, 0, 9]]), opacity=0.6)
    expected = [0.4 * 255 + 0.6 * CLASS_COLOURS[1], [100] * 3, 0.6 * CLASS_COLOURS[-1]]
    assert np.array_equal(overlaid(grey, layer)[0], np.rint(expected))


def test_errors_are_what_only_one_of_both_has() -> None:
    prediction, truth = np.array([0, 0, 1, 2, 3]), np.array([0, 3, 0, 2, 1])
    layer = error_layer(prediction, truth, opacity=1)
    nothing = [0, 0, 0, 0]
    missed, false = ([*ERROR_COLOURS[name], 255] for name in ("missed", "false"))
    assert layer.tolist() == [nothing, missed, false, nothing, nothing]


def test_the_largest_lesion_is_in_focus() -> None:
    tumour = np.zeros((12, 12, 12), bool)
    tumour[1:4, 5:9, 6:9] = True
    tumour[2, 5:9, 5:10] = True
    tumour[8, 0, :] = tumour[10, :, 11] = True  # together larger than it
    x, y, z = focus_of(tumour)
    assert x == 2
    assert y in range(5, 9)
    assert z in range(6, 9)


def test_without_tumour_the_middle_is_in_focus() -> None:
    assert focus_of(np.zeros((7, 1, 4), bool)) == (3, 0, 2)


# Machado et al., IEEE Trans. Vis. Comput. Graph. 15 (2009) 1291: what the blind to one pigment see.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_the_colour_blind_tell_errors_apart_and_from_classes(blindness: str) -> None:
    colours = [*ERROR_COLOURS.values(), *CLASS_COLOURS[1:4]]
    seen = [BLINDNESS[blindness] @ _linear(colour) for colour in colours]
    distances = [
        np.linalg.norm(_lab(one) - _lab(other))
        for one, other in combinations(seen, 2)
        if any(each is error for each in (one, other) for error in seen[:2])
    ]
    # 2.3 is what one just notices side by side; a legend is not side by side.
    assert min(distances) > 15


@pytest.mark.parametrize("colour", LINE_COLOURS, ids=str)
@pytest.mark.parametrize("ground", [(255, 255, 255), (20, 24, 27)], ids=["paper", "dark page"])
def test_lines_stand_out_from_light_and_dark(
    colour: tuple[int, int, int], ground: tuple[int, int, int]
) -> None:
    weights = np.array([0.2126, 0.7152, 0.0722])
    dark, light = sorted(float(weights @ _linear(each)) for each in (colour, ground))
    assert (light + 0.05) / (dark + 0.05) >= 3  # WCAG 2.2, 1.4.11


def _linear(colour: object) -> np.ndarray:
    share = np.asarray(colour) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    """Return CIE L*a*b*, D65."""
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    x, y, z = np.cbrt(to_xyz @ np.clip(linear, 0, 1) / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
