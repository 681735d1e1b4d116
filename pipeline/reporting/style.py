"""How figures look, whatever the settings of the machine; text and legends that no name breaks."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

DPI = 300  # what journals ask for
LINE_INCHES = 0.16  # height of a line of text
LONGEST_NAME = 32
INK, FAINT = "#1c2126", "#5b6670"

COMMON: dict[str, Any] = {
    "text.parse_math": False,  # a name may hold dollars
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same on every machine
    "legend.frameon": False,
}
PRINT: dict[str, Any] = {
    "font.size": 7.5,
    "text.color": INK,
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    # A view of a case: black around the head, no frame.
    "axes.facecolor": "black",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.spines.bottom": False,
    "image.cmap": "gray",
}
_PATCH_INCHES = 0.09


@dataclass(frozen=True)
class Entry:
    """What a legend explains: a colour, 0 to 1, or with None the outline of the truth."""

    text: str
    colour: tuple[float, ...] | None


@contextmanager
def drawing(settings: Mapping[str, Any]) -> Iterator[None]:
    """Draw with `settings` on matplotlib's defaults, not on those of the user's own file."""
    with warnings.catch_warnings(), style.context({**COMMON, **settings}, after_reset=True):
        # A character that the font lacks is drawn as a box: no reason to go without the figure.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(width_inches: float, height_inches: float, **options: Any) -> Figure:
    """Return an empty figure that nothing else knows of, as pyplot would of its own."""
    figure = Figure(figsize=(width_inches, height_inches), **options)
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """Return the figure as PNG; the same figure gives the same bytes."""
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def printable(text: str, *, longest: int = LONGEST_NAME) -> str:
    """Return a stranger's text as one short line: no control characters, shortened in its middle.

    Those that turn the direction of the text are control characters too.
    """
    line = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    if len(line) <= longest:
        return line
    half = (longest - 1) // 2
    return f"{line[: longest - 1 - half]}\N{HORIZONTAL ELLIPSIS}{line[-half:]}"


def label_of(name: str, *, longest: int = LONGEST_NAME) -> str:
    """Return the name of a class or region as it is shown.

    matplotlib leaves out of legends what begins with an underscore.
    """
    return printable(name.replace("_", " "), longest=longest)


def fitted(text: str, width: float, **font: Any) -> str:
    """Return a stranger's text as one line of at most `width` inches."""
    longest = min(len(text), 128)
    while text_inches(printable(text, longest=longest), **font) > width and longest > 3:
        longest -= 1
    return printable(text, longest=longest)


def text_inches(text: str, **font: Any) -> float:
    """Return how wide a line of text is drawn."""
    ruler = new_figure(1, 1)
    return ruler.text(0, 0, text, **font).get_window_extent().width / ruler.dpi


def write(figure: Figure, left: float, top: float, text: str, **options: Any) -> None:
    """Write text at a place in inches; its top is there unless `va` says otherwise."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, **{"va": "top", **options})


def legend_lines(entries: Sequence[Entry], width: float) -> list[list[tuple[float, Entry]]]:
    """Return the entries in lines of at most `width` inches, each with its left end in inches."""
    lines: list[list[tuple[float, Entry]]] = [[]]
    left = 0.0
    for entry in entries:
        length = LINE_INCHES + text_inches(entry.text)
        if lines[-1] and left + length > width:
            lines.append([])
            left = 0.0
        lines[-1].append((left, entry))
        left += length + LINE_INCHES
    return lines


def draw_legend(
    figure: Figure, lines: Sequence[Sequence[tuple[float, Entry]]], *, left: float, top: float
) -> None:
    """Draw what `legend_lines` gave; `left` and `top` in inches."""
    for number, line in enumerate(lines):
        middle = top + (number + 0.5) * LINE_INCHES
        for start, entry in line:
            _draw_patch(figure, left + start, middle, entry.colour)
            write(figure, left + start + LINE_INCHES, middle, entry.text, va="center_baseline")


def _draw_patch(
    figure: Figure, left: float, middle: float, colour: tuple[float, ...] | None
) -> None:
    figure.add_artist(_square(figure, left, middle, _PATCH_INCHES, color=colour or "black"))
    if colour is None:
        inner: dict[str, Any] = {"facecolor": "none", "edgecolor": "white", "linewidth": 0.6}
        left += _PATCH_INCHES / 4
        figure.add_artist(_square(figure, left, middle, _PATCH_INCHES / 2, **inner))


def _square(figure: Figure, left: float, middle: float, side: float, **options: Any) -> Rectangle:
    width, height = figure.get_size_inches()
    corner = (left / width, 1 - (middle + side / 2) / height)
    return Rectangle(corner, side / width, side / height, **{"linewidth": 0, **options})
