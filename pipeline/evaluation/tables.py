"""The results as tables: once made as plain text cells, shown on a console or as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from rich import box
from rich.table import Table
from rich.text import Text

from pipeline.evaluation.comparison import TEST, note_of
from pipeline.evaluation.definitions import RULES
from pipeline.evaluation.overlap import BACKGROUND
from pipeline.evaluation.report import Report
from pipeline.evaluation.statistics import Comparison, Interval, Score

NUM_WORST = 5
ARTICLE_COLUMNS = ("article_dice", "article_iou", "mean_iou", "accuracy")
CALIBRATION_COLUMNS = ("ece", "ece_tumour")
NOTHING = "-"  # in the place of a score that does not exist


@dataclass(frozen=True)
class Grid:
    """A table in plain text: the first column is words, the others are numbers.

    A heading may have several lines: then a table fits into 80 columns.
    """

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def to_rich(self) -> Table:
        """Return the table for a console; names are shown as they are, not taken for markup."""
        table = Table(
            title=Text(self.title),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        for index, heading in enumerate(self.headings):
            table.add_column(Text(heading), justify="right" if index else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def to_markdown(self) -> str:
        """Return the table as Markdown, its title above it."""
        ruler = ["---", *["---:"] * (len(self.headings) - 1)]
        lines = [self.headings, ruler, *self.rows]
        body = "\n".join(f"| {' | '.join(map(_escaped, cells))} |" for cells in lines)
        return f"**{_escaped(self.title)}**\n\n{body}\n"


def result_grids(report: Report) -> list[Grid]:
    """Return the tables of one report: regions, article's metrics, other rules if asked for."""
    grids = [_regions(report), _article(report)]
    return [*grids, _rules(report)] if report.rule_means else grids


def worst_grid(report: Report) -> Grid:
    """Return the `NUM_WORST` cases with the lowest mean region Dice."""
    dices = ("dice_mean", *(f"dice_{region}" for region in report.regions))
    distances = tuple(f"hd95_mm_{region}" for region in report.regions)
    headings = (
        "case",
        "mean\nDice",
        *(f"Dice\n{region}" for region in report.regions),
        *(f"HD95\n{region}\nmm" for region in report.regions),
    )
    rows = [
        (
            result.case,
            *(_score(result.scores[name]) for name in dices),
            *(_mm(result.scores[name]) for name in distances),
        )
        for result in report.results[:NUM_WORST]
    ]
    return Grid(f"The worst of {len(report.results)} cases, all in the files", headings, rows)


def comparison_grid(comparisons: dict[str, Comparison], *, predictions: str, other: str) -> Grid:
    """Return the comparison of two sets of predictions, one row a column of scores."""
    grid = Grid(
        f"{predictions} against {other}: differences are the first minus the second",
        (
            "score",
            "first",
            "second",
            "differ-\nence",
            "95 % interval",
            "better /\nworse /\nequal",
            "p",
        ),
    )
    for column, one in comparisons.items():
        shown = _mm if "_mm" in column else _score
        counts = f"{one.num_better} / {one.num_worse} / {one.num_equal}"
        grid.rows.append(
            (
                column,
                shown(one.mean),
                shown(one.other_mean),
                shown(one.mean_difference),
                _interval(one.interval_95, shown),
                counts,
                f"{one.p_value:.4f}{'*' if note_of(one) else ''}",
            )
        )
    return grid


def comparison_notes(comparisons: dict[str, Comparison]) -> list[str]:
    """Return what is to be read below the comparison: the test, and what the stars mean."""
    marked = sorted({note_of(one) for one in comparisons.values()} - {""})
    return [f"p: {TEST} ({len(comparisons)} here).", *(f"* {note}" for note in marked)]


def _regions(report: Report) -> Grid:
    grid = Grid(
        f"{report.predictions}: {len(report.results)} cases ({report.selection.description})",
        (
            "region",
            "Dice",
            "95 % interval",
            "median",
            "HD95\nmm",
            "median",
            "lesion\nDice",
            "background\nDice",
        ),
    )
    for region in report.regions:
        dice, distance, lesion, background = (
            report.summaries[f"{name}_{region}"]
            for name in ("dice", "hd95_mm", "lesion_dice", f"{BACKGROUND}dice")
        )
        grid.rows.append(
            (
                region,
                _score(dice.mean),
                _interval(dice.interval_95, _score),
                _score(dice.median),
                _mm(distance.mean),
                _mm(distance.median),
                _score(lesion.mean),
                _score(background.mean),
            )
        )
    return grid


def _article(report: Report) -> Grid:
    """The article's metrics and the calibration, beside what the background gets."""
    sources = Counter(result.article_metrics_from for result in report.results)
    counted = ", ".join(f"{sources[name]} from the {name}" for name in sorted(sources))
    grid = Grid(
        f"The article's metrics, which count the background as a class ({counted})",
        ("score", "mean", "95 % interval", "everything is\nbackground"),
    )
    for name in (*ARTICLE_COLUMNS, *CALIBRATION_COLUMNS):
        summary, background = report.summaries[name], report.summaries.get(f"{BACKGROUND}{name}")
        if summary.num_cases:
            cells = (_score(summary.mean), _interval(summary.interval_95, _score))
            grid.rows.append((name, *cells, _score(background.mean if background else None)))
    return grid


def _rules(report: Report) -> Grid:
    """The means under each rule, with the number of cases each is over."""
    grid = Grid("Means under other rules for empty regions (over so many cases)", ("score", *RULES))
    for column, means in report.rule_means.items():
        shown = _mm if "_mm" in column else _score
        cells = (f"{shown(means[rule].mean)} ({means[rule].num_cases})" for rule in RULES)
        grid.rows.append((column, *cells))
    return grid


def _interval(interval: Interval | None, shown: Callable[[Score], str]) -> str:
    return f"{shown(interval[0])} to {shown(interval[1])}" if interval else NOTHING


def _score(value: Score) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _mm(value: Score) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
