"""The film of a case: frames, size, one palette, and where its views and lines are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.colours import CLASS_COLOURS
from pipeline.data.slices import Scan
from pipeline.reporting.animation import FRAME_MS, NUM_FRAMES, OPACITY, animation, palette

AFFINE = np.diag([-2.0, -2, -2, 1])  # to the left, to the back and down
SHAPE = (30, 40, 24)
CROSSHAIR = (240, 228, 66)


def make_scan(*, with_truth: bool = False, noise: bool = False) -> Scan:
    random = np.random.default_rng(0)
    image = random.random(SHAPE) if noise else np.full(SHAPE, 10.0)
    image[0, 0, 0] = 20
    prediction = np.zeros(SHAPE, np.uint8)
    prediction[20:26, 10:20, 8:16] = 1
    truth = np.roll(prediction, 2, axis=1) if with_truth else None
    return Scan.of(image, affine=AFFINE, prediction=prediction, truth=truth)


def frames_of(gif: bytes) -> list[np.ndarray]:
    image = Image.open(io.BytesIO(gif))
    frames = []
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        frames.append(np.asarray(image.convert("RGB")))
    return frames


def test_it_has_its_frames_and_repeats_itself() -> None:
    image = Image.open(io.BytesIO(animation(make_scan(noise=True))))
    assert image.info["loop"] == 0
    durations = []
    for number in range(image.n_frames):
        image.seek(number)
        durations.append(image.info["duration"])
    # Frames that are alike are one, and shown as long as both.
    assert sum(durations) == NUM_FRAMES * FRAME_MS
    assert len(durations) >= max(SHAPE)


def test_the_same_case_gives_the_same_bytes() -> None:
    assert animation(make_scan(noise=True)) == animation(make_scan(noise=True))


def test_one_palette_serves_all_frames() -> None:
    gif = animation(make_scan(with_truth=True, noise=True), num_frames=8)
    # After the header and the palette: ten bytes, the last of which are a frame's flags, after ','.
    assert gif.count(palette()[:100].tobytes()) == 1
    known = {tuple(colour) for colour in palette().tolist()}
    for frame in frames_of(gif):
        assert {tuple(colour) for colour in frame.reshape(-1, 3).tolist()} <= known


def test_the_palette_is_of_grey_levels_and_classes_laid_over_them() -> None:
    colours = palette()
    assert len(colours) <= 256
    assert colours[0].tolist() == [0, 0, 0]
    for colour in CLASS_COLOURS[1:]:
        for grey in (0, 255):
            expected = np.rint((1 - OPACITY) * grey + OPACITY * colour)
            assert (colours == expected).all(axis=1).any()


def test_it_is_made_smaller_until_it_fits() -> None:
    scan = make_scan(noise=True)
    whole = animation(scan, num_frames=6)
    small = animation(scan, num_frames=6, max_bytes=len(whole) // 3)
    assert len(small) <= len(whole) // 3
    assert frames_of(small)[0].shape < frames_of(whole)[0].shape


def test_what_cannot_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into 500 bytes"):
        animation(make_scan(), num_frames=6, max_bytes=500)


@pytest.mark.slow
def test_the_largest_usual_case_stays_below_its_limit() -> None:
    image = np.random.default_rng(0).random((240, 240, 155), np.float32) + 1
    mask = np.zeros(image.shape, np.uint8)
    mask[60:120, 80:150, 50:100] = 2
    gif = animation(Scan.of(image, affine=np.eye(4), prediction=mask))
    assert len(gif) <= 6_000_000  # noise, of which nothing can be packed


def test_lines_go_through_all_planes_from_end_to_end() -> None:
    frames = frames_of(animation(make_scan(), num_frames=5))
    height, width, _ = frames[0].shape
    crossing = [(frame == CROSSHAIR).all(axis=-1) for frame in frames]
    # The axial view is at the left: its lines are where the other two planes are.
    axial = [lines[:, : width * 30 // 100] for lines in crossing]
    columns = [int(lines.sum(axis=0).argmax()) for lines in axial]
    assert columns == sorted(columns)
    assert columns[0] < 8
    # The coronal view's horizontal line is where the axial plane is: it goes up.
    coronal = [lines[:, width // 3 : width // 2] for lines in crossing]
    rows = [int(lines.sum(axis=1).argmax()) for lines in coronal]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] > height // 2


def test_the_patients_left_is_on_the_right() -> None:
    frames = frames_of(animation(make_scan(), num_frames=3))
    middle = frames[1]
    blue = middle[..., 2].astype(int) - middle[..., 0] > 60
    axial = blue[:, : middle.shape[1] * 30 // 100]
    columns = np.flatnonzero(axial.any(axis=0))
    # Voxels 20 to 25 of 30, counted from the right: 0.67 to 0.87 of the view's width.
    assert columns.min() / axial.shape[1] == pytest.approx(20 / 30, abs=0.05)
    assert columns.max() / axial.shape[1] == pytest.approx(26 / 30, abs=0.05)


def test_the_truth_is_outlined() -> None:
    without, with_truth = (
        sum(int((frame == 255).all(axis=-1).sum()) for frame in frames_of(gif))
        for gif in (animation(make_scan(with_truth=each), num_frames=5) for each in (False, True))
    )
    assert with_truth > without + 50


@pytest.mark.parametrize("shape", [(1, 1, 1), (30, 40, 1), (1, 1, 300), (300, 1, 1)], ids=str)
def test_flat_volumes_are_drawn_too(shape: tuple[int, int, int]) -> None:
    image = np.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    scan = Scan.of(image, affine=AFFINE, prediction=np.ones(shape, np.uint8))
    height, width, _ = frames_of(animation(scan))[0].shape
    assert height <= 360
    assert width <= 648
