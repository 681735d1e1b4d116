"""python -m benchmarks [NAME ...] [--repeats N]

Measure reference and ours side by side, write benchmarks/results/NAME.json, and put all results
that are there into benchmarks/results/README.md. Without a NAME every benchmark is run, and each
in a process of its own: what one leaves behind in memory is nothing to the next.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.machine import describe_machine
from benchmarks.tables import RESULTS, print_comparison, write_table
from pipeline.data.files import replace_file

# Each module has `run(*, repeats) -> list[Comparison]`.
BENCHMARKS = (
    "reading",
    "preprocessing",
    "caching",
    "scaling",
    "network",
    "training",
    "inference",
    "metrics",
    "startup",
)
REPEATS = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks that are named, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"default: {REPEATS}")
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"expected names among {', '.join(BENCHMARKS)}; found {', '.join(unknown)}")
    names = arguments.names or BENCHMARKS
    if len(names) == 1:
        _measure(names[0], repeats=arguments.repeats)
        return 0
    for name in names:
        command = [sys.executable, "-m", "benchmarks", name, f"--repeats={arguments.repeats}"]
        if status := subprocess.run(command, check=False).returncode:
            return status
    return 0


def _measure(name: str, *, repeats: int) -> None:
    print(f"{name} ...", flush=True)
    comparisons = importlib.import_module(f"benchmarks.{name}").run(repeats=repeats)
    for comparison in comparisons:
        print_comparison(comparison)
    content = {
        "machine": describe_machine(),
        "comparisons": [each.to_dict() for each in comparisons],
    }
    RESULTS.mkdir(exist_ok=True)
    replace_file(RESULTS / f"{name}.json", json.dumps(content, indent=1).encode())
    write_table()


if __name__ == "__main__":
    sys.exit(main())
