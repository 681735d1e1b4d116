"""A case as a film that repeats itself: all three planes move through the head at once."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from pipeline.data.colours import CLASS_COLOURS
from pipeline.data.slices import (
    AXIS_OF,
    SIDES,
    Scan,
    class_layer,
    overlaid,
    picture_axes,
    section,
)

NUM_FRAMES = 60
FRAME_MS = 80
MAX_BYTES = 6_000_000
OPACITY = 0.6
# Pixels of a frame.
_WIDTH, _MAX_HEIGHT, _GAP = 640, 360, 4
_SMALLER = 0.85  # step by which a film that is too large is made smaller
# One palette for all frames, made for these pictures, so that no colour flickers: levels of grey,
# for each colour of a class the levels that shine through it, and the lines.
_NUM_GREYS, _NUM_TINTS = 100, 36
_NUM_COLOURS = len(CLASS_COLOURS) - 1
_CROSSHAIR = _NUM_GREYS + _NUM_COLOURS * _NUM_TINTS
_OUTLINE = _CROSSHAIR + 1
_CROSSHAIR_COLOUR, _OUTLINE_COLOUR = (240, 228, 66), (255, 255, 255)


def animation(scan: Scan, *, num_frames: int = NUM_FRAMES, max_bytes: int = MAX_BYTES) -> bytes:
    """Return a GIF of axial, coronal and sagittal slices from end to end, that repeats itself.

    The prediction is laid over the image, the truth outlined; lines show where the other planes
    are. Pictures that take more than `max_bytes` are made smaller until they do not.

    Args:
        scan: The case.
        num_frames: How many pictures; 1 or more.
        max_bytes: Of the file.
    """
    width = _WIDTH
    while len(film := _gif(_frames(scan, width=width, num_frames=num_frames))) > max_bytes:
        width = int(width * _SMALLER)
        if width < 3 * _GAP:
            raise ValueError(f"{num_frames} frames do not fit into {max_bytes} bytes")
    return film


def palette() -> np.ndarray:
    """Return the colours of a frame's values (N, 3), uint8."""
    greys = overlaid(_levels(_NUM_GREYS))
    tints = [
        overlaid(_levels(_NUM_TINTS), class_layer(np.full(_NUM_TINTS, index), opacity=OPACITY))
        for index in range(1, _NUM_COLOURS + 1)
    ]
    lines = np.array([_CROSSHAIR_COLOUR, _OUTLINE_COLOUR], np.uint8)
    return np.concatenate([greys, *tints, lines])


def _levels(count: int) -> np.ndarray:
    return np.rint(np.linspace(0, 255, count)).astype(np.uint8)


def _gif(frames: Iterator[np.ndarray]) -> bytes:
    colours = palette().tobytes()
    pictures = []
    for frame in frames:
        picture = Image.fromarray(frame)
        picture.putpalette(colours)
        pictures.append(picture)
    written = io.BytesIO()
    pictures[0].save(
        written,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=FRAME_MS,
        loop=0,
        palette=colours,  # so that it is written once, and not for each frame
    )
    return written.getvalue()


def _frames(scan: Scan, *, width: int, num_frames: int) -> Iterator[np.ndarray]:
    """Yield the frames (rows, columns), uint8, values of `palette`."""
    sizes_mm = [scan.size_mm(plane) for plane in AXIS_OF]
    total_mm = sum(width_mm for _, width_mm in sizes_mm)
    height_mm = max(height_mm for height_mm, _ in sizes_mm)
    room = width - 2 * _GAP
    pixels_per_mm = min(room / total_mm, _MAX_HEIGHT / _WIDTH * width / height_mm)
    sizes = [
        (max(1, round(rows_mm * pixels_per_mm)), max(1, round(columns_mm * pixels_per_mm)))
        for rows_mm, columns_mm in sizes_mm
    ]
    paths = [np.rint(np.linspace(0, size - 1, num_frames)).astype(int) for size in scan.grey.shape]
    paths[2] = paths[2][::-1]  # upwards
    for focus in zip(*(path.tolist() for path in paths), strict=True):
        views = [
            _view(scan, plane, focus=focus, size=size)
            for plane, size in zip(AXIS_OF, sizes, strict=True)
        ]
        yield _side_by_side(views)


def _view(
    scan: Scan, plane: str, *, focus: tuple[int, int, int], size: tuple[int, int]
) -> np.ndarray:
    """Return one plane through `focus`, enlarged or reduced to `size` (rows, columns)."""
    index = focus[AXIS_OF[plane]]
    grey = _resized(section(scan.grey, plane, index), size, Image.Resampling.BILINEAR)
    classes = _resized(section(scan.prediction, plane, index), size, Image.Resampling.NEAREST)
    colour = np.minimum(classes, _NUM_COLOURS).astype(np.int64)
    view = np.where(
        colour > 0,
        _NUM_GREYS + (colour - 1) * _NUM_TINTS + grey.astype(np.int64) * _NUM_TINTS // 256,
        grey.astype(np.int64) * _NUM_GREYS // 256,
    ).astype(np.uint8)
    if scan.truth is not None:
        true = _resized(section(scan.truth, plane, index), size, Image.Resampling.NEAREST) > 0
        view[true & ~binary_erosion(true)] = _OUTLINE
    shape = picture_axes(scan.grey.shape, plane)
    row, column = (
        int((place + 0.5) * pixels / voxels)
        for place, pixels, voxels in zip(picture_axes(focus, plane), size, shape, strict=True)
    )
    view[row, ::3] = view[::3, column] = _CROSSHAIR
    return _lettered(view, plane)


def _resized(picture: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    rows, columns = size
    image = Image.fromarray(np.ascontiguousarray(picture, dtype=np.uint8))
    return np.asarray(image.resize((columns, rows), how))


def _lettered(view: np.ndarray, plane: str) -> np.ndarray:
    """Return the view with the letters of its left and right side, where there is room for them."""
    rows, columns = view.shape
    if min(rows, columns) < 40:
        return view
    image = Image.fromarray(view)
    draw = ImageDraw.Draw(image)
    draw.fontmode = "1"  # values are no levels: none lies between two
    left, right = SIDES[plane][:2]
    draw.text((3, 2), left, fill=_OUTLINE)
    draw.text((columns - 3, 2), right, fill=_OUTLINE, anchor="ra")
    return np.asarray(image)


def _side_by_side(views: list[np.ndarray]) -> np.ndarray:
    """Return the views in one black frame, each in the middle of its height."""
    height = max(len(view) for view in views)
    width = sum(view.shape[1] for view in views) + _GAP * (len(views) - 1)
    frame = np.zeros((height, width), np.uint8)
    left = 0
    for view in views:
        rows, columns = view.shape
        top = (height - rows) // 2
        frame[top : top + rows, left : left + columns] = view
        left += columns + _GAP
    return frame
