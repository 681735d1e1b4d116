"""python -m benchmarks.ablation LIST -o OUT [--rows NAME...] [--minutes M] [--spacing-mm S] ...

What each change from the article's settings is worth: first preset `original`, then one change more
in each row up to preset `quick`, then what preset `strong` has beyond `quick`, and what neither has
and was tried, one change each. All rows are cross-validated with the same minutes of training for
each fold, as by `benchmarks.accuracy`, and each is compared with the row that it changes. What is
finished is not done again: a run that was stopped is simply repeated. OUT then holds ablation.json,
ablation.md, and the scores of each case in ablation_cases.csv.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.accuracy import add_task_arguments, run, task_of
from benchmarks.accuracy_peers.methods import Method
from pipeline.cli import add_list_argument, main_of
from pipeline.config import build_settings, preset

ORIGINAL, QUICK, STRONG = "original", "quick", "strong"
NAME = "ablation"
TITLE = "What each change is worth"


@dataclass(frozen=True)
class Change:
    """A row: what it is called, and which settings (or whole stages) it takes from a preset."""

    name: str
    keys: tuple[str, ...]


# Each beside the ones above it; the last one completes `quick`.
TO_QUICK = (
    Change("brain-box", ("preprocessing.border_crop", "preprocessing.brain_box")),
    Change("brain-z-score", ("preprocessing.normalization", "preprocessing.sharpen_strength")),
    Change("dice-loss", ("training.loss",)),
    Change("instance-norm", ("network.settings.norm", "network.settings.dropout")),
    Change(
        "schedule",
        (
            "training.learning_rate",
            "training.schedule",
            "training.warmup_fraction",
            "training.gradient_clip",
        ),
    ),
    Change("8-filters", ("network.settings.num_filters",)),
    Change("augmentation", ("augmentation",)),
    Change(QUICK, ("inference.flips",)),
)
# Each alone beside `quick`.
TO_STRONG = (
    Change("regions", ("network.outputs",)),
    Change("averaged-weights", ("training.ema_decay",)),
    Change("residual", ("network.settings.residual",)),
    Change("deep-supervision", ("network.settings.deep_supervision",)),
    Change("weight-decay", ("training.weight_decay",)),
    Change("unsmoothed", ("preprocessing.gaussian_sigma",)),
    Change("strong-augmentation", ("augmentation",)),
)
# Each alone beside `quick`; in no preset.
TRIED = (
    # Tumours of low contrast and of small size are rare among twelve cases.
    Method(
        "wider-augmentation",
        QUICK,
        (
            "augmentation.deformation.rotation_degrees=30",
            "augmentation.deformation.scale=1.4",
            "augmentation.appearance.brightness=0.3",
            "augmentation.appearance.offset=0.3",
        ),
    ),
)


def rows() -> tuple[tuple[Method, str | None], ...]:
    """Return the methods in their order, each with the name of the one that it changes."""
    before, assigned = ORIGINAL, list[str]()
    found: list[tuple[Method, str | None]] = [(Method(ORIGINAL, ORIGINAL), None)]
    for change in TO_QUICK:
        assigned += assignments(change, preset_name=QUICK)
        found.append((Method(change.name, ORIGINAL, tuple(assigned)), before))
        before = change.name
    for change in TO_STRONG:
        own = assignments(change, preset_name=STRONG)
        found.append((Method(change.name, QUICK, tuple(own)), QUICK))
    return (*found, *((method, QUICK) for method in TRIED))


def assignments(change: Change, *, preset_name: str) -> list[str]:
    """Return `change` as `--set` takes it, with the values of a preset."""
    settings = build_settings(preset(preset_name)).model_dump(mode="json")
    return [f"{key}={json.dumps(_value(settings, key))}" for key in change.keys]


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_list_argument(parser)
    names = [method.name for method, _ in rows()]
    parser.add_argument(
        "--rows",
        nargs="+",
        metavar="NAME",
        choices=names,
        default=names,
        help="each beside the one that it changes, where that is named too (default: all)",
    )
    add_task_arguments(parser)
    return parser


def work(arguments: argparse.Namespace) -> None:
    """Run what is not finished, score all, write the table."""
    wanted = [(method, base) for method, base in rows() if method.name in arguments.rows]
    pairs = [(method.name, base) for method, base in wanted if base and base in arguments.rows]
    methods = [method for method, _ in wanted]
    print(run(task_of(arguments), methods, pairs=pairs, title=TITLE, stem=NAME))


def _value(settings: dict[str, Any], key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        value = value[name]
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ablation and return its exit code."""
    return main_of(build_parser(), work, argv)


if __name__ == "__main__":
    sys.exit(main())
