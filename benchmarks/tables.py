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
FIGURES_HEAD = (
    "| goal | measure | value | goal's value | reached |",
    "| --- | --- | --- | --- | --- |",
)
REACHED = {True: "yes", False: "**no**", None: ""}
UNITS = {"seconds": ("s", 1.0), "peak_bytes": ("MB", 1e-6), "cpu_seconds": ("s of processor", 1.0)}


def print_comparison(comparison: Comparison) -> None:
    """Show one result, in one line and its remarks."""
    print(_row(json.loads(json.dumps(comparison.to_dict()))))
    for text in (comparison.same, *comparison.notes):
        print(f"    {text}")


def write_table() -> None:
    """Put every result that is there into one Markdown file."""
    parts = ["# Measured side by side", ""]
    # Of `benchmarks.accuracy` and `benchmarks.ablation`, which write tables of their own.
    found = sorted(RESULTS.glob("accuracy/*.md"))
    links = [f"[{path.stem}](accuracy/{path.name})" for path in found]
    if links:
        parts += [f"How well it segments: {', '.join(links)}.", ""]
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        head = [f"## {path.stem}", "", _machine(content["machine"]), ""]
        if "comparisons" in content:
            parts += [*head, *_drawing(path.stem), *_comparisons(content["comparisons"]), ""]
        elif "figures" in content:
            parts += [*head, *_figures(content), ""]
        elif "proof" in content:
            parts += [*head, *_proof(content["proof"]), ""]
    replace_file(RESULTS / "README.md", "\n".join(parts).encode())


def figure_row(figure: dict[str, Any]) -> str:
    """Return a row of the table of figures, which are held against a value and no other side."""
    value = figure["value"]
    cells = (
        figure["key"],
        figure["what"],
        "not measured" if value is None else f"{value:.4g} {figure['unit']}".rstrip(),
        f"{figure['goal']:g} {figure['unit']}".rstrip(),
        REACHED[figure["reaches_goal"]],
    )
    return f"| {' | '.join(cells)} |"


def _drawing(name: str) -> list[str]:
    path = RESULTS / f"{name}.svg"
    alt = f"The medians of the table {name}, with bars from the least to the most."
    return [f"![{alt}]({path.name})", ""] if path.exists() else []


def _comparisons(comparisons: list[dict[str, Any]]) -> list[str]:
    lines = [*HEAD, *map(_row, comparisons), ""]
    for each in comparisons:
        lines.append(f"- {each['key']}, {each['what']}: {each['data']}; {each['same']}.")
        lines += [f"  - {note}" for note in each["notes"]]
    return lines


def _figures(content: dict[str, Any]) -> list[str]:
    run = content["run"]
    dices = [row["dice_mean"] for row in run["curve"]]
    edges = " x ".join(map(str, content["input"]))
    lines = [*FIGURES_HEAD, *map(figure_row, content["figures"]), ""]
    lines.append(
        f"- {content['data']}, {edges} as they enter the network of {content['filters']} filters."
    )
    lines.append(
        f"- {len(run['curve'])} epochs of {run['training_cases']} cases, each validated on "
        f"{run['validation_cases']}, took {run['seconds']:.1f} s, start, check and cache included; "
        f"mean Dice {', '.join('unknown' if dice is None else f'{dice:.3f}' for dice in dices)}."
    )
    return lines


def _proof(proof: dict[str, Any]) -> list[str]:
    epochs, workers = proof["bytes_of_epochs"], proof["bytes_of_workers"]
    lines = [
        f"- {proof['num_cases']} cases ({proof['data']}), {proof['form']}: "
        f"{proof['kept_bytes'] / 1e9:.2f} GB kept; cached in {proof['caching_s']:.0f} s, "
        f"{statistics.median(proof['epoch_s']):.1f} s an epoch.",
        f"- Resident memory: {proof['bytes_before'] / 1e9:.3f} GB before, "
        f"{proof['bytes_cached'] / 1e9:.3f} GB with the cases, {max(epochs) / 1e9:.3f} GB at most "
        f"in {len(epochs)} epochs, {epochs[-1] / 1e9:.3f} GB after the last: "
        f"{'flat' if proof['is_flat'] else '**it grew**'}.",
    ]
    if proof["num_workers"]:
        own = f"at most {max(workers) / 1e9:.3f} GB of its own"
        lines.append(f"- Each of {proof['num_workers']} workers had {own}.")
    return lines


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    device = machine.get("device", "cpu")
    if device != "cpu":
        versions += (
            f"; {device}, {machine['device_memory_gb']:.0f} GB, CUDA {machine['cuda']}, bf16 "
            f"{machine['bf16_tflops']:.0f} TFLOP/s, copy {machine['device_copy_gb_per_s']:.0f} GB/s"
        )
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gb']} GB; sgemm {machine['sgemm_gflops']} GFLOP/s, copy "
        f"{machine['copy_gb_per_s']} GB/s; Python {machine['python']}, {versions}."
    )


def _row(result: dict[str, Any]) -> str:
    spread = f"{min(result['ratios']):.3f} to {max(result['ratios']):.3f}"
    goal = "" if result["goal"] is None else f"{result['goal']:.3f}"
    cells = (
        result["key"],
        result["what"],
        _side(result["reference"], result["of"]),
        _side(result["ours"], result["of"]),
        f"{result['ratio']:.3f} ({spread})",
        goal,
        REACHED[result["reaches_goal"]],
    )
    return f"| {' | '.join(cells)} |"


def _side(side: dict[str, Any], of: str) -> str:
    unit, factor = UNITS[of]
    value = statistics.median(run[of] for run in side["runs"]) * factor
    return f"{side['name']}: {value:.3g} {unit}"
