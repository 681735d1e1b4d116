"""The files that an evaluation leaves: CSV by case, JSON with everything, Markdown to quote."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.data.files import replace_files
from pipeline.data.json_files import json_bytes
from pipeline.errors import ResourceError, SettingsError
from pipeline.evaluation.comparison import comparison_document, comparison_rows
from pipeline.evaluation.definitions import RULES, STATED_RULE
from pipeline.evaluation.report import Report, case_row, report_document, warnings_of
from pipeline.evaluation.statistics import Comparison
from pipeline.evaluation.tables import result_grids

CASES, SUMMARY, MARKDOWN = "cases.csv", "summary.json", "summary.md"
COMPARISON_CASES, COMPARISON = "comparison.csv", "comparison.json"
RESULTS = (CASES, SUMMARY, MARKDOWN, COMPARISON_CASES, COMPARISON)
# Every folder of a training or a cross-validation has it from its start. The module that writes it
# (`pipeline.training.start`) lies above this one.
RUN_SETTINGS = "settings.json"


def require_folder_name(folder: Path) -> None:
    """Raise SettingsError if something else than a folder is at `folder`."""
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{folder}: expected a folder for the results; found a file.")


def require_own_folder(folder: Path) -> None:
    """Refuse a folder whose files an evaluation would replace, though none has made them.

    Raises:
        SettingsError: A run is in it, or a file of `RESULTS` that is not of an evaluation.
    """
    if (folder / RUN_SETTINGS).exists():
        found = f"a run ({RUN_SETTINGS})"
    elif _is_evaluation(folder / SUMMARY):
        return
    else:
        found = ", ".join(name for name in RESULTS if (folder / name).exists())
    if found:
        raise SettingsError(
            f"{folder}: expected a folder of its own for the results, new or of an earlier "
            f"evaluation; found {found}, of something else. Choose another folder for -o, for "
            f"example {folder / 'scores'}."
        )


def _is_evaluation(path: Path) -> bool:
    """Tell whether a file is the summary that `write_report` writes."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.keys() >= {"predictions", "summary", "columns"}


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents; ResourceError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"{folder}: cannot be created: {error.strerror}. "
            "Choose a folder that can be written to."
        ) from error


def write_report(folder: Path, report: Report) -> list[Path]:
    """Write `cases.csv`, `summary.json` and `summary.md` into `folder`; return their paths."""
    rows = [case_row(result) for result in report.results]
    contents = {
        # First, because the folder is known by it (`require_own_folder`) if this is interrupted.
        SUMMARY: json_bytes(report_document(report)),
        CASES: csv_bytes(rows),
        MARKDOWN: _markdown(report).encode(),
    }
    return _written(folder, contents)


def write_comparison(
    folder: Path, report: Report, other: Report, comparisons: dict[str, Comparison]
) -> list[Path]:
    """Write `comparison.csv` and `comparison.json`, and return their paths."""
    contents = {
        COMPARISON_CASES: csv_bytes(comparison_rows(report, other)),
        COMPARISON: json_bytes(comparison_document(report, other, comparisons)),
    }
    return _written(folder, contents)


def _written(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    replace_files(folder, contents)
    return [folder / name for name in sorted(contents)]


def csv_bytes(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return the rows as CSV in UTF-8, None as an empty cell."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def _markdown(report: Report) -> str:
    """Return the tables with what has to be read beside them."""
    notes = [STATED_RULE]
    if report.rule_means:
        notes += [f"`{rule}`: {RULES[rule]}" for rule in RULES if rule != "stated"]
    parts = [grid.to_markdown() for grid in result_grids(report)]
    parts += [f"{text}\n" for text in (*warnings_of(report.results), *notes)]
    return "\n".join(parts)
