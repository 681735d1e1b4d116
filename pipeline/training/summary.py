"""What a finished run says: its scores beside the background's, and where everything is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.data.files import replace_file
from pipeline.evaluation.overlap import BACKGROUND
from pipeline.model.checkpoint import BEST, LAST
from pipeline.training.progress import Progress
from pipeline.training.run import METRICS
from pipeline.training.tensorboard import FOLDER_NAME

SUMMARY = "summary.json"


def write_summary(progress: Progress, folder: Path) -> dict[str, Any]:
    """Write `summary.json`: the best and the last validation, if there was any, and return it."""
    validated = [row for row in progress.history if "dice_mean" in row]
    summary = {
        "best": next((row for row in validated if row["epoch"] == progress.best_epoch), None),
        "last": validated[-1] if validated else None,
        "epochs": progress.num_epochs_done,
        "iterations": progress.iteration,
    }
    replace_file(folder / SUMMARY, json.dumps(summary, indent=2).encode())
    return summary


def print_summary(summary: dict[str, Any], folder: Path, console: Console) -> None:
    """Print the score table and where everything is."""
    if summary["last"] is not None:
        _print_scores(summary, console)
    lines = (
        f"Weights:     {folder / BEST} ({'best' if summary['last'] else 'last epoch'}), "
        f"{folder / LAST} (last)",
        f"Curves:      {folder / METRICS}, {folder / SUMMARY}",
        f"TensorBoard: tensorboard --host 127.0.0.1 --logdir {folder / FOLDER_NAME}",
    )
    # A folder's name may hold what rich would take for markup.
    console.print("\n".join(lines), markup=False)


def _print_scores(summary: dict[str, Any], console: Console) -> None:
    best, last = summary["best"], summary["last"]
    best = best or last
    table = Table(title=f"Validation after {summary['epochs']} epochs", title_justify="left")
    for name in ("score", f"best (epoch {best['epoch']})", "last", "everything is background"):
        table.add_column(name, justify="left" if name == "score" else "right")
    for name in [key for key in last if f"{BACKGROUND}{key}" in last]:
        values = (best[name], last[name], last[BACKGROUND + name])
        table.add_row(name, *(f"{value:.4f}" for value in values))
    console.print(table)
