"""Costs against the number of cases, as a drawing that stays sharp and can be read aloud."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure import Run
from pipeline.data.files import replace_file

# Okabe and Ito's, which colour-blind people tell apart, and a shape for each.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"))
SIZE_INCHES = (6.4, 4.0)


def draw_costs(costs: Mapping[str, Mapping[int, Sequence[Run]]], path: Path, *, title: str) -> None:
    """Draw seconds per case against the number of cases into an SVG file.

    Args:
        costs: For each line its name, and for each number of cases its runs; the point is their
            median, the bar goes from the least to the most.
        path: Of the file.
        title: Is also what the drawing is called where it is not seen.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Text as text, and no random names, so that the same costs make the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        for (name, runs), (colour, marker) in zip(costs.items(), STYLES, strict=False):
            values = {size: [run.seconds for run in of_size] for size, of_size in runs.items()}
            middle = [statistics.median(each) for each in values.values()]
            below = [m - min(each) for m, each in zip(middle, values.values(), strict=True)]
            above = [max(each) - m for m, each in zip(middle, values.values(), strict=True)]
            axes.errorbar(
                list(values),
                middle,
                yerr=(below, above),
                label=name,
                color=colour,
                marker=marker,
                capsize=4,
            )
        sizes = sorted({size for runs in costs.values() for size in runs})
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, labels=map(str, sizes))
        axes.set_ylim(bottom=0)
        axes.set(title=title, xlabel="cases", ylabel="seconds per case")
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=len(costs))
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Title": title, "Date": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, drawn.getvalue())
