"""Charts of all cases or epochs as SVG to stand in a page: in its colour of text, on its ground."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.data.colours import LINE_COLOURS
from pipeline.errors import DataError
from pipeline.reporting.style import drawing, label_of, new_figure, printable

WIDTH_INCHES = 5.8
# Stands for the page's own colour of text, which no SVG that matplotlib draws can name.
_INK = "#010203"
_GRID: dict[str, Any] = {"alpha": 0.18, "linewidth": 0.6}
_COLOURS = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in LINE_COLOURS]
_MARKERS = "osD^"
SVG: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pipeline.reporting",
    "savefig.transparent": True,
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.titlecolor": _INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
}

_EPOCH, _LOSS, _DICE, _MEAN = "epoch", "training_loss", "dice_", "dice_mean"
_LONGEST_LABEL = 18
# Each next dot lies this share of the strip further: no two near ones at the same height.
_GOLDEN = (math.sqrt(5) - 1) / 2


def training_curves(rows: Sequence[Mapping[str, str | None]], *, title: str) -> str:
    """Return the training loss, and below it the validation's Dice, over the epochs.

    Args:
        rows: Of a run's `metrics.csv`; cells are empty where an epoch was not validated.
        title: What is read aloud.

    Raises:
        DataError: A cell is no number.
    """
    names = list(dict.fromkeys(name for row in rows for name in row if name))
    regions = [name for name in names if name.startswith(_DICE) and name != _MEAN]
    epochs = _column(rows, _EPOCH)
    with drawing(SVG):
        figure = new_figure(WIDTH_INCHES, 4.4, layout="constrained")
        above, below = figure.subplots(2, sharex=True, height_ratios=(2, 3))
        _draw_curve(above, epochs, _column(rows, _LOSS), color=_INK)
        above.set(ylabel="training loss")
        for number, region in enumerate(regions):
            _draw_curve(
                below,
                epochs,
                _column(rows, region),
                label=label_of(region.removeprefix(_DICE), longest=_LONGEST_LABEL),
                color=_colour(number),
                marker=_MARKERS[number % len(_MARKERS)],
            )
        if regions:
            _draw_curve(below, epochs, _column(rows, _MEAN), label="mean", color=_INK, dashed=True)
        below.set(ylabel="Dice in validation", xlabel="epoch", ylim=(0, 1))
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        _finish(figure, [above, below])
        return _svg(figure, title)


def distributions(
    scores: Mapping[str, Sequence[float | None]],
    *,
    label: str,
    title: str,
    limits: tuple[float, float] | None = None,
) -> str:
    """Return a strip for each region: each case a dot, the median and the middle half.

    Args:
        scores: Of each region, one a case; None and not a number are left out.
        label: What the scores are, with their unit.
        title: What is read aloud.
        limits: Of the scores, where they have some.
    """
    with drawing(SVG):
        figure = new_figure(WIDTH_INCHES, 0.75 + 0.6 * max(1, len(scores)), layout="constrained")
        axes = figure.add_subplot()
        ticks = []
        strips = {region: _known(values) for region, values in scores.items()}
        largest = max((values.max(initial=0) for values in strips.values()), default=0)
        for number, (region, known) in enumerate(strips.items()):
            ticks.append(f"{label_of(region, longest=_LONGEST_LABEL)}\nn = {len(known)}")
            if known.size:
                _draw_strip(
                    axes, -number, known, colour=_colour(number), digits=3 if largest <= 1 else 1
                )
        axes.set_yticks([-number for number in range(len(ticks))], labels=ticks)
        axes.set(ylim=(0.6 - max(1, len(ticks)), 0.6))
        axes.set_xlabel(f"{label}  (line: median, bar: middle half)")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        if limits is not None:
            span = limits[1] - limits[0]
            axes.set_xlim(limits[0] - 0.02 * span, limits[1] + 0.02 * span)
        _finish(figure, [axes])
        return _svg(figure, title)


def reliability(bins: Sequence[tuple[float, float, int]], *, title: str) -> str:
    """Return how often a network was right against how sure it was.

    Args:
        bins: The mean confidence of a bin's voxels, the share that was right, and their number.
        title: What is read aloud.
    """
    filled = np.array([each for each in bins if each[2] > 0], dtype=np.float64).reshape(-1, 3)
    confidence, right, num_voxels = filled.T
    with drawing(SVG):
        figure = new_figure(WIDTH_INCHES, 4.2, layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.6)
        colour = _colour(1)
        axes.plot(confidence, right, color=colour)
        # The area of a dot goes with the voxels that it stands for.
        areas = 10 + 140 * num_voxels / max(1, num_voxels.max(initial=0))
        axes.scatter(confidence, right, s=areas, color=colour, alpha=0.7, linewidth=0)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set(xlabel="confidence", ylabel="share of voxels that are right")
        _finish(figure, [axes])
        return _svg(figure, title)


def _draw_curve(
    axes: Axes,
    epochs: np.ndarray,
    values: np.ndarray,
    *,
    color: str,
    label: str = "",
    marker: str = "",
    dashed: bool = False,
) -> None:
    """Draw the epochs that have a value; with few of them, each is marked."""
    there = np.isfinite(epochs) & np.isfinite(values)
    num_points = np.count_nonzero(there)
    axes.plot(
        epochs[there],
        values[there],
        color=color,
        label=label,
        marker=(marker or "o") if num_points <= 40 else "",
        linestyle=(0, (4, 2)) if dashed else "solid",
    )


def _draw_strip(axes: Axes, middle: float, values: np.ndarray, *, colour: str, digits: int) -> None:
    """Draw the values of one region around a height; its lines lie 1 apart."""
    heights = middle + 0.32 * ((np.arange(len(values)) * _GOLDEN) % 1 - 0.5)
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    axes.plot(
        [low, high], [middle, middle], color=colour, linewidth=15, alpha=0.25, solid_capstyle="butt"
    )
    axes.plot(
        values, heights, linestyle="", marker="o", color=colour, alpha=0.75, markeredgewidth=0
    )
    axes.plot([median, median], [middle - 0.26, middle + 0.26], color=_INK, linewidth=2)
    axes.annotate(
        f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})",
        (1, middle + 0.3),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize="small",
    )


def _finish(figure: Figure, all_axes: Sequence[Axes]) -> None:
    """Add the grid, what is said of axes without anything in them, and the legend."""
    for axes in all_axes:
        axes.grid(axis="both", **_GRID)
        if not any(np.size(line.get_xdata()) for line in axes.lines):
            axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, ha="center", va="center")
            axes.tick_params(labelbottom=False, labelleft=False)
    handles, labels = all_axes[-1].get_legend_handles_labels()
    if labels:
        longest = max(map(len, labels))
        num_columns = min(len(labels), max(1, 64 // (longest + 8)))
        figure.legend(handles, labels, loc="outside lower center", ncols=num_columns)


def _svg(figure: Figure, title: str) -> str:
    """Return the figure as an element of a page: named, without a size, in the page's own text."""
    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(written, format="svg", metadata=nothing)
    head, body = written.getvalue().partition("<svg")[2].split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    name = html.escape(printable(title, longest=300))
    # A rule for * would hold for the page that the drawing stands in; names of groups would be
    # there twice in a page with two drawings; the page has a font of its own.
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r" ?font-family: [^;\"]*;?", "", body)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{view.group() if view else ""} role="img" aria-label="{name}" '
        f'style="stroke-linejoin: round; stroke-linecap: butt"><title>{name}</title>'
        f"{body.replace(_INK, 'currentColor')}"
    )


def _column(rows: Sequence[Mapping[str, str | None]], name: str) -> np.ndarray:
    """Return the numbers of a column, (N,); not a number where a cell is empty."""
    return np.array(
        [_number(row.get(name), name, row=number) for number, row in enumerate(rows, 1)]
    )


def _number(cell: str | None, name: str, *, row: int) -> float:
    try:
        return float(cell or "nan")
    except ValueError as error:
        raise DataError(
            f"metrics.csv, row {row}, {name}: expected a number or nothing; found {cell!r}. "
            "Restore the file, or resume the run, which writes it again."
        ) from error


def _known(values: Sequence[float | None]) -> np.ndarray:
    """Return the values that are finite numbers, (N,)."""
    numbers = np.array([math.nan if value is None else value for value in values], dtype=float)
    return numbers[np.isfinite(numbers)]


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]
