"""The results as tables: on the screen, and as Markdown in benchmarks/results/README.md."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.measure import Comparison
from pipeline.data.files import replace_file

RESULTS = Path(__file__).parent / "results"
HEAD = (
    "| goal | measure | reference | ours | ratio (spread) | goal's ratio | reached |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)
UNITS = {"seconds": ("s", 1.0), "peak_bytes": ("MB", 1e-6), "cpu_seconds": ("s of processor", 1.0)}


def print_comparison(comparison: Comparison) -> None:
    """Show one result, in one line and its remarks."""
    print(_row(json.loads(json.dumps(comparison.to_dict()))))
    for text in (comparison.same, *comparison.notes):
        print(f"    {text}")


def write_table() -> None:
    """Put every result that is there into one Markdown file."""
    parts = ["# Measured side by side", ""]
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        if "comparisons" not in content:
            continue
        parts += [f"## {path.stem}", "", _machine(content["machine"]), "", *HEAD]
        parts += map(_row, content["comparisons"])
        parts.append("")
        for each in content["comparisons"]:
            parts.append(f"- {each['key']}, {each['what']}: {each['data']}; {each['same']}.")
            parts += [f"  - {note}" for note in each["notes"]]
        parts.append("")
    replace_file(RESULTS / "README.md", "\n".join(parts).encode())


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gb']} GB; sgemm {machine['sgemm_gflops']} GFLOP/s, copy "
        f"{machine['copy_gb_per_s']} GB/s; Python {machine['python']}, {versions}."
    )


def _row(result: dict[str, Any]) -> str:
    spread = f"{min(result['ratios']):.3f} to {max(result['ratios']):.3f}"
    goal = "" if result["goal"] is None else f"{result['goal']:.3f}"
    reached = {True: "yes", False: "**no**", None: ""}[result["reaches_goal"]]
    cells = (
        result["key"],
        result["what"],
        _side(result["reference"], result["of"]),
        _side(result["ours"], result["of"]),
        f"{result['ratio']:.3f} ({spread})",
        goal,
        reached,
    )
    return f"| {' | '.join(cells)} |"


def _side(side: dict[str, Any], of: str) -> str:
    unit, factor = UNITS[of]
    value = statistics.median(run[of] for run in side["runs"]) * factor
    return f"{side['name']}: {value:.3g} {unit}"
