"""Figures of one case for print: slices through the tumour, and the three planes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from nibabel.affines import apply_affine

from pipeline.data.colours import ERROR_COLOURS, colours_of
from pipeline.data.slices import (
    AXIS_OF,
    SIDES,
    Scan,
    class_layer,
    error_layer,
    focus_of,
    picture_axes,
    section,
)
from pipeline.data.voxel_volume import voxel_volume_ml
from pipeline.reporting.style import (
    FAINT,
    LINE_INCHES,
    PRINT,
    Entry,
    draw_legend,
    drawing,
    fitted,
    label_of,
    legend_lines,
    new_figure,
    png_bytes,
    write,
)

WIDTH_INCHES = 7.2  # of a page with two columns
NUM_SLICES = 6
_MIN_COLUMNS = 3  # that the panel has room for, so that its name and legend have some
OPACITY, ERROR_OPACITY = 0.6, 0.85
_EDGE, _GAP, _TITLE, _ROW_TITLE = 0.08, 0.05, 0.2, 0.2  # inches
# Around the views of the overview, in shares of the longest side: there the letters stand.
_MARGIN = 0.09
# No view is smaller than this share of the longest side: one of a single slice would be a thread.
_SMALLEST_SIDE = 0.6
_STROKE = [withStroke(linewidth=1.4, foreground="black")]
_LEFT_TO_RIGHT = "\N{LEFT-TO-RIGHT MARK}"
_LENGTHS_MM = [step * 10.0**power for power in range(-4, 5) for step in (1, 2, 5)]


def panel_figure(scan: Scan, *, name: str, class_names: Sequence[str]) -> bytes:
    """Return the article's figure as PNG: axial slices through the tumour, from below to above.

    Its rows are the prediction, the truth and the errors if there is a truth, and the image alone.
    The slices are evenly spaced over those with tumour, or over the head where none has.

    Args:
        scan: The case.
        name: Of the case; any text.
        class_names: Of the classes, background first; any text.
    """
    layers = _layers(scan)
    entries = [Entry(label_of(text), _rgb(index)) for index, text in _classes(class_names)]
    if scan.truth is not None:
        entries += [Entry(text, _unit(colour)) for text, colour in ERROR_COLOURS.items()]
    height_mm, width_mm = scan.size_mm("axial")
    left, top = _EDGE + _ROW_TITLE, _EDGE + _TITLE + LINE_INCHES
    width = (WIDTH_INCHES - left - _EDGE + _GAP) / NUM_SLICES - _GAP
    height = width * min(max(height_mm / width_mm, 1 / 2), 2)
    bottom = top + len(layers) * (height + _GAP)
    indices = _evenly_spaced(scan)
    room = max(len(indices), _MIN_COLUMNS) * (width + _GAP) - _GAP
    with drawing(PRINT):
        lines = legend_lines(entries, room)
        figure = new_figure(left + room + _EDGE, bottom + LINE_INCHES * (len(lines) + 0.4) + _EDGE)
        _write_name(figure, name, left=left)
        for column, index in enumerate(indices):
            x = left + column * (width + _GAP)
            place = _place_of(scan, "axial", index)
            write(figure, x + width / 2, top - LINE_INCHES, place, ha="center", color=FAINT)
            for row, layer_of in enumerate(layers.values()):
                axes = _add_view(figure, x, top + row * (height + _GAP), width, height)
                _draw(axes, scan, "axial", index=index, layer=layer_of(index))
                _show_all(axes, scan.size_mm("axial"), width / height)
        for row, title in enumerate(layers):
            middle = top + row * (height + _GAP) + height / 2
            write(figure, _EDGE, middle, title, rotation=90, va="center")
        draw_legend(figure, lines, left=left, top=bottom + LINE_INCHES * 0.4)
        return png_bytes(figure)


def overview_figure(scan: Scan, *, name: str, class_names: Sequence[str]) -> bytes:
    """Return the three planes through the largest tumour section as PNG.

    The prediction is laid over the image, the truth outlined; the legend holds the volumes.

    Args:
        scan: The case.
        name: Of the case; any text.
        class_names: Of the classes, background first; any text.
    """
    focus = focus_of(scan.tumour)
    widths_mm, height_mm = _shown_mm(scan)
    inches_per_mm = (WIDTH_INCHES - 2 * _EDGE - 2 * _GAP) / sum(widths_mm)
    height, top = height_mm * inches_per_mm, _EDGE + _TITLE + LINE_INCHES
    with drawing(PRINT):
        entries = _volume_entries(scan, class_names)
        lines = legend_lines(entries, WIDTH_INCHES - 2 * _EDGE)
        figure = new_figure(WIDTH_INCHES, top + height + LINE_INCHES * (len(lines) + 0.6) + _EDGE)
        _write_name(figure, name, left=_EDGE)
        left = _EDGE
        for plane, width_mm in zip(AXIS_OF, widths_mm, strict=True):
            width = width_mm * inches_per_mm
            text = f"{plane}, {_place_of(scan, plane, focus[AXIS_OF[plane]])}"
            write(figure, left + width / 2, top - LINE_INCHES, text, ha="center", color=FAINT)
            axes = _add_view(figure, left, top, width, height)
            _draw_plane(axes, scan, plane, focus=focus)
            _set_limits(axes, scan.size_mm(plane), (height_mm, width_mm))
            if left == _EDGE:
                _draw_scale_bar(axes, width_mm)
            left += width + _GAP
        draw_legend(figure, lines, left=_EDGE, top=top + height + LINE_INCHES * 0.6)
        return png_bytes(figure)


def _layers(scan: Scan) -> dict[str, Callable[[int], np.ndarray]]:
    """Return for each row of the panel what gives the colours of an axial slice."""

    def classes_of(mask: np.ndarray) -> Callable[[int], np.ndarray]:
        return lambda index: class_layer(section(mask, "axial", index), opacity=OPACITY)

    title = "prediction" if scan.prediction.any() else "prediction (none)"
    layers = {title: classes_of(scan.prediction)}
    if (truth := scan.truth) is not None:
        layers["truth" if truth.any() else "truth (none)"] = classes_of(truth)
        layers["errors"] = lambda index: error_layer(
            section(scan.prediction, "axial", index),
            section(truth, "axial", index),
            opacity=ERROR_OPACITY,
        )
    return layers | {"image": classes_of(np.zeros_like(scan.prediction))}


def _evenly_spaced(scan: Scan) -> list[int]:
    """Return axial slices from below to above: of the tumour, or of the head if there is none."""
    tumour = np.flatnonzero(scan.tumour.any(axis=(0, 1)))
    filled = (tumour if tumour.size else np.arange(scan.grey.shape[2]))[::-1]
    count = min(NUM_SLICES, len(filled))
    # The middles of as many equal parts: the first and the last slice show next to nothing.
    return [int(filled[int((part + 0.5) * len(filled) / count)]) for part in range(count)]


def _shown_mm(scan: Scan) -> tuple[list[float], float]:
    """Return how wide the overview's views are, and how high all of them."""
    sizes_mm = [scan.size_mm(plane) for plane in AXIS_OF]
    longest_mm = max(max(size_mm) for size_mm in sizes_mm)
    smallest_mm, margin_mm = _SMALLEST_SIDE * longest_mm, 2 * _MARGIN * longest_mm
    height_mm = max(smallest_mm, *(height for height, _ in sizes_mm))
    return [max(width, smallest_mm) + margin_mm for _, width in sizes_mm], height_mm + margin_mm


def _add_view(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Return empty axes at a place in inches."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes(
        (left / across, 1 - (top + height) / down, width / across, height / down)
    )
    axes.set(xticks=[], yticks=[])
    return axes


def _draw(axes: Axes, scan: Scan, plane: str, *, index: int, layer: np.ndarray) -> None:
    """Draw a slice and a layer of colours; the axes are in mm from the slice's upper left."""
    height_mm, width_mm = scan.size_mm(plane)
    place: dict[str, Any] = {
        "extent": (0.0, width_mm, height_mm, 0.0),
        "aspect": "auto",
        "origin": "upper",
    }
    grey = section(scan.grey, plane, index)
    axes.imshow(grey, vmin=0, vmax=255, interpolation="bicubic", **place)
    # Voxels keep their edges: what a mask says is not smooth.
    axes.imshow(layer, interpolation="nearest", **place)


def _draw_plane(axes: Axes, scan: Scan, plane: str, *, focus: tuple[int, int, int]) -> None:
    """Draw one view of the overview."""
    index = focus[AXIS_OF[plane]]
    layer = class_layer(section(scan.prediction, plane, index), opacity=OPACITY)
    _draw(axes, scan, plane, index=index, layer=layer)
    row_mm, column_mm = scan.pixel_mm(plane)
    if scan.truth is not None:
        _draw_outlines(axes, section(scan.truth, plane, index), (row_mm, column_mm))
    row, column = picture_axes(focus, plane)
    _draw_crosshair(axes, (column + 0.5) * column_mm, (row + 0.5) * row_mm, scan.size_mm(plane))
    _draw_letters(axes, plane)


def _draw_outlines(axes: Axes, classes: np.ndarray, pixel_mm: tuple[float, float]) -> None:
    """Draw the border of each class in a slice."""
    padded = np.pad(classes, 1)  # so that lines close at the border
    rows, columns = (
        (np.arange(size) - 0.5) * step for size, step in zip(padded.shape, pixel_mm, strict=True)
    )
    for index in np.unique(classes[classes > 0]):
        inside = (padded == index).astype(np.float32)
        for colour, width in (("black", 1.1), ("white", 0.5)):
            axes.contour(columns, rows, inside, levels=[0.5], colors=colour, linewidths=width)


def _draw_crosshair(axes: Axes, x: float, y: float, size_mm: tuple[float, float]) -> None:
    """Draw lines from the slice's borders towards a point, which itself is left free."""
    height, width = size_mm
    gap = max(size_mm) / 16
    style: dict[str, Any] = {"color": "white", "linewidth": 0.5, "alpha": 0.6}
    for border, near in ((0, x - gap), (width, x + gap)):
        axes.plot([border, near if 0 < near < width else border], [y, y], **style)
    for border, near in ((0, y - gap), (height, y + gap)):
        axes.plot([x, x], [border, near if 0 < near < height else border], **style)


def _draw_letters(axes: Axes, plane: str) -> None:
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.985), (0.5, 0.015))
    alignments = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    for letter, place, (ha, va) in zip(SIDES[plane], places, alignments, strict=True):
        _write_in(axes, place, letter, ha=ha, va=va)


def _draw_scale_bar(axes: Axes, width_mm: float) -> None:
    length_mm = max(length for length in _LENGTHS_MM if length <= width_mm / 3)
    start, end, height = 0.04, 0.04 + length_mm / width_mm, 0.035
    line: dict[str, Any] = {"transform": axes.transAxes, "solid_capstyle": "butt"}
    axes.plot([start, end], [height, height], color="white", linewidth=1.5, **line)
    _write_in(axes, ((start + end) / 2, height + 0.015), f"{length_mm:g} mm", va="bottom")


def _write_in(
    axes: Axes, place: tuple[float, float], text: str, *, ha: str = "center", va: str
) -> None:
    """Write on a view, at a place in shares of its sides."""
    style: dict[str, Any] = {"color": "white", "path_effects": _STROKE, "transform": axes.transAxes}
    axes.text(*place, text, ha=ha, va=va, **style)


def _show_all(axes: Axes, size_mm: tuple[float, float], ratio: float) -> None:
    """Show all of a view at one scale in axes whose width is `ratio` of their height."""
    height_mm, width_mm = size_mm
    shown_mm = (max(height_mm, width_mm / ratio), max(width_mm, height_mm * ratio))
    _set_limits(axes, size_mm, shown_mm)


def _set_limits(axes: Axes, size_mm: tuple[float, float], shown_mm: tuple[float, float]) -> None:
    """Put a view into the middle of what is shown; both (height, width)."""
    (height, width), (shown_height, shown_width) = size_mm, shown_mm
    x, y = (width - shown_width) / 2, (height - shown_height) / 2
    axes.set(xlim=(x, x + shown_width), ylim=(y + shown_height, y))


def _write_name(figure: Figure, name: str, *, left: float) -> None:
    font: dict[str, Any] = {"weight": "bold", "size": 9}
    room = figure.get_size_inches()[0] - left - _EDGE
    write(figure, left, _EDGE, fitted(name, room, **font), **font)


def _place_of(scan: Scan, plane: str, index: int) -> str:
    """Return where a slice cuts the scanner's axis, at the slice's centre."""
    axis = AXIS_OF[plane]
    centre = (np.array(scan.grey.shape) - 1) / 2
    centre[axis] = index
    millimetres = round(float(apply_affine(scan.affine, centre)[axis]))
    return f"{'xyz'[axis]} = {millimetres} mm".replace("-", "\N{MINUS SIGN}")


def _classes(class_names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield index and name of each class but the background."""
    return (each for each in enumerate(class_names) if each[0])


def _volume_entries(scan: Scan, class_names: Sequence[str]) -> list[Entry]:
    entries = []
    for index, name in _classes(class_names):
        # Numbers stay behind the name, and in their order, also where it is written to the left.
        shown = f"{_LEFT_TO_RIGHT}{label_of(name)}{_LEFT_TO_RIGHT}"
        text = f"{shown}  {_volume(scan, scan.prediction, index)}"
        if scan.truth is not None:
            text = f"{text} (truth {_volume(scan, scan.truth, index)})"
        entries.append(Entry(text, _rgb(index)))
    return entries if scan.truth is None else [*entries, Entry("outline of the truth", None)]


def _volume(scan: Scan, classes: np.ndarray, index: int) -> str:
    volume_ml = np.count_nonzero(classes == index) * voxel_volume_ml(scan.affine)
    return f"{volume_ml:.1f} mL" if volume_ml >= 1 else f"{volume_ml:.2g} mL"


def _rgb(index: int) -> tuple[float, ...]:
    return _unit(colours_of(index).tolist())


def _unit(colour: Sequence[int]) -> tuple[float, ...]:
    return tuple(value / 255 for value in colour)
